"""What a process of a dask cluster loads once and keeps for its groups of tiles."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed import Worker, WorkerPlugin, get_worker

from pipelines import heap
from pipelines.errors import TruescaleError

GPUS = Path("/proc/driver/nvidia/gpus")
"""A folder for each device, where the driver is NVIDIA's."""

Work = Callable[[Sequence[Any]], Any]
"""Does a group of items; what it returns is small."""


class Loaded(WorkerPlugin):
    """Calls `load` once in every process, those that join later too, and keeps the work that it returns."""

    def __init__(self, load: Callable[[], Work]) -> None:
        self.name = f"truescale-{uuid4().hex}"
        self._load = load

    def setup(self, worker: Worker) -> None:
        """Load; a failure is kept for the first group, which tells the caller: here it would end the process."""
        self.turn = threading.Lock()
        if worker.nanny is not None:  # a process of its own: Ctrl-C is for the run, which ends the tiles in hand
            with suppress(ValueError):
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            heap.keep()
            keep_one_gpu(worker.name, os.environ)
        try:
            self.work = self._load()
        except Exception as error:  # noqa: BLE001 - raised again in `call`
            self.work = _raising(error)

    def teardown(self, worker: Worker) -> None:
        """Close the work, if it holds something, like an open file."""
        del worker
        close = getattr(self.work, "close", None)
        if close is not None:
            close()


def keep_one_gpu(name: object, environment: MutableMapping[str, str]) -> None:
    """Let a process of a cluster see one of several CUDA devices, in turn by its number, before it uses any.

    name: its number in a LocalCluster; others, like jobs of Slurm, are given their devices by what starts them.
    """
    told = environment.get("CUDA_VISIBLE_DEVICES")
    seen = told.split(",") if told else [str(n) for n in range(len(list(GPUS.glob("*"))))]
    if isinstance(name, int) and len(seen) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = seen[name % len(seen)]


def call(name: str, items: Sequence[Any]) -> Any:
    """Do a group of items with what this process has loaded under a name: one at a time, for that is what was planned.

    A worker with more threads would take as many times the memory.
    """
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, Loaded)
    try:
        with plugin.turn:
            return plugin.work(items)
    except TruescaleError as error:
        failed = error
    failed.__cause__ = failed.__context__ = None  # errors of libraries need not survive the way
    raise failed


def _raising(error: Exception) -> Work:
    def work(_: Sequence[Any]) -> Any:
        raise error

    return work
