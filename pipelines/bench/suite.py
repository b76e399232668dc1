"""All benches by name, and the machine they ran on."""

from __future__ import annotations

import difflib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.bench.goals import Asked, Row
from pipelines.errors import UsageError
from pipelines.networks import has_cuda
from pipelines.stages import cores

BENCHES: dict[str, str] = {
    "engine-2d": "pipelines.bench.tiling:engine_2d",
    "engine-3d": "pipelines.bench.tiling:engine_3d",
    "engine-peers": "pipelines.bench.tiling:engine_peers",
    "kept-heap": "pipelines.bench.tiling:kept_heap",
    "seams": "pipelines.bench.tiling:seams",
    "memory": "pipelines.bench.tiling:memory",
    "recompute": "pipelines.bench.tiling:recompute",
    "bytes": "pipelines.bench.storage:same_bytes",
    "store": "pipelines.bench.storage:store",
    "resume": "pipelines.bench.storage:resume",
    "ledger": "pipelines.bench.storage:ledger",
    "dask": "pipelines.bench.hosts:dask",
    "start": "pipelines.bench.hosts:start",
    "slurm": "pipelines.bench.hosts:slurm",
    "certify": "pipelines.bench.tiling:certify",
    "engine-cuda": "pipelines.bench.cuda:engine_cuda",
}
"""Name -> 'module:function', called with what was asked and an empty folder."""

ON_CUDA = ("engine-cuda",)

PACKAGES = ("truescale", "torch", "monai", "dask", "distributed", "zarr", "numcodecs", "numpy", "scipy")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The rows of a session, what they were measured on, and how long each bench took."""

    machine: dict[str, str]
    quick: bool
    seconds: float
    took_s: dict[str, float]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "rows": [row.to_json() for row in self.rows]}


def run(names: Sequence[str], asked: Asked, progress: Progress) -> Outcome:
    """The benches of these names (none: all), one after the other. Raises UsageError for an unknown name."""
    chosen = _chosen(names)
    busy = _load()
    rows: list[Row] = []
    took: dict[str, float] = {}
    started = time.monotonic()
    progress("bench", 0, len(chosen))
    for number, name in enumerate(chosen):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="truescale-bench-", ignore_cleanup_errors=True) as folder:
            rows += [replace(row, bench=name) for row in _rows(name, asked, Path(folder))]
        took[name] = round(time.monotonic() - began, 1)
        progress("bench", number + 1, len(chosen))
    machine = {**described(), "load": f"{busy} when it began, {_load()} when it ended"}
    return Outcome(machine, asked.quick, time.monotonic() - started, took, tuple(rows))


def _rows(name: str, asked: Asked, folder: Path) -> list[Row]:
    wanted = "cuda" if name in ON_CUDA else "cpu"
    if wanted not in asked.devices:
        why = "there is no CUDA device here" if wanted == "cuda" else "it runs on the CPU"
        return [Row(what=f"{wanted} device", why=why)]
    module, _, function = BENCHES[name].partition(":")
    try:
        found: list[Row] = getattr(import_module(module), function)(asked, folder)
    except Exception as error:  # noqa: BLE001 - one bench must not stop the others
        return [Row(what="stopped with an error", why=f"{type(error).__name__}: {error}")]
    return found


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in BENCHES:
            close = difflib.get_close_matches(name, BENCHES, n=1, cutoff=0.4)
            fix = f"did you mean '{close[0]}'?" if close else ""
            raise UsageError(what=f"there is no bench '{name}'", why=f"known are {', '.join(BENCHES)}", fix=fix)
    return [name for name in BENCHES if not names or name in names]


def devices(device: str) -> tuple[str, ...]:
    """What to measure on. Raises UsageError if CUDA is asked for and absent."""
    if device == "cpu":
        return ("cpu",)
    if has_cuda():
        return ("cpu", "cuda") if device == "auto" else ("cuda",)
    if device == "cuda":
        raise UsageError(what="CUDA was asked for, but this machine or this build of torch has none")
    return ("cpu",)


def described() -> dict[str, str]:
    """The machine: processor, cores, memory, system, versions; no name of host or user."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "processor": _processor(),
        "cores": str(cores()),
        "memory": f"{memory:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}".strip(),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def _processor() -> str:
    """What the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    told = {key.strip(): value.strip() for key, value in told.items()}
    name = told.get("model name", platform.machine())
    wide: list[str] = [flag for flag in ("avx512f", "avx512_bf16", "amx_tile") if flag in told.get("flags", "").split()]
    kind = f"family {told.get('cpu family', '-')} model {told.get('model', '-')}"
    return ", ".join((name, kind, *(wide or ["no AVX-512"])))


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "-"
