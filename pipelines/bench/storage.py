"""Bytes on the disk: the same whoever writes them, whole after a kill, quickly written."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from pipelines.bench import scenes
from pipelines.bench.child import Child, compared, cpu_ratio, numbers, once, wall_ratio
from pipelines.bench.goals import Asked, Row
from pipelines.planning import Plan
from pipelines.store import Ledger, Store

CASES = "pipelines.bench.cases:"

IN_FLIGHT = 3
"""Tiles between reader and ledger: read, computed, written."""

WAYS = ("in order", "backwards", "2 workers", "2 torch threads")


def same_bytes(asked: Asked, folder: Path) -> list[Row]:
    """One run carried out in many ways."""
    work = scenes.prepared(scenes.scene(asked.pick(256, 512)), folder / "run", tile=(256, 256))
    digests = {}
    for way in WAYS:
        once(f"{CASES}tiles_in", str(work), way)
        digests[way] = _digest(work)
    with Child(f"{CASES}tiles_in", str(work), "in order") as child:
        child.begin()
        _wait_for(work, 2)
        child.kill()
    once(f"{CASES}tiles_in", str(work), "backwards")
    digests["killed and resumed"] = _digest(work)
    if not asked.quick:
        once(f"{CASES}on_dask", str(work), 2)
        digests["2 processes of dask"] = _digest(work)
    what = f"digests of one run made {', '.join(digests)}"
    return [
        Row(what=what, value=len(set(digests.values())), most=1, unit="digests", raw=digests),
        Row(
            what="digests over tile sizes",
            why="not promised of the product: another tile size changes rounding; of the network alone see seams",
        ),
    ]


def _digest(work: Path) -> str:
    """Of all shards; they are removed, so that the next way makes them again."""
    told = once(f"{CASES}digest", str(work)).told
    _forget(work)
    return f"{told['tiles']} tiles {told['digest']}"


def _forget(work: Path) -> None:
    shutil.rmtree(work / "ledger", ignore_errors=True)
    shutil.rmtree(work / "fine.zarr" / "samples" / "c", ignore_errors=True)


def _wait_for(work: Path, tiles: int) -> None:
    """Until so many tiles are recorded."""
    run = Plan.from_json(Store(work).read_json("plan.json") or {}).run_hash
    ended = time.monotonic() + 60
    while len(Ledger(Store(work), run).records()) < tiles and time.monotonic() < ended:
        time.sleep(0.01)


def resume(asked: Asked, folder: Path) -> list[Row]:
    """Kills at seeded random times, each resumed by the next."""
    kills, rng = asked.pick(5, 100), random.Random(11)
    work = scenes.prepared(scenes.scene(1024), folder / "run", model="floor", tile=(256, 256))
    store, log = Store(work), folder / "begun"
    made = Plan.from_json(store.read_json("plan.json") or {})
    cover = made.cover(made.card)
    ledger = Ledger(store, made.run_hash)
    redone: list[int] = []
    torn = done = 0
    while len(redone) < kills:
        log.unlink(missing_ok=True)
        before = set(ledger.records())
        if len(before) == len(cover):
            _forget(work)
            done += 1
            continue
        with Child(f"{CASES}tiles_in", str(work), "in order", str(log)) as child:
            child.begin()
            time.sleep(rng.uniform(0.02, 0.4))
            child.kill()
        recorded = ledger.records()
        torn += len(ledger.missing(sorted(recorded), cover.position))
        begun = {int(line) for line in log.read_text().split()} if log.exists() else set()
        redone.append(len(begun - set(recorded)))
    raw = {"redone": redone, "runs_completed": done, "tiles": len(cover)}
    return [
        Row(
            what=f"tiles begun and lost, most of {kills} kills",
            value=max(redone),
            most=IN_FLIGHT,
            unit="tiles",
            raw=raw,
        ),
        Row(what=f"torn shards taken as done in {kills} kills", value=torn, most=0, unit="shards"),
    ]


def store(asked: Asked, folder: Path) -> list[Row]:
    """Our shard encoder, fsync included, against zarr's own pipeline."""
    rows = []
    for dtype in ("uint16", "float32"):
        tasks = {name: (f"{CASES}shard_writer", str(folder / name), dtype, name == "own") for name in ("own", "zarr")}
        runs = compared(tasks, asked.pick(3, 8))
        what = f"write rate, own encoder with fsync / zarr's pipeline, lz4 bitshuffle, {dtype}, cpu"
        wall = f"on the clock {wall_ratio(runs, 'zarr', 'own'):.2f}"
        rows.append(Row(what=what, value=cpu_ratio(runs, "zarr", "own"), least=1.8, why=wall, raw=numbers(runs)))
        if dtype == "uint16":
            rate = runs["own"][0].told["mb"] / min(run.cpu_s for run in runs["own"])
            rows.append(Row(what="write rate, own encoder, uint16, per core", value=rate, least=300, unit="MB/s"))
    return rows


def ledger(asked: Asked, folder: Path) -> list[Row]:
    """What a record costs beside a tile of the default size."""
    work = scenes.prepared(scenes.scene(asked.pick(256, 512), asked.pick(1, 4)), folder)
    count = asked.pick(100, 400)
    tasks = {"tile": (f"{CASES}engine", str(work)), "ledger": (f"{CASES}ledger_lines", str(folder), count)}
    runs = compared(tasks, asked.pick(1, 2))
    value = 100 * wall_ratio(runs, "ledger", "tile") / count
    what = f"a record with fsync / one tile of {asked.pick(1, 4)} bands, on the clock"
    return [Row(what=what, value=value, most=0.1, unit="%", raw=numbers(runs))]
