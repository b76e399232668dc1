"""What the processes of the engine's own benches repeat: see `child.Child`."""

from __future__ import annotations

import gc
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import runner, shards
from pipelines.bench import scenes
from pipelines.bench.child import Work, memory_bytes
from pipelines.bench.nets import CONDITION, Doubler, WholeNet, shipped, whole_volume
from pipelines.decisions import threads_for
from pipelines.engine import cluster, local
from pipelines.flow import TileWork, run_tiles
from pipelines.grid import Box
from pipelines.networks import Condition, load
from pipelines.networks.certificate import certify
from pipelines.networks.predictor import LatticePredictor
from pipelines.planning import Plan, cover
from pipelines.request import Request
from pipelines.stages import cores
from pipelines.store import Ledger, Record, Store, create_array
from pipelines.tiles import Tile
from pipelines.worker import Worker

SHARDS = 4
"""Shards written at a time: one is over in 30 ms."""


def never() -> bool:
    """Nothing stops a case."""
    return False


def engine(folder: str, device: str = "cpu") -> Work:
    """All tiles of a prepared work folder, from zarr to zarr: what `upscale` does between calibration and export."""
    worker = Worker(Path(folder), device=device, threads=1)
    threads = threads_for(device, worker.card, cores())
    worker.predictor  # noqa: B018 - loaded before the clock starts

    def work() -> dict[str, Any]:
        shutil.rmtree(worker.store.folder / "ledger", ignore_errors=True)
        records: list[Record] = []

        def share(tiles: Sequence[int], number: int) -> None:
            run_tiles(worker, tiles, writer=f"bench-{number}", on_done=records.append, stopped=never)

        local.run(share, range(len(worker.cover)), threads)
        failed = [record.error for record in records if record.error]
        if failed:
            raise RuntimeError(failed[0])
        stages = {stage for record in records for stage in record.seconds}
        return {stage: sum(record.seconds.get(stage, 0.0) for record in records) for stage in sorted(stages)}

    return work


def normal(folder: str) -> NDArray[np.float32]:
    """The coarse samples of a work folder as a network sees them."""
    store = Store(Path(folder))
    samples = np.asarray(store.array(store.coarse)[:])
    return np.asarray((samples - scenes.CENTRE) / scenes.SPREAD, np.float32)


def bare_image(folder: str) -> Work:
    """The network once over the whole image in memory, band by band."""
    samples, net = torch.from_numpy(normal(folder)), Doubler().eval()

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            for band in samples:
                net(band[None, None])
        return {}

    return work


def bare_volume(folder: str, scale: int = 4) -> Work:
    """The network once over the whole volume in memory, both views."""
    volume, net = normal(folder)[0], WholeNet("lattice-mri", scale).eval()

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            whole_volume(net, volume)
        return {}

    return work


def tile_512(side: int = 512) -> Work:
    """The network on one tile, as often as a large image has it."""
    x, net = torch.zeros(1, 1, side, side), Doubler().eval()

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            net(x)
        return {}

    return work


def _told(channels: int) -> Condition:
    return Condition(CONDITION.blur_fwhm_coarse * channels, CONDITION.noise_over_scale * channels)


def seams(folder: str, tiles: Sequence[Sequence[int]]) -> Work:
    """The network over the tiles of several sizes against one run over the whole: samples that differ."""
    made = Plan.from_json(Store(Path(folder)).read_json("plan.json") or {})
    samples, predictor = normal(folder), load(made.card, threads=1)

    def residual(tile: Tile) -> NDArray[np.float32]:
        low = [max(0, -a) for a in tile.read.start]
        high = [max(0, b - n) for b, n in zip(tile.read.stop, made.coarse.shape, strict=True)]
        inside = Box(tile.read.start, tile.read.stop).clip(made.coarse.shape)
        part = samples[(slice(None), *inside.slices)]
        part = np.pad(part, ((0, 0), *zip(low, high, strict=True)), mode="reflect")
        return predictor.residual(part, tile.read, tile.write, made.places, _told(len(samples)))

    def work() -> dict[str, Any]:
        (only,) = cover(made, made.card, made.fine.shape)
        whole = residual(only)
        differ: dict[str, int] = {}
        for side in tiles:
            parts = cover(made, made.card, side)
            count = sum(np.count_nonzero(residual(tile) != whole[(slice(None), *tile.write.slices)]) for tile in parts)
            differ["x".join(map(str, side))] = int(count)
        told: dict[str, Any] = {"differ": differ}
        with torch.inference_mode():
            if made.fine.ndim == 2:
                plain = Doubler()(torch.from_numpy(samples)[None])[0].numpy()
            else:
                plain = whole_volume(WholeNet("lattice-mri", int(made.places[0].scale)), samples[0])[None]
        return told | {"from_plain": float(np.abs(plain - whole).max() / np.ptp(whole))}

    return work


def recompute(tile: int) -> Work:
    """Multiplications of the network for an interior tile of `tile` fine samples a side, beyond those of its samples.

    share: with all that the tile's projection sees; own: for the tile's own samples, the network's halo alone.
    """
    from torch.utils.flop_counter import FlopCounterMode

    source = scenes.Unread(scenes.scene_header((4 * tile, 4 * tile)))
    made = runner.plan(source, Request(scale=2, model="lattice-geo", device="cpu"))
    parts = cover(made, made.card, (tile, tile))
    middle = parts[len(parts) // 2 + parts.shape[1] // 2]
    samples = np.zeros((1, *middle.read.shape), np.float32)
    predictor = load(made.card, threads=1)
    _, net = shipped("lattice-geo")
    needed = sum(2 * p.numel() for p in net.parameters() if p.ndim == 4) * (tile / 2) ** 2

    def work() -> dict[str, Any]:
        told = {}
        for name, box in (("share", middle.estimate), ("own", middle.write)):
            with FlopCounterMode(display=False) as counter:
                predictor.residual(samples, middle.read, box, made.places, _told(1))
            told[name] = counter.get_total_flops() / needed - 1
        return told

    return work


def certifying(name: str) -> Work:
    """Certification of a shipped network, each time anew."""
    card, net = shipped(name)
    predictor = LatticePredictor(net, batch_samples=1)
    count = iter(range(1000))

    def work() -> dict[str, Any]:
        certify(predictor, replace(card, version=f"bench {next(count)}"))  # a card is certified once a process
        return {}

    return work


def digest(folder: str) -> Work:
    """The checksums of all shards of a work folder, as one."""
    store = Store(Path(folder))
    made = Plan.from_json(store.read_json("plan.json") or {})

    def work() -> dict[str, Any]:
        records = Ledger(store, made.run_hash).records()
        text = " ".join(f"{n}:{records[n].checksum:08x}" for n in sorted(records))
        return {"tiles": len(records), "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}

    return work


class Begun(Sequence[int]):
    """Tiles that are noted in a file as they are begun."""

    def __init__(self, tiles: Sequence[int], log: Path) -> None:
        self._tiles, self._log = tiles, log

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: Any) -> Any:
        return self._tiles[index]

    def __iter__(self) -> Iterator[int]:
        with self._log.open("a", buffering=1) as log:
            for tile in self._tiles:
                log.write(f"{tile}\n")
                yield tile


def tiles_in(folder: str, way: str, log: str = "") -> Work:
    """The missing tiles of a work folder, made in some way: the bytes must not know it."""
    worker = Worker(Path(folder), threads=2 if way == "2 torch threads" else 1)
    worker.predictor  # noqa: B018 - loaded before the clock starts
    ledger = Ledger(worker.store, worker.plan.run_hash)

    def share(tiles: Sequence[int], number: int) -> None:
        run_tiles(worker, tiles, writer=f"{way}-{number}".replace(" ", "-"), on_done=raise_error, stopped=never)

    def work() -> dict[str, Any]:
        todo: Sequence[int] = ledger.missing(range(len(worker.cover)), worker.cover.position)
        if way == "backwards":
            todo = todo[::-1]
        if log:
            todo = Begun(todo, Path(log))
        local.run(share, todo, 2) if way == "2 workers" else share(todo, 0)
        return {}

    return work


def raise_error(record: Record) -> None:
    """A tile that failed ends the case."""
    if record.error:
        raise RuntimeError(record.error)


def trivial_on_dask(items: int, group: int) -> Work:
    """Items that cost nothing, in groups, through the engine's dask executor: what it costs itself."""

    def work() -> dict[str, Any]:
        started = time.perf_counter()
        with cluster.client(None, 2) as client:
            ready = time.perf_counter() - started
            cluster.run(client, len, range(20 * group), on_done=lambda _: None, stopped=never, most=group)
            resident, cpu = memory_bytes("self", "VmRSS"), time.process_time()
            counted: list[int] = []
            cluster.run(client, len, range(items), on_done=counted.append, stopped=never, most=group)
            cpu = time.process_time() - cpu
            grown = memory_bytes("self", "VmRSS") - resident
        gc.collect()  # the cluster's queues, before the process ends without finalizers
        assert sum(counted) == items
        return {"ready_s": ready, "cpu_ms_per_item": 1e3 * cpu / items, "grown_mb": grown / 1e6}

    return work


def on_dask(folder: str, workers: int) -> Work:
    """The missing tiles of a work folder in processes of a dask cluster."""
    worker = Worker(Path(folder), threads=1)
    ledger = Ledger(worker.store, worker.plan.run_hash)

    def work() -> dict[str, Any]:
        todo = ledger.missing(range(len(worker.cover)), worker.cover.position)
        tile_work = TileWork(folder, worker.plan.run_hash, "cpu", 1)
        with cluster.client(None, workers) as client, cluster.loaded(client, tile_work.load) as make:
            cluster.run(client, make, todo, on_done=lambda _: None, stopped=never, most=2)
        gc.collect()  # as above
        return {}

    return work


def shard_writer(folder: str, dtype: str, own: bool, side: int = 1024) -> Work:
    """One shard of four bands written whole, by our encoder (with fsync) or by zarr (without)."""
    rng = np.random.default_rng(0)
    steps = rng.normal(scale=9, size=(4, side, side)).cumsum(axis=2)
    values = np.clip(3000 + steps, 0, 65535).astype(np.uint16).astype(dtype)
    store = Store(Path(folder))
    array = create_array(store.fine, "samples", values.shape, dtype, (1, 256, 256), values.shape)
    assert array.shards is not None
    chunks, shard = array.chunks, array.shards

    def work() -> dict[str, Any]:
        for _ in range(SHARDS):
            if own:
                shards.write(store.shard_path((0, 0)), shards.encode(values, chunks, shard))
            else:
                array[:] = values
        return {"mb": SHARDS * values.nbytes / 1e6}

    return work


def ledger_lines(folder: str, count: int) -> Work:
    """Records of finished tiles, each on the disk before the next."""
    store = Store(Path(folder) / "ledger-bench")
    store.folder.mkdir()
    ledger = Ledger(store, "run")
    record = Record(1, "run", 123456789, {"read": 0.1, "network": 1.0}, ((1.0, 2, 3.0),) * 4)

    def work() -> dict[str, Any]:
        for _ in range(count):
            ledger.append("bench", record)
        return {"count": count}

    return work
