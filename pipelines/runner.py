"""The sequence of a run: open, plan, ingest, calibrate, tiles, export, verify, report. Nothing is decided here."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipelines import decisions, formats, heap
from pipelines.calibration import calibrate
from pipelines.engine import local
from pipelines.errors import InputError, StoppedError, StoreError, TileError, UsageError
from pipelines.filling import fill_invalid
from pipelines.grid import Box, Factor, Grid
from pipelines.image import ArraySource, Header, Source, Told, ToldKind, TurnedSource
from pipelines.job import Job
from pipelines.networks import has_cuda
from pipelines.planning import Calibration, Plan
from pipelines.product import StoredProduct, WatchedSource, field_of_view
from pipelines.report import RunReport, Stopwatch, read_report, report_path, summarise, write_report
from pipelines.request import Device, Request
from pipelines.sizing import CHUNK
from pipelines.store import Ledger, Record, Store
from pipelines.verification import Verification, verify
from pipelines.worker import TileWork, Worker, run_tiles
from pipelines.workspace import Paths, check_output, check_space, disk_failed, held, prepared, remove, tiles_lost
from pipelines.zarr_image import Statistics, ZarrImage, doubts, write_image

LARGEST = 1e15
"""Samples beyond this are a fault of the file."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) often; must be quick and thread-safe."""


def _quiet(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def _never() -> bool:
    return False


def one_blas_thread() -> threadpool_limits:
    """One thread a worker: the same sums whatever the machine, and no threads that wait for each other."""
    return threadpool_limits(1, user_api="blas")


def version() -> str:
    """The version of truescale."""
    return installed_version("truescale")


def plan(source: Source, request: Request, *, like: Grid | None = None, paths: Paths | None = None) -> Plan:
    """What would happen, without reading a pixel or writing a byte. like: of `formats.grid_of`."""
    if like is not None:
        like = like.joining(source.header.grid).anonymous()
    # a plan is kept and shown: nothing in it leads to a patient
    header = replace(source.header, grid=source.header.grid.anonymous()).of_kind(request.kind)
    made = decisions.resolve(header, source.identity, request, reference=like, cores=cores(), version=version())
    if paths is not None:
        header = _product_header(header, made).turned(made.orientation)
        formats.sink_for(paths.output).refuse(header, paths.output)
        made = replace(made, work=str(paths.work_folder), work_kept=paths.work is not None, output=str(paths.output))
        made = replace(made, overwrite=paths.overwrite)
    return made


def _product_header(header: Header, made: Plan) -> Header:
    return replace(
        header.of_kind(made.kind),
        grid=made.fine,  # along the input's axes
        problems=(),
        file_affine=(),
        file_world="",
        may_have_invalid=header.may_have_invalid or not _same_field(made),
    )


def _product(store: Store, header: Header, made: Plan) -> Source:
    """The finished samples of a work folder, along the product's axes."""
    stored = StoredProduct(store, _product_header(header, made), made)
    return TurnedSource(stored, made.orientation) if made.orientation.turns else stored


def _same_field(made: Plan) -> bool:
    """Whether every fine sample lies inside the input's field of view (not so with some references)."""
    for place in made.places:
        first, last = place.coordinates(0, 1)[0], place.coordinates(place.fine - 1, place.fine)[0]
        low, high = field_of_view(place)
        if first <= low or last >= high:
            return False
    return True


def upscale(
    source: str | Path | Source,
    output: str | Path,
    *,
    scale: str | float | None = None,
    spacing: str | float | None = None,
    like: str | Path | None = None,
    model: str | None = None,
    kind: ToldKind | None = None,
    slice_thickness: float | None = None,
    degradation: str | None = None,
    noise: str | float = "auto",
    consistency: bool = True,
    memory: str | int = "4GB",
    workers: int | None = None,
    device: Device = "auto",
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    work: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    cluster: str | None = None,
    progress: Progress = _quiet,
    stopped: Callable[[], bool] = _never,
    on_plan: Callable[[Plan], None] = lambda _plan: None,
) -> RunReport:
    """Super-resolve one image into a new file and report how well it explains its input.

    source: a path or an open Source; the rest as the options of the command line. Raises TruescaleError; on any error
    nothing half-written is left at `output`.
    """
    request = Request(
        scale=scale,
        spacing=spacing,
        model=model,
        kind=kind,
        slice_thickness=slice_thickness,
        degradation=degradation,
        noise=noise,
        consistency=consistency,
        memory=memory,
        workers=workers,
        device=device,
    )
    job = Job(
        str(source) if isinstance(source, (str, Path)) else "",
        str(output),
        request,
        like=str(like) if like else None,
        bands=_chosen(bands),
        nodata=nodata,
        work=str(work) if work else None,
        overwrite=overwrite,
        resume=resume,
    )
    opened = None if isinstance(source, (str, Path)) else source
    return carry_out(job, source=opened, cluster=cluster, progress=progress, stopped=stopped, on_plan=on_plan)


def planned(job: Job) -> Plan:
    """What a job would do, without reading a pixel or writing a byte."""
    with job.open() as opened:
        like = formats.grid_of(job.like) if job.like else None
        return plan(opened, job.request, like=like, paths=job.paths)


def kept(job: Job) -> RunReport | None:
    """The report of the product that this job would make, if both are there: then nothing is left to do."""
    output = Path(job.output)
    report = read_report(output) if output.exists() else None
    return report if report is not None and report.run_hash == planned(job).run_hash else None


def carry_out(
    job: Job,
    *,
    source: Source | None = None,
    cluster: str | None = None,
    progress: Progress = _quiet,
    stopped: Callable[[], bool] = _never,
    on_plan: Callable[[Plan], None] = lambda _plan: None,
) -> RunReport:
    """All of a job in one go. source: the open input, where it is no file; cluster: see `engine.cluster.client`."""
    watch = Stopwatch()
    if job.resume and source is None and not job.paths.work_folder.exists() and (done := kept(job)):
        return done  # nothing to go on with, and nothing left to do
    with _begun(job, source, watch, on_plan) as (store, opened, made):
        resumed, records = run(store, opened, made, watch=watch, progress=progress, stopped=stopped, cluster=cluster)
        return _finish(store, opened, made, job.paths, watch, progress, stopped, resumed, records)


def prepare(
    job: Job,
    *,
    progress: Progress = _quiet,
    stopped: Callable[[], bool] = _never,
    on_plan: Callable[[Plan], None] = lambda _plan: None,
) -> Path:
    """The first of three steps: a work folder that knows its job, with everything that its tiles need.

    `run_part` makes the tiles, on any machines that see the folder; `finish` writes the product.
    """
    with _begun(job, None, Stopwatch(), on_plan) as (store, opened, made):
        _ready(store, opened, made, Stopwatch(), progress, stopped)
        return store.folder


def run_part(
    folder: Path,
    part: int,
    parts: int,
    *,
    progress: Progress = _quiet,
    stopped: Callable[[], bool] = _never,
) -> int:
    """The second step: make the tiles of one part of a prepared work folder that are not done yet; how many there are.

    part: 1 to parts. Parts may run at the same time, anywhere, and again. Raises UsageError, StoppedError, TileError.
    """
    if not 1 <= part <= parts:
        raise UsageError(what=f"there is no part {part} of {parts}", fix="parts count from 1, like 2/8")
    store = Store(folder)
    made = replace(on_device(_stored_plan(store)), workers=1)
    with one_blas_thread(), held(folder, part=f"{part}-of-{parts}"):
        watch = Stopwatch()
        total = made.tile_count
        mine = range((part - 1) * total // parts, part * total // parts)
        _make_tiles(store, made, mine, f"part-{part}-of-{parts}", watch, progress, stopped)
        return len(mine)


def finish(folder: Path, *, progress: Progress = _quiet, stopped: Callable[[], bool] = _never) -> RunReport:
    """The third step: write, verify and report the product of a work folder whose tiles are all done.

    Raises TileError if some are missing, InputError if the input has changed.
    """
    store = Store(folder)
    job, made, watch = _stored_job(store), on_device(_stored_plan(store)), Stopwatch()
    with job.open() as opened, one_blas_thread(), held(folder):
        if opened.identity != made.identity:
            raise InputError(
                what="the input has changed since the run was prepared",
                why="its product would mix two measurements",
                fix="prepare it again",
            )
        ledger = Ledger(store, made.run_hash)
        missing = ledger.missing(range(made.tile_count), made.cover(made.card).position)
        if missing:
            raise TileError(
                what=f"{len(missing)} of {made.tile_count} tiles are missing, the first is tile {missing[0]}",
                fix="run the parts again that have failed, then finish",
            )
        return _finish(store, opened, made, job.paths, watch, progress, stopped, 0, ledger.records())


def _stored_plan(store: Store) -> Plan:
    data = store.read_json("plan.json")
    if data is None:
        raise UsageError(what=f"'{store.folder.name}' holds no prepared run", fix="make one with truescale prepare")
    return Plan.from_json(data)


def _stored_job(store: Store) -> Job:
    data = store.read_json("job.json")
    if data is None:
        raise UsageError(what=f"'{store.folder.name}' holds no prepared run", fix="make one with truescale prepare")
    return Job.from_json(data)


@contextmanager
def _begun(
    job: Job, source: Source | None, watch: Stopwatch, on_plan: Callable[[Plan], None]
) -> Iterator[tuple[Store, Source, Plan]]:
    """The work folder of a job, held; its open input; the plan to carry out."""
    paths = job.paths
    check_output(paths, source or job.source)
    formats.ending(paths.output)
    with watch.stage("open"):
        opened = source or job.open()
    with opened, one_blas_thread():
        with watch.stage("plan"):
            made = _planned(opened, job, paths)
        on_plan(made)
        with held(paths.work_folder):
            store = Store(paths.work_folder)
            made = prepared(store, made, paths)
            try:
                if source is None:
                    store.write_json("job.json", job.absolute().to_json())
                yield store, opened, made
            except StoppedError:
                raise  # what is done waits for --resume
            except BaseException:
                # a mistake of this call, like a wrong address, must not cost the tiles of the calls before
                if paths.work is None and not Ledger(store, made.run_hash).records():
                    store.remove()
                raise


def _planned(opened: Source, job: Job, paths: Paths) -> Plan:
    """The plan of a run that is about to start, on its device, with what it discards."""
    like = formats.grid_of(job.like) if job.like else None
    made = on_device(plan(opened, job.request, like=like, paths=paths))
    check_space(made, paths)
    lost = tiles_lost(paths)
    if lost:
        text = f"tiles of an earlier run that are discarded: {lost}; --resume keeps those of the same request"
        made = replace(made, warnings=(*made.warnings, text))
    return made


def _finish(
    store: Store,
    opened: Source,
    made: Plan,
    paths: Paths,
    watch: Stopwatch,
    progress: Progress,
    stopped: Callable[[], bool],
    resumed: int,
    records: dict[int, Record],
) -> RunReport:
    """Export, verify, report; then the work folder goes unless it was asked for."""

    def step(stage: str) -> Callable[[int, int], None]:
        def on_step(done: int, total: int) -> None:
            progress(stage, done, total)
            if stopped():
                raise StoppedError(what=f"stopped during {stage}", fix="the same call with --resume goes on")

        return on_step

    product = WatchedSource(_product(store, opened.header, made), step("export"))
    with watch.stage("export"):
        heap.trim()
        store.write_json("plan.json", replace(made, overwrite=True).to_json())  # what is there from now on is ours
        counts = formats.sink_for(paths.output).write(product, opened, paths.output, _note(made))
        heap.trim()
    try:
        with watch.stage("verify"):
            checked, written = _verified(store, made, paths.output, step("verify"))
        calibration = Calibration.from_json(store.read_json("calibration.json") or {"channels": []})
        made = replace(made, warnings=(*made.warnings, *(store.read_json("ingest.json") or {}).get("doubts", ())))
        report = summarise(made, watch.read(), checked, written, calibration, resumed, records)
        report = replace(report, clipped=counts.get("clipped", 0))
        try:
            write_report(report, paths.output)
        except OSError as error:
            raise disk_failed("the report", error) from error
    except BaseException:
        remove(paths.output)  # nothing stays that has not been compared with its input and reported
        raise
    if paths.work is None:
        store.remove()
    else:
        with suppress(OSError):  # leave to overwrite ends with the run
            store.write_json("plan.json", replace(made, overwrite=False).to_json())
    return report


def _verified(
    store: Store, made: Plan, product: Path, on_rows: Callable[[int, int], None]
) -> tuple[Verification, Header]:
    """The written product against what was read of the input, and its header. Raises StoreError if a disk fails."""
    try:
        report_path(product).unlink(missing_ok=True)  # it spoke of another product
        with formats.open_source(product) as written, ZarrImage(store.coarse) as observed:
            checked = verify(written, observed, _models(made), orientation=made.orientation, on_rows=on_rows)
            return checked, written.header
    except OSError as error:
        raise StoreError(
            what=f"the product could not be compared with its input ({error.strerror or error})",
            why="one that has not been compared is not kept",
            fix="mend the disk and run again with --resume",
        ) from error


def run(
    store: Store,
    opened: Source,
    made: Plan,
    *,
    watch: Stopwatch,
    progress: Progress = _quiet,
    stopped: Callable[[], bool] = _never,
    cluster: str | None = None,
) -> tuple[int, dict[int, Record]]:
    """Ingest, calibrate and make all tiles in a prepared work folder: (tiles found done, records of all).

    What an earlier run of the same plan has done is kept.
    """
    _ready(store, opened, made, watch, progress, stopped)
    done = _make_tiles(store, made, range(made.tile_count), "worker", watch, progress, stopped, cluster)
    records = Ledger(store, made.run_hash).records()
    for stage in ("read", "network", "projection", "write"):  # of all tiles, those of earlier sessions too
        watch.add(stage, sum(record.seconds.get(stage, 0.0) for record in records.values()))
    return done, records


def _ready(
    store: Store, opened: Source, made: Plan, watch: Stopwatch, progress: Progress, stopped: Callable[[], bool]
) -> None:
    """Ingest and calibrate, unless it is done."""
    try:
        with watch.stage("read"):
            _ingest(store, opened, made, progress, stopped)
        with watch.stage("calibrate"):
            _calibrate(store, made)
        heap.trim()
    except OSError as error:
        raise disk_failed("the work folder", error) from error


def _make_tiles(
    store: Store,
    made: Plan,
    wanted: Sequence[int],
    writer: str,
    watch: Stopwatch,
    progress: Progress,
    stopped: Callable[[], bool],
    cluster: str | None = None,
) -> int:
    """Make the tiles asked for that are not done yet. Returns how many were done before."""
    todo = Ledger(store, made.run_hash).missing(wanted, made.cover(made.card).position)
    done = len(wanted) - len(todo)
    progress("tiles", done, len(wanted))
    failures: list[Record] = []
    counted, counting = [done], threading.Lock()

    def on_done(record: Record) -> None:
        if record.error:
            failures.append(record)
        else:
            with counting:
                counted[0] += 1
            progress("tiles", counted[0], len(wanted))

    store.stop.unlink(missing_ok=True)
    work = TileWork(str(store.folder.absolute()), made.run_hash, made.device, _threads(made))
    if todo and (made.workers > 1 or cluster):
        from pipelines.engine import cluster as engine  # dask takes a second to import

        def on_group(records: list[Record]) -> None:
            for record in records:
                on_done(record)

        with (
            watch.stage("cluster"),
            engine.client(cluster, made.workers) as client,
            engine.loaded(client, work.load) as make,
        ):
            engine.run(client, make, todo, on_done=on_group, stopped=stopped, on_stop=store.stop.touch)
    elif todo:
        with watch.stage("load"):
            worker = Worker(store.folder, device=made.device, threads=_threads(made))
            worker.predictor  # noqa: B018 - loaded here, once, before several threads ask for it

        def share(tiles: Sequence[int], number: int) -> None:
            run_tiles(worker, tiles, writer=f"{writer}-{number}", on_done=on_done, stopped=stopped)

        local.run(share, todo, made.threads)
    if stopped():
        raise StoppedError(
            what=f"stopped with {counted[0]} of {len(wanted)} tiles done", fix="the same call with --resume goes on"
        )
    if failures:
        first = min(failures, key=lambda r: r.tile)
        raise TileError(
            what=f"{len(failures)} of {len(wanted)} tiles failed, the first is tile {first.tile}: {first.error}",
            fix="mend the cause and run again with --resume",
        )
    return done


def _threads(made: Plan) -> int:
    """Threads of a network per worker: the idle cores, shared out.

    Threads that wait at every barrier for a core that something else holds are slower than one thread. Their number
    changes no byte.
    """
    idle = cores() - (os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)
    return max(1, round(idle) // made.workers)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chosen(bands: Sequence[int] | None) -> tuple[int, ...] | None:
    return tuple(bands) if bands else None


def on_device(made: Plan) -> Plan:
    """The plan with the device it will run on. Raises UsageError if CUDA is asked for and absent."""
    if made.device == "auto":
        return replace(made, device="cuda" if made.weights_sha256 and has_cuda() else "cpu")
    if made.device == "cuda" and not has_cuda():
        raise UsageError(
            what="CUDA was asked for, but this machine or this build of torch has none",
            fix="use --device cpu or auto",
        )
    return made


def _ingest(store: Store, opened: Source, made: Plan, progress: Progress, stopped: Callable[[], bool]) -> None:
    if (store.read_json("ingest.json") or {}).get("identity") == made.identity:
        return
    shutil.rmtree(store.coarse, ignore_errors=True)

    def on_block(done: int, total: int) -> None:
        progress("read", done, total)
        if stopped():
            raise StoppedError(what="stopped while reading", fix="the same call with --resume goes on")

    found = write_image(opened, opened.header, store.coarse, on_block)
    _refuse_empty(found, made)
    if opened.header.may_have_invalid:
        fill_invalid(store.folder)
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


def _calibrate(store: Store, made: Plan) -> None:
    if (store.read_json("calibration.json") or {}).get("run") != made.run_hash:
        samples = store.array(store.coarse)
        mask = store.array(store.coarse, "valid") if store.has_mask() else None

        def read(box: Box) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
            index = (slice(None), *box.slices)
            values = np.asarray(samples[index])
            return values, np.ones(values.shape, bool) if mask is None else np.asarray(mask[index], bool)

        store.write_json("calibration.json", {"run": made.run_hash, **calibrate(made, read).to_json()})
        shutil.rmtree(store.fine, ignore_errors=True)
    if not (store.fine / "samples" / "zarr.json").exists():
        chunk = CHUNK[made.fine.ndim]
        store.create_fine((len(made.channels), *made.fine.shape), (chunk,) * made.fine.ndim, made.shard, made.working)


def _models(made: Plan) -> list[Any]:
    """The forward models of the channels; None for one that is not compared."""
    return [None if channel.treatment == "nearest" else made.degradation(c) for c, channel in enumerate(made.channels)]


def _note(made: Plan) -> dict[str, str]:
    """Provenance for the product: no time, host or path."""
    spec = sorted({" x ".join(channel.spec) for channel in made.channels})
    return {
        "software": f"truescale {made.version}",
        "model": made.model,
        "weights": (made.weights_sha256 or "none")[:16],
        "scale": "x".join(f"{s:g}" for s in made.scale),
        "degradation": ", ".join(spec),
        "noise": str(made.noise),
        "use": "research software, not a medical device",
    }


def upscale_array(
    samples: NDArray[np.generic],
    header: Header,
    *,
    scale: str | Factor | float | None = None,
    spacing: str | float | None = None,
    like: Grid | None = None,
    model: str | None = None,
    kind: ToldKind | None = None,
    told: Told | None = None,
    noise: str | float = "auto",
    consistency: bool = True,
    memory: str | int = "4GB",
    workers: int | None = None,
    device: Device = "auto",
    work: Path | None = None,
) -> NDArray[np.floating]:
    """Fine samples (c, *fine) of an array (c, *shape) or (*shape); NaN where invalid. The engine of `upscale`."""
    told = told or Told()
    text = (
        ",".join(f"{a}={f}" for a, f in zip(header.grid.axes, scale, strict=True))
        if isinstance(scale, Factor)
        else scale
    )
    request = Request(
        scale=text,
        spacing=spacing,
        model=model,
        kind=kind,
        slice_thickness=told.thickness_mm,
        degradation=str(told.profile) if told.profile else None,
        noise=noise,
        consistency=consistency,
        memory=memory,
        workers=workers,
        device=device,
    )
    if not np.isfinite(samples).all():
        header = replace(header, may_have_invalid=True)
    source = ArraySource(samples, header)
    with one_blas_thread(), tempfile.TemporaryDirectory(dir=work) as folder:
        made = on_device(plan(source, request, like=like))
        store = Store(Path(folder) / "work")
        store.write_json("plan.json", made.to_json())
        run(store, source, made, watch=Stopwatch())
        return _product(store, header, made).read(Box.whole(made.product.shape))


def ingest(
    source: str | Path | Source,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = _quiet,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
) -> Path:
    """The adapter alone: samples, valid mask and grid into chunked zarr, streamed; nothing of the file's header."""
    path = Path(output)
    if path.suffix != ".zarr":
        raise UsageError(what=f"the output '{path.name}' does not end with .zarr", fix="name it like scan.zarr")
    check_output(Paths(path, overwrite=overwrite), source)
    opened = (
        formats.open_source(source, bands=_chosen(bands), nodata=nodata) if isinstance(source, (str, Path)) else source
    )
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with opened:
            write_image(opened, replace(opened.header, problems=()), temporary, lambda d, t: progress("read", d, t))
        remove(path)
        temporary.rename(path)
    except OSError as error:
        raise disk_failed(f"'{path.name}'", error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path
