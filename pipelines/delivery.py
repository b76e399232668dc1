"""Delivery of a finished run: export beside the output, verify, report; only then does the product take its place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines import formats, heap
from pipelines.engine.crew import Crew
from pipelines.errors import InputError, StoppedError, StoreError
from pipelines.image import Header, Source
from pipelines.planning import Calibration, Plan
from pipelines.report import RunReport, Stopwatch, report_path, summarise, write_report
from pipelines.spreading import SpreadSource
from pipelines.stages import Progress, product_of
from pipelines.store import Record, Store
from pipelines.verification import Verification, verify
from pipelines.workspace import Paths, disk_failed, remove, stamp
from pipelines.zarr_image import ZarrImage


def finished(
    store: Store,
    opened: Source,
    made: Plan,
    crew: Crew,
    paths: Paths,
    watch: Stopwatch,
    progress: Progress,
    stopped: Callable[[], bool],
    resumed: int,
    records: dict[int, Record],
) -> RunReport:
    """Export, verify, report; then the work folder goes unless it was asked for.

    What stood at the output stays until its successor has been compared with the input and reported.
    """

    def step(stage: str) -> Callable[[int, int], None]:
        def on_step(done: int, total: int) -> None:
            progress(stage, done, total)
            if stopped():
                raise StoppedError(what=f"stopped during {stage}", fix="the same call with --resume goes on")

        return on_step

    staged = _staged(paths.output)
    try:
        with watch.stage("export"):
            counts = _exported(store, opened, made, crew, staged, step("export"))
        with watch.stage("verify"):
            checked, written = _verified(store, made, staged, step("verify"))
        calibration = Calibration.from_json(store.read_json("calibration.json") or {"channels": []})
        made = replace(made, warnings=(*made.warnings, *(store.read_json("ingest.json") or {}).get("doubts", ())))
        report = summarise(made, watch, checked, written, calibration, resumed, records)
        report = replace(report, clipped=counts.get("clipped", 0))
        _put_in_place(store, staged, paths.output, report)
    finally:
        remove(staged)
        report_path(staged).unlink(missing_ok=True)
    if paths.work is None:
        store.remove()
    else:
        with suppress(OSError):  # leave to overwrite ends with the run
            store.write_json("plan.json", replace(made, overwrite=False).to_json())
            store.write_json("exported.json", {"stamp": stamp(paths.output), "ended": True})
    return report


def tidy(output: Path) -> None:
    """Remove what a delivery that was killed has left beside its product."""
    staged = _staged(output)
    for left in (staged, report_path(staged), _aside(staged)):
        remove(left)


def _staged(output: Path) -> Path:
    """Where a product waits, hidden beside its place, with its ending."""
    name, ending = output.name, len(formats.ending(output))
    return output.with_name(f".{name[:-ending]}.new{name[-ending:]}")


def _aside(staged: Path) -> Path:
    """Where a folder waits whose place the product takes, until it is removed."""
    return staged.with_name(staged.name + ".old")


def _exported(
    store: Store, opened: Source, made: Plan, crew: Crew, staged: Path, on_rows: Callable[[int, int], None]
) -> dict[str, float]:
    """Write the product; counts worth reporting. Raises InputError if the input has gone, ExportError."""
    heap.trim()
    try:
        product = SpreadSource(product_of(store, opened.header, made), on_rows, crew, store, made.run_hash)
        original = opened if made.card.estimates == "image" else None  # its offsets and colours are not those of errors
        counts = formats.sink_for(staged).write(product, original, staged, _note(made))
    except FileNotFoundError as error:
        raise InputError(
            what="the input has gone while it was worked on",
            why="the product takes its metadata from it",
            fix="put it back and run again with --resume",
        ) from error
    heap.trim()
    return counts


def _put_in_place(store: Store, staged: Path, output: Path, report: RunReport) -> None:
    """The product and its report take the places of what was there."""
    try:
        write_report(report, staged)  # all that needs room on the disk comes first
        with suppress(OSError):  # what will be there is ours; without this, a resume needs --overwrite
            store.write_json("exported.json", {"stamp": stamp(staged)})
        report_path(output).unlink(missing_ok=True)  # it spoke of another product
        for stale in formats.sink_for(output).overruling(output):
            stale.unlink(missing_ok=True)
        aside = _aside(staged)
        if output.is_dir():  # a folder takes no other's place
            remove(aside)
            output.rename(aside)
        staged.rename(output)
        report_path(staged).rename(report_path(output))
        remove(aside)
    except OSError as error:
        raise disk_failed("the product or its report", error) from error


def _verified(
    store: Store, made: Plan, product: Path, on_rows: Callable[[int, int], None]
) -> tuple[Verification, Header]:
    """The written product against what was read of the input, and its header. Raises StoreError if a disk fails."""
    try:
        with formats.open_source(product) as written, ZarrImage(store.coarse) as observed:
            checked = verify(written, observed, _models(made), orientation=made.orientation, on_rows=on_rows)
            return checked, written.header
    except OSError as error:
        raise StoreError(
            what=f"the product could not be compared with its input ({error.strerror or error})",
            why="one that has not been compared is not kept",
            fix="mend the disk and run again with --resume",
        ) from error


def _models(made: Plan) -> list[Any]:
    """The forward models of the channels; None for one that is not compared."""
    compared = made.card.estimates == "image"
    return [
        made.degradation(c) if compared and channel.treatment != "nearest" else None
        for c, channel in enumerate(made.channels)
    ]


def _note(made: Plan) -> dict[str, str]:
    """Provenance for the product: no time, host or path."""
    spec = sorted({" x ".join(channel.spec) for channel in made.channels})
    return {
        "software": f"truescale {made.version}",
        "model": made.model,
        **({"guide": f"{len(made.guide.channels)} bands"} if made.guide else {}),
        "weights": (made.weights_sha256 or "none")[:16],
        "scale": "x".join(f"{s:g}" for s in made.scale),
        "degradation": ", ".join(spec),
        "noise": str(made.noise),
        "use": "research software, not a medical device",
    }
