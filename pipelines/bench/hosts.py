"""What it costs to begin, and to have others do the work: start, dask, Slurm."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pipelines.bench import scenes
from pipelines.bench.child import once
from pipelines.bench.goals import Asked, Row

SIDE = 161_800
"""Coarse samples of a side of a scene that gives 1e5 tiles of 1024 fine samples at 2x."""

TASKS, TASK_S, PARALLEL = 8, 0.5, 2
"""Of the job array: tasks, seconds of each, at once."""

SLURM_LIMIT_S = 120.0


def start(asked: Asked, folder: Path) -> list[Row]:
    """The command line, and the plan of a scene that no disk here holds."""
    del asked
    path = scenes.huge(folder / "huge.zarr", SIDE)
    told = {"help": _cpu_s("--help"), "plan": _cpu_s("plan", path, folder / "out.zarr", "--scale", "2", "--quiet")}
    what = "`truescale --help` and the plan of a scene of 1e5 tiles, cpu"
    return [Row(what=what, value=sum(told.values()), most=3, unit="s", raw={f"{k}_cpu_s": v for k, v in told.items()})]


def _cpu_s(*arguments: object) -> float:
    """CPU seconds of the program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def dask(asked: Asked, folder: Path) -> list[Row]:
    """Trivial items in groups of 100."""
    del folder
    items = asked.pick(3_000, 100_000)
    told = once("pipelines.bench.cases:trivial_on_dask", items, 100).told
    what = f"{items} items in groups of 100"
    return [
        Row(what=f"cpu of client and scheduler an item, {what}", value=told["cpu_ms_per_item"], most=0.1, unit="ms"),
        Row(what=f"client memory grown, {what}", value=told["grown_mb"], most=50, unit="MB", raw=told),
        Row(what="LocalCluster of 2 processes ready, on the clock", value=told["ready_s"], most=5, unit="s"),
    ]


def slurm(asked: Asked, folder: Path) -> list[Row]:
    """A job array and the job that follows it, beyond the time of their own work."""
    del asked
    what = f"array of {TASKS} and a job after it, beyond the tasks' own time"
    if shutil.which("sbatch") is None:
        return [Row(what=what, most=4, unit="s", why="there is no sbatch here")]
    try:
        seconds = _array_s(folder)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["no reason"]
        return [Row(what=what, most=4, unit="s", why=f"sbatch refuses: {said[-1]}")]
    if seconds is None:
        return [Row(what=what, most=4, unit="s", why=f"not over after {SLURM_LIMIT_S:g} s")]
    return [Row(what=what, value=seconds - TASKS * TASK_S / PARALLEL, most=4, unit="s")]


def _array_s(folder: Path) -> float | None:
    """Seconds from the submission to the end of the job that follows the array; None if it takes too long."""
    began = time.monotonic()
    options = ("sbatch", "--parsable", f"--output={folder}/%A-%a.out")
    array = _said(*options, f"--array=0-{TASKS - 1}%{PARALLEL}", f"--wrap=sleep {TASK_S}")
    last = f"--dependency=afterok:{array}"
    _said(*options, last, "--kill-on-invalid-dep=yes", f"--wrap=touch {folder}/finished")
    while not (folder / "finished").exists():
        if time.monotonic() - began > SLURM_LIMIT_S:
            return None
        time.sleep(0.05)
    return time.monotonic() - began


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
