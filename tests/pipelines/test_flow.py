"""Readers, arithmetic and writers of one process: their counts change no byte, their queues are bounded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import flow, runner
from pipelines.errors import StoreError, UsageError
from pipelines.flow import TileWork, run_tiles
from pipelines.image import ArraySource
from pipelines.planning import Plan
from pipelines.report import Stopwatch
from pipelines.request import Request
from pipelines.sizing import process_bytes, staffed
from pipelines.store import Ledger, Record, Store
from pipelines.tiles import Tile
from pipelines.worker import Window, Worker
from tests.pipelines.files import Run
from tests.pipelines.test_runner import _scene, raster

SHAPE = (300, 260)


def planned(**asked: int) -> Plan:
    source = ArraySource(_scene(SHAPE), raster(SHAPE))
    plan = runner.plan(source, Request(scale=2, model="floor", noise=0, **asked))  # type: ignore[arg-type]
    return replace(plan, shard=(256, 256), threads=1)


@pytest.fixture
def worker_of(tmp_path: Path) -> Callable[..., Worker]:
    """A worker of a folder whose tiles are still to be made, with so many readers and writers."""

    def make(**asked: int) -> Worker:
        plan, source = planned(**asked), ArraySource(_scene(SHAPE), raster(SHAPE))
        store = Store(tmp_path / "-".join(map(str, asked.values())))
        store.write_json("plan.json", plan.to_json())
        with runner.crew_of(store, plan, Stopwatch()) as nobody:
            runner.ready(store, source, plan, nobody, Stopwatch(), lambda *_: None, lambda: False)
        return Worker(store.folder)

    return make


def make_all(worker: Worker) -> list[Record]:
    done: list[Record] = []
    run_tiles(worker, range(len(worker.cover)), writer="w", on_done=done.append, stopped=lambda: False)
    return done


def test_any_number_of_readers_and_writers_makes_the_same_bytes(worker_of: Callable[..., Worker]) -> None:
    digests = set()
    for readers, writers in ((1, 1), (3, 1), (1, 4), (3, 4)):
        worker = worker_of(readers=readers, writers=writers)
        make_all(worker)
        records = Ledger(worker.store, worker.plan.run_hash).records()
        assert len(records) == len(worker.cover) == 9
        assert len(list((worker.store.folder / "ledger").iterdir())) <= writers
        digests.add((worker.plan.run_hash, tuple(records[t].checksum for t in sorted(records))))
    assert len(digests) == 1


@pytest.mark.parametrize(("stage", "asked"), [("read", {"readers": 2}), ("write", {"writers": 2})])
def test_as_many_read_and_write_at_once_as_were_asked_for(
    worker_of: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, stage: str, asked: dict[str, int]
) -> None:
    worker, both, real = worker_of(**asked), threading.Barrier(2), getattr(Worker, stage)
    met: list[int] = []

    def meeting(*arguments: object) -> object:
        if not met:
            met.append(both.wait(timeout=20))  # breaks, and the tile fails, if nobody else comes
        return real(*arguments)

    monkeypatch.setattr(Worker, stage, meeting)
    assert [record.error for record in make_all(worker)] == [""] * 9
    if stage == "write":
        assert len(list((worker.store.folder / "ledger").iterdir())) == 2


def test_what_waits_for_slow_writers_is_bounded(
    worker_of: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, go = worker_of(readers=2, writers=2), threading.Event()
    begun: dict[str, list[int]] = {"read": [], "compute": []}
    for stage, seen in begun.items():
        real = getattr(Worker, stage)

        def noting(self: Worker, tile: object, *rest: object, real: object = real, seen: list[int] = seen) -> object:
            seen.append(tile.index)  # type: ignore[attr-defined]
            return real(self, tile, *rest)  # type: ignore[operator]

        monkeypatch.setattr(Worker, stage, noting)
    write = Worker.write

    def waiting(self: Worker, *arguments: object) -> object:
        go.wait(20)
        return write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "write", waiting)
    thread = threading.Thread(target=make_all, args=(worker,))
    thread.start()
    deadline = time.monotonic() + 20
    while (len(begun["compute"]), len(begun["read"])) != (3, 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # for more, if there were more
    assert len(begun["compute"]) == 2 + 1  # each writer's, and one that waits for a writer
    assert len(begun["read"]) == 3 + 2  # those, and one of each reader
    go.set()
    thread.join()
    assert len(begun["compute"]) == 9


def test_a_full_disk_under_one_of_several_writers_ends_the_work(
    worker_of: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(readers=2, writers=3)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.store.shards.write", full)
    with pytest.raises(StoreError, match="No space left"):
        make_all(worker)


def test_a_tile_that_cannot_be_read_is_reported_and_the_others_are_made(
    worker_of: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, real = worker_of(readers=3, writers=2), Worker.read

    def failing(self: Worker, tile: object) -> object:
        if tile.index == 4:  # type: ignore[attr-defined]
            raise ValueError("planted")
        return real(self, tile)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "read", failing)
    errors = {record.tile: record.error for record in make_all(worker)}
    assert errors == {**dict.fromkeys(range(9), ""), 4: "planted"}


def test_what_fails_while_a_stop_is_looked_for_ends_the_work(worker_of: Callable[..., Worker]) -> None:
    def damaged() -> bool:
        raise StoreError(what="planted")

    worker = worker_of(readers=2, writers=2)
    with pytest.raises(StoreError, match="planted"):
        run_tiles(worker, range(9), writer="w", on_done=lambda _: None, stopped=damaged)
    assert not Ledger(worker.store, worker.plan.run_hash).records()


def test_more_readers_and_writers_need_more_memory_and_never_choose_the_tile() -> None:
    plain, many = planned(), planned(readers=4, writers=8)
    assert (many.readers, many.writers, many.run_hash) == (4, 8, plain.run_hash)
    assert process_bytes(many, many.card, many.shard) > process_bytes(plain, plain.card, plain.shard)
    wide = runner.plan(ArraySource(np.zeros((1, 3000, 3000)), raster((3000, 3000))), Request(scale=2, model="floor"))
    wide = replace(wide, channels=12 * wide.channels, readers=4, writers=8, threads=1)  # ingest and export need less
    enough = process_bytes(replace(wide, writers=3), wide.card, wide.shard)
    tight = staffed(replace(wide, memory_bytes=enough), wide.card, wide.shard)
    assert 1 < tight.writers < 8
    assert tight.predicted_bytes <= tight.memory_bytes
    assert any("of 8 writers fit" in warning for warning in tight.warnings)


def test_a_network_on_a_cuda_device_makes_several_tiles_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "has_cuda", lambda: True)
    monkeypatch.setattr(runner, "cores", lambda: 12)
    source = ArraySource(_scene((64, 60)), raster((64, 60)))

    def threads(model: str, memory: str = "16GB") -> tuple[str, int]:
        made = runner.on_device(runner.plan(source, Request(scale=2, model=model, memory=memory)))
        return made.device, made.threads

    assert threads("lattice-geo") == ("cuda", 6)
    assert threads("floor")[0] == "cpu"
    monkeypatch.setattr(runner, "has_cuda", lambda: False)
    assert threads("lattice-geo") == ("cpu", 1)


def test_a_precision_of_cuda_devices_is_refused_without_one(run: Run, scene: Path, tmp_path: Path) -> None:
    code, _, err = run("upscale", scene, tmp_path / "o.tif", "--model", "lattice-geo", "--precision", "tf32")
    assert code == 2
    assert "tf32" in err
    assert not (tmp_path / "o.tif").exists()


@pytest.mark.parametrize("option", ["--readers", "--writers"])
def test_none_to_read_or_write_is_refused(run: Run, scene: Path, tmp_path: Path, option: str) -> None:
    code, _, err = run("plan", scene, tmp_path / "o.tif", option, "0")
    assert code == 2
    assert f"0 {option[2:]} cannot work" in err


def test_a_step_that_hangs_is_named_once_and_the_run_goes_on(
    worker_of: Callable[..., Worker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(flow, "STUCK_S", 1.0)
    caplog.set_level(logging.DEBUG, logger="pipelines.flow")
    worker, real = worker_of(readers=2), Worker.read

    def hanging(self: Worker, tile: object) -> object:
        if tile.index == 5:  # type: ignore[attr-defined]
            time.sleep(1.6)
        return real(self, tile)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "read", hanging)
    assert [record.error for record in make_all(worker)] == [""] * 9
    told = [record.getMessage() for record in caplog.records if "no step" in record.getMessage()]
    assert len(told) == 1
    assert "reading tile 5." in told[0]
    assert "hanging" in capfd.readouterr().err  # where the thread stands


@pytest.mark.parametrize("step", ["read", "write"])
def test_a_disk_that_hangs_ends_the_run_and_what_is_done_stays(
    worker_of: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    worker, real, answers = worker_of(readers=2), getattr(Worker, step), threading.Event()

    def hanging(self: Worker, tile: Tile, *given: object) -> object:
        if tile.index == 5:
            answers.wait(60)
        return real(self, tile, *given)

    monkeypatch.setattr(Worker, step, hanging)
    monkeypatch.setattr(flow, "STUCK_S", 0.4)
    with pytest.raises(StoreError, match=r"ing tile 5 has not ended .* --resume"):
        make_all(worker)
    monkeypatch.undo()
    assert 0 in Ledger(worker.store, worker.plan.run_hash).records()
    answers.set()
    assert [record.error for record in make_all(worker)] == [""] * 9


def test_a_slow_network_is_waited_for(worker_of: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    real = Worker.compute

    def slow(self: Worker, tile: Tile, window: Window) -> object:
        if tile.index == 5:
            time.sleep(1.0)
        return real(self, tile, window)

    worker = worker_of(readers=1)
    monkeypatch.setattr(flow, "STUCK_S", 0.2)
    monkeypatch.setattr(Worker, "compute", slow)
    assert [record.error for record in make_all(worker)] == [""] * 9


def test_a_run_that_moves_is_left_in_peace(
    worker_of: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flow, "STUCK_S", 20.0)
    make_all(worker_of(readers=1))
    assert not caplog.records


def test_a_process_of_a_cluster_makes_as_many_tiles_at_a_time_as_planned(worker_of: Callable[..., Worker]) -> None:
    store, plan = (worker := worker_of(readers=1)).store, worker.plan
    store.write_json("plan.json", replace(plan, threads=3).to_json())
    made = TileWork(str(store.folder), plan.run_hash, "cpu", 1).load()(range(9))
    assert sorted(record.tile for record in made) == list(range(9))
    assert len(list((store.folder / "ledger").iterdir())) == 3  # one for each thread that writes


def test_a_process_with_other_libraries_makes_no_tile(worker_of: Callable[..., Worker]) -> None:
    store, plan = (worker := worker_of(readers=1)).store, worker.plan
    assert set(plan.libraries) == {"numpy", "scipy"}
    store.write_json("plan.json", replace(plan, libraries={**plan.libraries, "numpy": "1.0"}).to_json())
    with pytest.raises(UsageError, match=r"numpy .*, not 1\.0"):
        TileWork(str(store.folder), plan.run_hash, "cpu", 1).load()
