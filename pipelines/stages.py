"""The stages of a run in a work folder: ingest, calibrate, tiles, export, verify, report."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipelines import guiding, heap
from pipelines.calibration import calibrate
from pipelines.engine import local
from pipelines.engine.crew import Crew
from pipelines.errors import InputError, StoppedError, TileError
from pipelines.filling import fill_invalid
from pipelines.flow import TileWork, run_tiles
from pipelines.grid import Box
from pipelines.image import Header, Source, TurnedSource
from pipelines.likeness import contradicts
from pipelines.planning import Calibration, Plan
from pipelines.product import StoredProduct, field_of_view
from pipelines.projection import Residual
from pipelines.report import Stopwatch, peak_bytes
from pipelines.sizing import CHUNK
from pipelines.spreading import SpreadSource
from pipelines.store import Ledger, Record, Store
from pipelines.worker import Worker
from pipelines.workspace import disk_failed
from pipelines.zarr_image import Statistics, ZarrImage, doubts, write_image

ERROR_NAME = "standard deviation"

LARGEST = 1e15
"""Samples beyond this are a fault of the file."""


Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) often; must be quick and thread-safe.

('waiting', 0, 0): a cluster has had no workers for some seconds; the run goes on once they come.
"""


def quiet(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def never() -> bool:
    """Nobody stops."""
    return False


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def product_header(header: Header, made: Plan) -> Header:
    """Header of the product, along the input's axes."""
    header = header.of_kind(made.kind)
    if made.card.estimates == "error":
        channels = (replace(c, name=f"{c.name} {ERROR_NAME}".strip(), kind="image") for c in header.channels)
        header = replace(header, channels=tuple(channels), facts={})
    return replace(
        header,
        dtype=made.dtype,
        grid=made.fine,  # along the input's axes
        problems=(),
        file_affine=(),
        file_world="",
        may_have_invalid=header.may_have_invalid or not _same_field(made),
    )


def product_of(store: Store, header: Header, made: Plan) -> Source:
    """The finished samples of a work folder, along the product's axes."""
    stored = StoredProduct(store, product_header(header, made), made)
    return TurnedSource(stored, made.orientation) if made.orientation.turns else stored


def _same_field(made: Plan) -> bool:
    """Whether every fine sample lies inside the input's field of view (not so with some references)."""
    for place in made.places:
        first, last = place.coordinates(0, 1)[0], place.coordinates(place.fine - 1, place.fine)[0]
        low, high = field_of_view(place)
        if first <= low or last >= high:
            return False
    return True


def crew_of(store: Store, made: Plan, watch: Stopwatch, progress: Progress = quiet, cluster: str | None = None) -> Crew:
    """Who works for a run beside this process: its workers, here or where `cluster` says."""
    return Crew(
        cluster,
        made.workers,
        stop=store.stop,
        ask=peak_bytes,
        told=watch.others,
        on_wait=lambda: progress("waiting", 0, 0),
    )


def run(
    store: Store,
    opened: Source,
    made: Plan,
    crew: Crew,
    *,
    watch: Stopwatch,
    progress: Progress = quiet,
    stopped: Callable[[], bool] = never,
) -> tuple[int, dict[int, Record]]:
    """Ingest, calibrate and make all tiles in a prepared work folder: (tiles found done, records of all).

    What an earlier run of the same plan has done is kept.
    """
    ready(store, opened, made, crew, watch, progress, stopped)
    done = make_tiles(store, made, crew, range(made.tile_count), "worker", watch, progress, stopped)
    lost = Ledger(store, made.run_hash).missing(range(made.tile_count), made.cover(made.card).position)
    if lost:  # a process of an earlier run, cut off from it, may still have been writing
        raise TileError(
            what=f"{len(lost)} of {made.tile_count} tiles are not what the ledger says, the first is tile {lost[0]}",
            why="something else has written into the work folder",
            fix="end it, then run again with --resume",
        )
    records = Ledger(store, made.run_hash).records()
    for stage in ("read", "network", "projection", "write"):  # of all tiles, those of earlier sessions too
        watch.add(stage, sum(record.seconds.get(stage, 0.0) for record in records.values()))
    return done, records


def ready(
    store: Store,
    opened: Source,
    made: Plan,
    crew: Crew,
    watch: Stopwatch,
    progress: Progress,
    stopped: Callable[[], bool],
) -> None:
    """Ingest and calibrate, unless it is done."""
    try:
        with watch.stage("read"):
            _ingest(store, opened, made, crew, progress, stopped)
        with watch.stage("calibrate"):
            _calibrate(store, made, stopped)
        heap.trim()
    except OSError as error:
        raise disk_failed("the work folder", error) from error


def _ingest(
    store: Store, opened: Source, made: Plan, crew: Crew, progress: Progress, stopped: Callable[[], bool]
) -> None:
    """Begun again unless it was whole: `ingest.json` comes last."""
    if (store.read_json("ingest.json") or {}).get("identity") == made.identity:
        return
    shutil.rmtree(store.coarse, ignore_errors=True)

    def check(*_: int) -> None:
        if stopped():
            raise StoppedError(what="stopped while reading", fix="the same call with --resume goes on")

    def on_read(done: int, total: int) -> None:
        progress("read", done, total)
        check()

    found = write_image(SpreadSource(opened, on_read, crew, store, made.run_hash), opened.header, store.coarse)
    if opened.identity != made.identity:
        raise InputError(
            what="the input has changed while it was read",
            why="its product would mix two measurements",
            fix="run again once nothing writes to it",
        )
    _refuse_empty(found, made)
    if opened.header.may_have_invalid:
        with ZarrImage(store.coarse) as image:
            fill_invalid(store.folder, SpreadSource(image, check, crew, store, made.run_hash))
    store.write_json("ingest.json", {"identity": made.identity, "doubts": doubts(opened.header, found)})


def _refuse_empty(found: Statistics, made: Plan) -> None:
    """Raise InputError if no channel holds an image: nothing valid, or one value everywhere."""
    images = [c for c, channel in enumerate(made.channels) if channel.treatment != "nearest"] or [0]
    if not any(found.valid[c] for c in images):
        raise InputError(what="the input has no valid sample", fix="check --nodata and the file")
    extremes = [abs(v) for c in images for v in (found.minimum[c], found.maximum[c]) if v is not None]
    if max(extremes, default=0.0) > LARGEST:
        raise InputError(
            what=f"the samples reach {max(extremes):.3g}",
            why=f"beyond {LARGEST:g} their squares are no numbers",
            fix="check the file (--nodata, for a raster), or scale the samples",
        )
    if made.model != "nearest" and all(found.minimum[c] == found.maximum[c] for c in images):
        raise InputError(
            what=f"every valid sample of the input is {found.minimum[images[0]]:g}",
            why="a constant image has nothing to refine",
            fix="check the file, or use --model nearest",
        )


def _calibrate(store: Store, made: Plan, stopped: Callable[[], bool]) -> None:
    if (store.read_json("calibration.json") or {}).get("run") != made.run_hash:
        samples = store.array(store.coarse)
        mask = store.array(store.coarse, "valid") if store.has_mask() else None

        def read(box: Box) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
            if stopped():
                raise StoppedError(what="stopped while calibrating", fix="the same call with --resume goes on")
            index = (slice(None), *box.slices)
            values = np.asarray(samples[index])
            return values, np.ones(values.shape, bool) if mask is None else np.asarray(mask[index], bool)

        found = calibrate(made, read)
        if made.guide is not None:
            found = replace(found, guide=guiding.related(made, found, lambda box: read(box)[0], store))
        shutil.rmtree(store.fine, ignore_errors=True)
        if made.strict and made.card.contradiction:
            found = _without_contradiction(store, made, found)
        store.write_json("calibration.json", {"run": made.run_hash, **found.to_json()})
    _create_fine(store, made)


def _create_fine(store: Store, made: Plan) -> None:
    if not (store.fine / "samples" / "zarr.json").exists():
        chunk = CHUNK[made.fine.ndim]
        store.create_fine((len(made.channels), *made.fine.shape), (chunk,) * made.fine.ndim, made.shard, made.working)


def _without_contradiction(store: Store, made: Plan, found: Calibration) -> Calibration:
    """The network left out of channels whose estimate it makes contradict the input, tried on the middle tile."""
    store.write_json("calibration.json", {"run": "", **found.to_json()})  # not yet that of the run
    _create_fine(store, made)
    worker = Worker(store.folder, device=made.device, threads=_threads(made))
    tile = worker.cover[len(worker.cover) // 2]
    _, record = worker.compute(tile, worker.read(tile))
    channels = []
    for own, before in zip(found.channels, record.before, strict=True):
        rms = Residual(*before).rms
        odd = own.refined and contradicts(rms, own.noise_sigma, own.scale, made.card.contradiction)
        channels.append(replace(own, refined=own.refined and not odd, contradicts=odd))
    return replace(found, channels=tuple(channels))


def make_tiles(
    store: Store,
    made: Plan,
    crew: Crew,
    wanted: Sequence[int],
    writer: str,
    watch: Stopwatch,
    progress: Progress,
    stopped: Callable[[], bool],
) -> int:
    """Make the tiles asked for that are not done yet. Returns how many were done before."""
    todo = Ledger(store, made.run_hash).missing(wanted, made.cover(made.card).position)
    before = len(wanted) - len(todo)
    score = _Score(before, len(wanted), progress)
    store.stop.unlink(missing_ok=True)
    if todo and not crew.alone:
        work = TileWork(str(store.folder.absolute()), made.run_hash, made.device, _threads(made))
        with watch.stage("cluster"):
            crew.do(work.load, todo, on_done=score.add_all, stopped=stopped)
    elif todo:
        with watch.stage("load"):
            worker = Worker(store.folder, device=made.device, threads=_threads(made))
            worker.predictor  # noqa: B018 - loaded here, once, before several threads ask for it

        def share(tiles: Sequence[int], number: int) -> None:
            run_tiles(worker, tiles, writer=f"{writer}-{number}", on_done=score.add, stopped=stopped)

        local.run(share, todo, made.threads)
    score.judge(stopped())
    return before


class _Score:
    """The tiles that are done and those that have failed; thread-safe."""

    def __init__(self, done: int, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = done, total, progress
        self._failures: list[Record] = []
        self._counting = threading.Lock()
        progress("tiles", done, total)

    def add(self, record: Record) -> None:
        """Count a tile that has ended."""
        if record.error:
            self._failures.append(record)
            return
        with self._counting:
            self._done += 1
        self._progress("tiles", self._done, self._total)

    def add_all(self, records: Sequence[Record]) -> None:
        """The same for a group."""
        for record in records:
            self.add(record)

    def judge(self, stopped: bool) -> None:
        """Raise StoppedError or TileError unless all are done."""
        if stopped:
            raise StoppedError(
                what=f"stopped with {self._done} of {self._total} tiles done",
                fix="the same call with --resume goes on",
            )
        if self._failures:
            count, first = len(self._failures), min(self._failures, key=lambda r: r.tile)
            raise TileError(
                what=f"{count} of {self._total} tiles failed, the first is tile {first.tile}: {first.error}",
                fix="mend the cause and run again with --resume",
            )


def _threads(made: Plan) -> int:
    """Threads of a network per worker: the idle cores, shared out.

    Threads that wait at every barrier for a core that something else holds are slower than one thread. Their number
    changes no byte.
    """
    idle = cores() - (os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)
    return max(1, round(idle) // made.workers)
