"""One product, whoever makes it: workers, executors and the order of the tiles change no sample."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import formats, runner
from pipelines.engine import cluster
from pipelines.grid import Box
from pipelines.job import Job
from pipelines.planning import Plan
from pipelines.report import Stopwatch
from pipelines.request import Request
from pipelines.stages import crew_of, make_tiles, never, product_of, quiet
from pipelines.store import Ledger, Store
from tests.pipelines.files import smooth, write_raster

SIDE = 256
"""Fine samples of a tile."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder of sixteen tiles, of which none is made: two bands with a hole."""
    folder = tmp_path_factory.mktemp("one_hash")
    data = np.stack([smooth((420, 400)), smooth((420, 400))[:, ::-1]]).astype(np.uint16)
    data[:, 200:220, 100:180] = 0
    image = write_raster(folder / "image.tif", data, nodata=0)
    store = Store(runner.prepare(Job(str(image), str(folder / "o.tif"), Request(model="floor", noise=3.0))))
    made = replace(Plan.from_json(store.read_json("plan.json") or {}), shard=(SIDE, SIDE), threads=1)
    store.write_json("plan.json", made.to_json())
    store.write_json("calibration.json", {**(store.read_json("calibration.json") or {}), "run": made.run_hash})
    store.create_fine((2, *made.fine.shape), (SIDE, SIDE), made.shard, made.working)
    assert made.tile_count == 16
    return store.folder


def digest(store: Store, made: Plan, folder: Path) -> str:
    """SHA-256 of all samples of the product."""
    assert Ledger(store, made.run_hash).missing(range(made.tile_count), made.cover(made.card).position) == []
    with formats.open_source(folder / "image.tif") as source:
        samples = product_of(store, source.header, made).read(Box.whole(made.product.shape))
    return hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()


def by_threads(store: Store, made: Plan, workers: int, order: Sequence[int]) -> None:
    with crew_of(store, made, Stopwatch()) as nobody:
        make_tiles(store, replace(made, threads=workers), nobody, order, "worker", Stopwatch(), quiet, never)


def by_dask(store: Store, made: Plan, workers: int, order: Sequence[int]) -> None:
    with (
        cluster.client(None, workers) as client,
        crew_of(store, made, Stopwatch(), cluster=client.scheduler.address) as crew,
    ):
        make_tiles(store, made, crew, order, "worker", Stopwatch(), quiet, never)


def by_parts(store: Store, made: Plan, workers: int, order: Sequence[int]) -> None:
    parts = sorted(range(workers), key=lambda part: order[part])
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda part: runner.run_part(store.folder, part + 1, workers), parts)
        assert sum(done) == made.tile_count


def copied(prepared: Path, folder: Path) -> tuple[Store, Plan]:
    """A work folder of its own, with its plan."""
    store = Store(shutil.copytree(prepared, folder / prepared.name))
    return store, Plan.from_json(store.read_json("plan.json") or {})


@pytest.fixture(scope="module")
def in_order(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of one thread that makes the tiles in turn."""
    store, made = copied(prepared, tmp_path_factory.mktemp("in_order"))
    by_threads(store, made, 1, range(made.tile_count))
    return digest(store, made, prepared.parent)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("make", [by_threads, by_dask, by_parts])
def test_the_product_has_one_hash(
    prepared: Path, in_order: str, tmp_path: Path, make: Callable[[Store, Plan, int, Sequence[int]], None], workers: int
) -> None:
    store, made = copied(prepared, tmp_path)
    order = random.Random(f"{make.__name__} {workers}").sample(range(made.tile_count), made.tile_count)
    make(store, made, workers, order)
    assert len(list((store.folder / "ledger").iterdir())) == workers
    assert digest(store, made, prepared.parent) == in_order


def test_one_sample_makes_another_hash(prepared: Path, in_order: str, tmp_path: Path) -> None:
    store, made = copied(prepared, tmp_path)
    coarse = store.array(store.coarse)
    coarse[0, 7, 7] = np.asarray(coarse[0, 7, 7]) + 1
    by_threads(store, made, 2, range(made.tile_count))
    assert digest(store, made, prepared.parent) != in_order
