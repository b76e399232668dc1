"""The sequence of a run: open, plan, ingest, calibrate, tiles, export, verify, report. Nothing is decided here."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipelines import card as cards
from pipelines import decisions, formats, guiding, sizing, thickness
from pipelines.delivery import finished, tidy
from pipelines.errors import InputError, StoppedError, StoreError, TileError, UsageError
from pipelines.grid import Box, Factor, Grid
from pipelines.image import ArraySource, Header, Source, Told, ToldKind
from pipelines.job import Job
from pipelines.networks import has_cuda
from pipelines.planning import Plan, libraries
from pipelines.product import WatchedSource
from pipelines.report import RunReport, Stopwatch, read_report
from pipelines.request import Device, Precision, Request
from pipelines.stages import (
    Progress,
    cores,
    crew_of,
    make_tiles,
    never,
    product_header,
    product_of,
    quiet,
    ready,
    run,
)
from pipelines.store import Ledger, Store
from pipelines.workspace import (
    Paths,
    begun,
    check_output,
    check_space,
    delivered,
    disk_failed,
    gone,
    held,
    prepared,
    remove,
    tiles_lost,
)
from pipelines.zarr_image import write_image

LIBRARIES = ("numpy", "scipy")
"""Those that compute samples, with torch where there is a network."""


def one_blas_thread() -> threadpool_limits:
    """One thread a worker: the same sums whatever the machine, and no threads that wait for each other."""
    return threadpool_limits(1, user_api="blas")


def version() -> str:
    """The version of truescale."""
    return installed_version("truescale")


def plan(
    source: Source,
    request: Request,
    *,
    like: Grid | None = None,
    guide: Source | None = None,
    paths: Paths | None = None,
) -> Plan:
    """What would happen, without writing a byte. like: of `formats.grid_of`; guide: an open image.

    No pixel is read, but for a slice thickness of 'auto' where the header has none: then a bounded part of them.
    """
    if like is not None:
        like = like.joining(source.header.grid).anonymous()
    # a plan is kept and shown: nothing in it leads to a patient
    header = replace(source.header, grid=source.header.grid.anonymous()).of_kind(request.kind)
    if request.slice_thickness == "auto" and request.told == Told():
        header = thickness.told_by_samples(source, header)
    beside = None if guide is None else (guide.header, guide.identity)
    made = decisions.resolve(
        header, source.identity, request, reference=like, guide=beside, cores=cores(), version=version()
    )
    if paths is not None:
        header = product_header(header, made).turned(made.orientation)
        formats.sink_for(paths.output).refuse(header, paths.output)
        made = replace(made, work=str(paths.work_folder), work_kept=paths.work is not None, output=str(paths.output))
        made = replace(made, overwrite=paths.overwrite)
    return replace(made, libraries=libraries((*LIBRARIES, "torch") if made.weights_sha256 else LIBRARIES))


def upscale(
    source: str | Path | Source,
    output: str | Path,
    *,
    scale: str | float | None = None,
    spacing: str | float | None = None,
    like: str | Path | None = None,
    guide: str | Path | None = None,
    model: str | None = None,
    kind: ToldKind | None = None,
    slice_thickness: float | Literal["auto"] | None = None,
    degradation: str | None = None,
    noise: str | float = "auto",
    consistency: bool = True,
    memory: str | int = "4GB",
    workers: int | None = None,
    readers: int | None = None,
    writers: int | None = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    ensemble: bool = False,
    strict: bool = False,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    work: str | Path | None = None,
    uncertainty: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    cluster: str | None = None,
    progress: Progress = quiet,
    stopped: Callable[[], bool] = never,
    on_plan: Callable[[Plan], None] = lambda _plan: None,
) -> RunReport:
    """Super-resolve one image into a new file and report how well it explains its input.

    source: a path or an open Source; the rest as the options of the command line. Raises TruescaleError; on any error
    nothing half-written is left at `output`.
    """
    asked = Request(scale=scale, spacing=spacing, model=model, kind=kind, noise=noise, consistency=consistency)
    asked = replace(asked, slice_thickness=slice_thickness, degradation=degradation, device=device, precision=precision)
    asked = replace(asked, memory=memory, workers=workers, readers=readers, writers=writers)
    asked = replace(asked, ensemble=ensemble, strict=strict)
    job = Job(
        str(source) if isinstance(source, (str, Path)) else "",
        str(output),
        asked,
        like=str(like) if like else None,
        guide=str(guide) if guide else None,
        bands=_chosen(bands),
        nodata=nodata,
        work=str(work) if work else None,
        overwrite=overwrite,
        resume=resume,
    )
    opened = None if isinstance(source, (str, Path)) else source
    if uncertainty is not None and opened is not None:
        raise UsageError(what="an open source is read once", fix="give its path, or leave uncertainty out")
    jobs = [job, *([of_errors(job, str(uncertainty))] if uncertainty else [])]
    report, *_ = [
        carry_out(own, source=opened, cluster=cluster, progress=progress, stopped=stopped, on_plan=on_plan)
        for own in jobs
    ]
    return report


def planned(job: Job) -> Plan:
    """What a job would do, without writing a byte."""
    with job.open() as opened, job.open_guide() as guide:
        like = formats.grid_of(job.like) if job.like else None
        return plan(opened, job.request, like=like, guide=guide, paths=job.paths)


def kept(job: Job) -> RunReport | None:
    """The report of the product that this job would make, if both are there and no run of it is under way."""
    output, store = Path(job.output), Store(job.paths.work_folder)
    report = read_report(output) if output.exists() else None
    if report is None:
        return None
    made = planned(job)
    try:
        before = begun(store)
    except (InputError, StoreError):  # of another version, or damaged: no run of this job
        before = None
    again = made if before is None else sizing.continued(made, before)
    if before is not None and before.run_hash == again.run_hash:
        return report if delivered(store, output) and report.run_hash == again.run_hash else None
    return report if report.run_hash == made.run_hash else None


def over(job: Job) -> RunReport | None:
    """As `kept`. What a call has left goes that was killed while it put this product in place or removed its folder."""
    report, paths = kept(job), job.paths
    folder = paths.work_folder
    if report is None or not (folder.exists() or folder.with_name(f"{folder.name}.lock").exists()):
        return report
    with suppress(UsageError), held(folder):  # held by another: that one will do it
        store = Store(folder)
        if delivered(store, paths.output) or gone(store):
            tidy(paths.output)
            if paths.work is None:
                store.remove()
    return report


def of_errors(job: Job, output: str) -> Job:
    """The job that writes to `output` the standard deviation of each sample of another job's product.

    Raises UsageError if its model has no model of its errors, and what planning raises.
    """
    card = planned(job).card
    if card.of_errors is None:
        known = [c.name for c in cards.available() if c.error_model]
        raise UsageError(
            what=f"the errors of {card.id if card.network else card.name} are not known",
            why="no network was trained to tell them",
            fix=f"choose --model {' or '.join(known)}" if known else "leave --uncertainty out",
        )
    request = replace(job.request, model=card.of_errors.path)
    errors = replace(job, output=output, request=request, work=f"{job.work}.errors" if job.work else None)
    planned(errors)
    return errors


def carry_out(
    job: Job,
    *,
    source: Source | None = None,
    cluster: str | None = None,
    progress: Progress = quiet,
    stopped: Callable[[], bool] = never,
    on_plan: Callable[[Plan], None] = lambda _plan: None,
) -> RunReport:
    """All of a job in one go. source: the open input, where it is no file; cluster: see `engine.cluster.client`."""
    watch = Stopwatch()
    again = job.work is not None and job.paths.work_folder.exists()  # kept to write the product from it
    if job.resume and source is None and not again and (done := over(job)):
        return done
    with (
        _begun(job, source, watch, on_plan) as (store, opened, made),
        crew_of(store, made, watch, progress, cluster) as crew,
    ):
        resumed, records = run(store, opened, made, crew, watch=watch, progress=progress, stopped=stopped)
        return finished(store, opened, made, crew, job.paths, watch, progress, stopped, resumed, records)


def prepare(
    job: Job,
    *,
    progress: Progress = quiet,
    stopped: Callable[[], bool] = never,
    on_plan: Callable[[Plan], None] = lambda _plan: None,
) -> Path:
    """The first of three steps: a work folder that knows its job, with everything that its tiles need.

    `run_part` makes the tiles, on any machines that see the folder; `finish` writes the product.
    """
    watch = Stopwatch()
    with _begun(job, None, watch, on_plan) as (store, opened, made), crew_of(store, made, watch, progress) as crew:
        ready(store, opened, made, crew, watch, progress, stopped)
        return store.folder


def run_part(
    folder: Path,
    part: int,
    parts: int,
    *,
    progress: Progress = quiet,
    stopped: Callable[[], bool] = never,
) -> int:
    """The second step: make the tiles of one part of a prepared work folder that are not done yet; how many there are.

    part: 1 to parts. Parts may run at the same time, anywhere, and again. Raises UsageError, StoppedError, TileError.
    """
    if not 1 <= part <= parts:
        raise UsageError(what=f"there is no part {part} of {parts}", fix="parts count from 1, like 2/8")
    store = Store(folder)
    made = replace(on_device(_stored_plan(store)), workers=1)
    watch = Stopwatch()
    with one_blas_thread(), held(folder, part=f"{part}-of-{parts}"), crew_of(store, made, watch) as nobody:
        total = made.tile_count
        mine = range((part - 1) * total // parts, part * total // parts)
        make_tiles(store, made, nobody, mine, f"part-{part}-of-{parts}", watch, progress, stopped)
        return len(mine)


def finish(folder: Path, *, progress: Progress = quiet, stopped: Callable[[], bool] = never) -> RunReport:
    """The third step: write, verify and report the product of a work folder whose tiles are all done.

    Raises TileError if some are missing, InputError if the input has changed.
    """
    store = Store(folder)
    job, watch = _stored_job(store), Stopwatch()
    if done := over(job):
        return done
    made = on_device(_stored_plan(store))
    with job.open() as opened, one_blas_thread(), held(folder), crew_of(store, made, watch, progress) as crew:
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
        return finished(store, opened, made, crew, job.paths, watch, progress, stopped, 0, ledger.records())


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
    with opened, job.open_guide() as guide, one_blas_thread():
        with watch.stage("plan"):
            made = _planned(opened, guide, job, paths)
        with held(paths.work_folder):
            store = Store(paths.work_folder)
            made = prepared(store, made, paths)
            try:
                on_plan(made)
                if source is None:
                    store.write_json("job.json", job.absolute().to_json())
                if guide is not None:
                    with watch.stage("read"):
                        guiding.ingest(store, guide, made)
                yield store, opened, made
            except StoppedError:
                raise  # what is done waits for --resume
            except BaseException:
                # a mistake of this call, like a wrong address, must not cost the tiles of the calls before
                if paths.work is None and not Ledger(store, made.run_hash).records():
                    store.remove()
                raise


def _planned(opened: Source, guide: Source | None, job: Job, paths: Paths) -> Plan:
    """The plan of a run that is about to start, on its device, with what it discards."""
    like = formats.grid_of(job.like) if job.like else None
    made = on_device(plan(opened, job.request, like=like, guide=guide, paths=paths))
    check_space(made, paths)
    lost = tiles_lost(paths)
    if lost:
        text = f"tiles of an earlier run that are discarded: {lost}; --resume keeps those of the same request"
        made = replace(made, warnings=(*made.warnings, text))
    return made


def _chosen(bands: Sequence[int] | None) -> tuple[int, ...] | None:
    return tuple(bands) if bands else None


def on_device(made: Plan) -> Plan:
    """The plan with the device it will run on, and as many threads as suit it.

    Raises UsageError if CUDA is asked for and absent, or a precision that only CUDA has without it.
    """
    if made.device == "auto":
        device = "cuda" if made.weights_sha256 and has_cuda() else "cpu"
        made = replace(made, device=device)
        if device == "cuda":
            made = replace(made, threads=decisions.threads_for(device, made.card, cores() // made.workers))
            made = sizing.staffed(made, made.card, made.shard)
    if made.precision == "tf32" and made.device != "cuda":
        raise UsageError(
            what="tf32 was asked for, a precision of CUDA devices, but the network runs on the CPU",
            fix="leave --precision out, or choose bf16",
        )
    if made.device == "cuda" and not has_cuda():
        raise UsageError(
            what="CUDA was asked for, but this machine or this build of torch has none",
            fix="use --device cpu or auto",
        )
    return made


def upscale_array(
    samples: NDArray[np.generic],
    header: Header,
    *,
    scale: str | Factor | float | None = None,
    spacing: str | float | None = None,
    like: Grid | None = None,
    guide: Source | None = None,
    model: str | None = None,
    kind: ToldKind | None = None,
    told: Told | None = None,
    noise: str | float = "auto",
    consistency: bool = True,
    memory: str | int = "4GB",
    workers: int | None = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    ensemble: bool = False,
    work: Path | None = None,
) -> NDArray[np.floating]:
    """Fine samples (c, *fine) of an array (c, *shape) or (*shape); NaN where invalid. The engine of `upscale`.

    guide: an open finer image of the same place, whose grid the product takes.
    """
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
        precision=precision,
        ensemble=ensemble,
    )
    if not np.isfinite(samples).all():
        header = replace(header, may_have_invalid=True)
    source = ArraySource(samples, header)
    with one_blas_thread(), tempfile.TemporaryDirectory(dir=work) as folder:
        made = on_device(plan(source, request, like=like, guide=guide))
        store = Store(Path(folder) / "work")
        store.write_json("plan.json", made.to_json())
        if guide is not None:
            guiding.ingest(store, guide, made)
        watch = Stopwatch()
        with crew_of(store, made, watch) as crew:
            run(store, source, made, crew, watch=watch)
        return product_of(store, header, made).read(Box.whole(made.product.shape))


def ingest(
    source: str | Path | Source,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = quiet,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    kind: ToldKind | None = None,
) -> Path:
    """The adapter alone: samples, valid mask and grid into chunked zarr, streamed; nothing of the file's header."""
    path = Path(output)
    if path.suffix != ".zarr":
        raise UsageError(what=f"the output '{path.name}' does not end with .zarr", fix="name it like scan.zarr")
    check_output(Paths(path, overwrite=overwrite), source)
    told = {"nodata": nodata, "kind": kind}
    opened = formats.open_source(source, bands=_chosen(bands), **told) if isinstance(source, (str, Path)) else source
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with opened:
            watched = WatchedSource(opened, partial(progress, "read"))
            write_image(watched, replace(opened.header.of_kind(kind), problems=()), temporary)
        remove(path)
        temporary.rename(path)
    except OSError as error:
        raise disk_failed(f"'{path.name}'", error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path
