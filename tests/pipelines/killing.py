"""Kills runs at random times, resumes them, and compares every product with the undisturbed one.

python -m tests.pipelines.killing 200 --seed 7
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from pipelines.planning import Plan
from pipelines.store import Ledger, Store
from tests.pipelines.files import smooth, write_raster

IN_FLIGHT = 3
"""Tiles of a thread that a kill may cost: being made, waiting for the writer, being written."""

SIGNALS = ((signal.SIGKILL,), (signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT))
"""What comes; SIGKILL twice as often."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pipelines.runner", "pipelines.cli", "srgeo.cog", "srgeo.raster", "zarr"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: how it was ended, after how many seconds, shards that were there then, tiles that were kept."""

    signals: tuple[int, ...]
    after_s: float
    code: int
    shards: int
    kept: int


def _program(arguments: list[str], folder: str) -> None:
    from pipelines import cli

    os.setsid()
    with Path(folder, "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["truescale", *arguments]
    cli.main()


def start(arguments: list[str], folder: Path) -> BaseProcess:
    """The program in a process of its own, its output in `folder`/log."""
    process = _context.Process(target=_program, args=(arguments, str(folder)))
    process.start()
    return process


def scene(folder: Path) -> Path:
    """A raster that becomes 30 tiles of several bands."""
    bands = np.stack([np.tile(smooth((650, 550)), (4, 4))[:2600, :2200] + 50 * k for k in range(1)])
    return write_raster(folder / "scene.tif", bands.astype(np.uint16), tiled=True)


def kill_once(source: Path, folder: Path, rng: random.Random, longest_s: float) -> Outcome:
    """A run that is ended by signals at a random time, then resumed to its end; the product is `folder`/out.tif."""
    folder.mkdir()
    output = folder / "out.tif"
    asked = ["upscale", str(source), str(output), "--model", "floor", "--quiet"]
    signals, after_s = rng.choice(SIGNALS), rng.uniform(0, longest_s)
    process = start(asked, folder)
    assert process.pid is not None
    deadline = time.monotonic() + after_s
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    for number in signals:
        if process.is_alive():
            os.kill(process.pid, number)
            time.sleep(0.02)
    process.join()
    code = int(process.exitcode or 0)
    work = Store(Path(f"{output}.work"))
    shards = len([p for p in work.fine.glob("samples/c/**/*") if p.is_file() and "partial" not in p.name])
    kept, report_path = 0, Path(f"{output}.report.json")
    if output.exists() and report_path.exists():  # all is done but the removal of the work folder, at most
        kept, before = shards, report_path.read_bytes()
        again = start([*asked, "--resume"], folder)
        again.join()
        assert again.exitcode == 0, (folder / "log").read_text()
        assert report_path.read_bytes() == before
    else:
        kept = _intact(work)
        again = start([*asked, "--resume"], folder)
        again.join()
        assert again.exitcode == 0, (folder / "log").read_text()
        report = json.loads(report_path.read_text())
        assert report["tiles_resumed"] == kept
    assert not work.folder.exists()
    assert not list(folder.glob(".*"))
    return Outcome(signals, after_s, code, shards, kept)


def _intact(work: Store) -> int:
    data = work.read_json("plan.json")
    if data is None:
        return 0
    plan = Plan.from_json(data)
    missing = Ledger(work, plan.run_hash).missing(range(plan.tile_count), plan.cover(plan.card).position)
    return plan.tile_count - len(missing)


def kill_and_resume(times: int, seed: int, folder: Path) -> list[Outcome]:
    """So many runs, each killed and resumed; every product must have the bytes of the undisturbed one."""
    source, rng = scene(folder), random.Random(seed)
    begun = time.monotonic()
    whole = start(["upscale", str(source), str(folder / "whole.tif"), "--model", "floor", "--quiet"], folder)
    whole.join()
    assert whole.exitcode == 0, (folder / "log").read_text()
    longest_s = time.monotonic() - begun
    expected = (folder / "whole.tif").read_bytes()
    outcomes = []
    for number in range(times):
        place = folder / f"run{number}"
        outcome = kill_once(source, place, rng, longest_s)
        assert (place / "out.tif").read_bytes() == expected, f"seed {seed}, run {number}: {outcome}"
        threads = len(os.sched_getaffinity(0))
        assert outcome.shards - outcome.kept <= IN_FLIGHT * threads, f"seed {seed}, run {number}: {outcome}"
        outcomes.append(outcome)
        shutil.rmtree(place)
    return outcomes


def main() -> None:
    """Print how the runs ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("times", type=int)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = kill_and_resume(asked.times, asked.seed, Path(folder))
    codes = {code: sum(o.code == code for o in outcomes) for code in sorted({o.code for o in outcomes})}
    redone = [o.shards - o.kept for o in outcomes]
    print(f"seed {asked.seed}: {len(outcomes)} runs, all with the bytes of the undisturbed one")  # noqa: T201
    print(f"exit codes {codes}; shards made again: at most {max(redone)}, {sum(redone)} in all")  # noqa: T201


if __name__ == "__main__":
    main()
