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
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from pipelines.planning import Plan
from pipelines.store import Ledger, Store
from tests.pipelines.files import smooth, write_raster

UNTOLD = 1
"""Shards of a thread, at most, that are written and not yet in the ledger when it is killed: its writer's."""

ENDS = (0, 5, -signal.SIGKILL)
"""Exit codes: ended before the signal came, stopped, killed."""

OLD = b"damaged"
"""How a product begins that is to be replaced."""

SIGNALS = ((signal.SIGKILL,), (signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT))
"""What comes; SIGKILL twice as often."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pipelines.runner", "pipelines.cli", "srgeo.cog", "srgeo.raster", "zarr"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: how it was ended, after how many seconds, shards that were there then, tiles that were kept.

    half_removed: it was killed between the end of its work and that of its work folder.
    """

    signals: tuple[int, ...]
    after_s: float
    code: int
    shards: int
    kept: int
    half_removed: bool


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


def kill_once(source: Path, folder: Path, rng: random.Random, longest_s: float, old: Path | None = None) -> Outcome:
    """A run that is ended by signals at a random time, then resumed to its end; the product is `folder`/out.tif.

    old: a product of the same request, of which a damaged copy is to be replaced.
    """
    folder.mkdir()
    output, report_path = folder / "out.tif", folder / "out.tif.report.json"
    asked = ["upscale", str(source), str(output), "--model", "floor", "--quiet"]
    if old is not None:
        output.write_bytes(OLD + old.read_bytes()[len(OLD) :])
        shutil.copyfile(f"{old}.report.json", report_path)
        asked.append("--overwrite")
    signals, after_s = rng.choice(SIGNALS), rng.uniform(0, longest_s)
    process = start(asked, folder)
    assert process.pid is not None
    while process.is_alive() and not (folder / "log").exists():  # a signal before is Python's, not the program's
        time.sleep(0.002)
    deadline = time.monotonic() + after_s
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    for number in signals:
        with suppress(ProcessLookupError):  # it may end meanwhile
            if process.is_alive():
                os.kill(process.pid, number)
                time.sleep(0.02)
    process.join()
    code = int(process.exitcode or 0)
    unheard = code == -signal.SIGTERM and not Path(f"{output}.work").exists()  # before it listens nothing is begun
    assert code in ENDS or unheard, (folder / "log").read_text()
    work = Store(Path(f"{output}.work"))
    shards = len([p for p in work.fine.glob("samples/c/**/*") if p.is_file() and "partial" not in p.name])
    made = output.exists() and not output.read_bytes().startswith(OLD) and report_path.exists()
    half_removed = made and work.folder.exists()
    before = report_path.read_bytes() if made else b""
    kept = shards if made else _intact(work)
    begun = (work.folder / "plan.json").exists()
    # what had not begun cannot be resumed: the old product is that of the request
    again = start([*asked, "--resume"] if made or begun or old is None else asked, folder)
    again.join()
    assert again.exitcode == 0, (folder / "log").read_text()
    if made:  # nothing was left to do but to remove the work folder, at most
        assert report_path.read_bytes() == before
    else:
        assert json.loads(report_path.read_text())["tiles_resumed"] == kept
    assert not work.folder.exists()
    assert not list(folder.glob(".*"))
    return Outcome(signals, after_s, code, shards, kept, half_removed)


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
        try:
            outcome = kill_once(source, place, rng, longest_s, rng.choice((None, folder / "whole.tif")))
            assert (place / "out.tif").read_bytes() == expected
            assert outcome.shards - outcome.kept <= UNTOLD * len(os.sched_getaffinity(0)), outcome
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, run {number}: {error}") from error
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
    late = sum(o.half_removed for o in outcomes)
    sys.stdout.write(
        f"seed {asked.seed}: {len(outcomes)} runs, all with the bytes of the undisturbed one\n"
        f"exit codes {codes}; shards made again: at most {max(redone)}, {sum(redone)} in all\n"
        f"killed between the end of the work and that of the work folder: {late}\n"
    )


if __name__ == "__main__":
    main()
