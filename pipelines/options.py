"""Options that commands share, and what becomes of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.errors import StoppedError
from pipelines.screen import (
    Screen,
    describe_plan,
)

if TYPE_CHECKING:
    from pipelines.job import Job
    from pipelines.planning import Plan

# before NumPy is imported: one BLAS thread a worker, whatever the machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class Millimetres(click.ParamType[Any]):
    """A number of millimetres, or 'auto'."""

    name = "mm"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else click.FLOAT.convert(value, param, ctx)


memory_option = click.option(
    "--memory", metavar="4GB", default="4GB", show_default=True, help="Budget that tiles are sized for."
)

kind_option = click.option(
    "--kind",
    type=click.Choice(["image", "labels"]),
    help="What INPUT is, where its name, type or samples mislead. Classes that the file declares stay classes.",
)


def replacing_options(command: Callable[..., None]) -> Callable[..., None]:
    """What may happen to an output or a run that is there."""
    command = click.option("--resume", is_flag=True, help="Go on with a stopped run of the same request.")(command)
    return click.option("--overwrite", is_flag=True, help="Replace an existing output.")(command)


def cluster_option(command: Callable[..., None]) -> Callable[..., None]:
    """Where the work is done."""
    text = "A dask cluster: tcp://HOST:PORT, or a file like those of configs/clusters."
    return click.option("--cluster", metavar="ADDRESS|YAML", help=text)(command)


REQUEST_OPTIONS = (
    click.argument("source", metavar="INPUT", type=click.Path(path_type=Path)),
    click.argument("output", metavar="OUTPUT", type=click.Path(path_type=Path)),
    click.option("--scale", metavar="2|4x1x1", help="Factor, one or per axis (slowest axis first: z, y, x)."),
    click.option("--spacing", metavar="1.0|1x0.9x0.9", help="Spacing asked; one number touches coarser axes only."),
    click.option(
        "--like",
        metavar="REFERENCE",
        type=click.Path(path_type=Path),
        help="Take grid and field of view from a file.",
    ),
    click.option(
        "--guide",
        metavar="FINER",
        type=click.Path(path_type=Path),
        help="Take detail from a finer raster of the same place, and its grid.",
    ),
    click.option(
        "--model", metavar="NAME|PATH", help="nearest, linear, cubic, floor, a shipped network or a card file."
    ),
    kind_option,
    click.option(
        "--slice-thickness",
        metavar="MM|auto",
        type=Millimetres(),
        help="Wins over the file's header; auto: estimated from the samples if the header has none.",
    ),
    click.option(
        "--degradation",
        metavar="NAME",
        help="What made the input: slice:T cosine:T box:T mtf:M gaussian:F block wald.",
    ),
    click.option(
        "--noise",
        metavar="auto|0|SIGMA",
        default="auto",
        show_default=True,
        help="Standard deviation in input units; 0: clean.",
    ),
    click.option(
        "--no-consistency", is_flag=True, help="Leave out the projection: the product may contradict the input."
    ),
    memory_option,
    click.option(
        "--workers",
        metavar="N",
        type=int,
        help="Processes, with dask above 1. Default: 1, which uses all cores.",
    ),
    click.option("--readers", metavar="N", type=int, help="Threads that read tiles ahead. Default: 1."),
    click.option("--writers", metavar="N", type=int, help="Threads that write tiles. Default: 1."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "tf32", "bf16"]),
        default="fp32",
        show_default=True,
        help="Of a network's body: bf16 is quicker where the processor has it, tf32 with CUDA.",
    ),
    click.option("--ensemble", is_flag=True, help="Mean over mirror images: 4 (image) or 8 (volume) times the work."),
    click.option("--strict", is_flag=True, help="The floor instead of a network that does not suit the input."),
    click.option("--bands", metavar="1,2,3", help="Bands of a raster, counted from 1."),
    click.option(
        "--nodata", metavar="VALUE", type=float, help="Value of invalid pixels, wins over the file (nan: none)."
    ),
    click.option(
        "--work",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Work folder, kept. Default: OUTPUT.work, removed at the end.",
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout."),
    click.option("--quiet", is_flag=True, help="No progress, no summary."),
)
"""The arguments that `upscale` and `plan` share, in the order of their help."""


def request_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with `REQUEST_OPTIONS`."""
    for option in reversed(REQUEST_OPTIONS):
        command = option(command)
    return command


data_option = click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    envvar="TRUESCALE_DATA",
    help="Default: $TRUESCALE_DATA.",
)


def existing_folder(data: Path | None) -> Path:
    """The data folder. Raises UsageError if none is named."""
    if data is None:
        raise click.UsageError("no data folder: give --data FOLDER or set TRUESCALE_DATA")
    if not data.is_dir():
        raise click.UsageError(f"there is no data folder '{data}': give --data FOLDER or set TRUESCALE_DATA")
    return data


def rates_file() -> Path | None:
    """Where the rates of earlier runs are kept; None where there is no home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "truescale" / "rates.json"


def fields_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are fields of a Request."""
    names = ("scale", "spacing", "model", "kind", "slice_thickness", "degradation", "noise", "memory", "workers")
    return {
        **{name: options[name] for name in (*names, "readers", "writers", "device", "precision", "ensemble", "strict")},
        "consistency": not options["no_consistency"],
    }


def bands_of(text: str | None) -> tuple[int, ...] | None:
    """Band numbers of a text like 1,2,3."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.UsageError(f"--bands {text}: write numbers like 1,2,3") from error


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come; a second SIGINT ends the process where it is."""
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        if number == signal.SIGINT and stop.is_set():
            # nothing is cleared away: what is done counts at the next --resume, what is half-done is made again
            os.write(2, b"error    stopped at once. The same call with --resume goes on.\n")
            os._exit(StoppedError.exit_code)
        if number == signal.SIGINT:
            os.write(2, b"stopping once the tiles in hand are done; again to stop at once\n")
        stop.set()

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def on_plan_of(screen: Screen, warned: list[str], plans: list[Plan] | None = None) -> Callable[[Plan], None]:
    """Shows the plan, and keeps it, and its warnings so that they are told once."""

    def on_plan(plan: Plan) -> None:
        warned.extend(plan.warnings)
        if plans is not None:
            plans.append(plan)
        screen.say(describe_plan(plan))

    return on_plan


def job_of(source: Path, output: Path, overwrite: bool, resume: bool, options: dict[str, Any]) -> Job:
    """The options of a command line as a job."""
    from pipelines.job import Job
    from pipelines.request import Request

    like, guide, work = (str(options[name]) if options[name] else None for name in ("like", "guide", "work"))
    return Job(
        str(source),
        str(output),
        Request(**fields_of(options)),
        like=like,
        guide=guide,
        bands=bands_of(options["bands"]),
        nodata=options["nodata"],
        work=work,
        overwrite=overwrite,
        resume=resume,
    )
