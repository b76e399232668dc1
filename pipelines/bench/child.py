"""Processes in which the cases are measured: peaks of memory, allocators and kills of one never touch another.

They are forked from a server that has imported what they need (`preloaded`).
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipelines import heap

POLL_S = 0.05
"""Between two looks at the memory of a program."""

Work = Callable[[], dict[str, Any]]
"""One repetition of a case; returns what it has to tell beside its time."""


class CaseError(RuntimeError):
    """A case failed in its process; the text is the error's."""


@dataclass(frozen=True, slots=True)
class Run:
    """One repetition. cpu_s: user and system, all threads; start_bytes, peak_bytes: resident memory (0: unknown)."""

    seconds: float
    cpu_s: float
    start_bytes: int
    peak_bytes: int
    told: dict[str, Any]

    @property
    def above_bytes(self) -> int:
        """Peak above what was resident when the repetition began."""
        return self.peak_bytes - self.start_bytes


class Child:
    """A process that does one case each time it is told to. task: 'module:function' that makes its Work."""

    def __init__(self, task: str, *arguments: object, kept_heap: bool = True) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pipelines.bench.preloaded"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, task, arguments, kept_heap))
        self._process.start()
        theirs.close()
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._pipe.send(False)
        if error is not None:
            self._process.kill()
        self._process.join()
        self._process.close()

    def begin(self) -> None:
        """Start a repetition."""
        self._pipe.send(True)

    def run(self) -> Run:
        """One repetition. Raises CaseError."""
        self.begin()
        answer = self._answer()
        assert isinstance(answer, Run)
        return answer

    def kill(self) -> None:
        """End the process as a power cut would (SIGKILL)."""
        self._process.kill()
        self._process.join()

    def _answer(self) -> Run | None:
        try:
            answer = self._pipe.recv()
        except EOFError as error:
            raise CaseError("its process was lost") from error
        if isinstance(answer, str):
            raise CaseError(answer)
        return answer  # type: ignore[no-any-return]  # what _serve sends


def alternating(tasks: Mapping[str, Child], rounds: int) -> dict[str, list[Run]]:
    """Every case once, then again: what else the machine does hits all alike."""
    found: dict[str, list[Run]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, child in tasks.items():
            found[name].append(child.run())
    return found


def compared(tasks: Mapping[str, tuple[Any, ...]], rounds: int, plain_heap: Sequence[str] = ()) -> dict[str, list[Run]]:
    """`alternating` over new processes. tasks: name -> (task, *arguments); plain_heap: those whose heap is not kept."""
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(Child(*task, kept_heap=name not in plain_heap)) for name, task in tasks.items()
        }
        return alternating(children, rounds)


def once(task: str, *arguments: object) -> Run:
    """A single repetition in a process of its own."""
    with Child(task, *arguments) as child:
        return child.run()


def program_peak(*arguments: object) -> int:
    """Peak resident memory of `truescale` with these arguments. Raises CaseError, with what it says, if it fails."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    peak = 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:  # the system's account of children would count this process, too, at the fork
            peak = max(peak, memory_bytes(process.pid, "VmHWM"))
            time.sleep(POLL_S)
        assert process.stderr is not None
        if process.returncode:
            raise CaseError(process.stderr.read())
    return peak


def cpu_ratio(runs: Mapping[str, Sequence[Run]], name: str, over: str) -> float:
    """CPU time of one case over that of another, each the least of its repetitions: the one least disturbed."""
    return min(run.cpu_s for run in runs[name]) / min(run.cpu_s for run in runs[over])


def wall_ratio(runs: Mapping[str, Sequence[Run]], name: str, over: str) -> float:
    """The same of the time on the clock."""
    return min(run.seconds for run in runs[name]) / min(run.seconds for run in runs[over])


def numbers(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Seconds, CPU seconds and megabytes of every repetition, for the raw figures."""
    return {
        name: {
            "seconds": [round(r.seconds, 3) for r in of],
            "cpu_s": [round(r.cpu_s, 3) for r in of],
            "peak_above_start_mb": [round(r.above_bytes / 1e6) for r in of],
        }
        for name, of in runs.items()
    }


def _serve(pipe: Connection, task: str, arguments: tuple[Any, ...], kept_heap: bool) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    try:
        if kept_heap:
            heap.keep()
        torch.set_num_threads(1)
        module, _, name = task.partition(":")
        with threadpool_limits(1, user_api="blas"):
            work: Work = getattr(import_module(module), name)(*arguments)
            pipe.send(None)
            while pipe.recv():
                pipe.send(_timed(work))
    except EOFError:
        return  # whoever asked is gone
    except Exception as error:  # noqa: BLE001 - told to the process that asked
        with suppress(OSError):
            pipe.send(f"{type(error).__name__}: {error}")


def _timed(work: Work) -> Run:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start_bytes = memory_bytes("self", "VmRSS")
    started, cpu = time.perf_counter(), time.process_time()
    told = work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Run(seconds, cpu, start_bytes, memory_bytes("self", "VmHWM"), told)


def memory_bytes(process: str | int, field: str) -> int:
    """VmRSS or VmHWM of a process; 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
        return int(text.split(f"{field}:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return 0
