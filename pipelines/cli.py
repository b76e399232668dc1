"""The command line: each command parses, calls one public function and prints. No logic, no defaults of its own."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.errors import StoppedError, TruescaleError, UsageError
from pipelines.options import (
    bands_of,
    cluster_option,
    data_option,
    existing_folder,
    job_of,
    kind_option,
    memory_option,
    on_plan_of,
    rates_file,
    replacing_options,
    request_options,
    stoppable,
)
from pipelines.screen import (
    Screen,
    describe_batch,
    describe_bench,
    describe_check,
    describe_header,
    describe_models,
    describe_plan,
    describe_report,
    describe_training,
    to_stderr,
    to_stdout,
)

if TYPE_CHECKING:
    from pipelines.planning import Plan

# before NumPy is imported: one BLAS thread a worker, whatever the machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

EXTRAS = {
    "dask_jobqueue": "slurm",
    "ignite": "export",
    "jinja2": "evaluate",
    "lightning": "train",
    "matplotlib": "evaluate",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "optuna": "train",
    "PIL": "evaluate",
    "tensorboard": "train",
    "skimage": "evaluate",
    "torchmetrics": "evaluate",
}
"""Optional packages and the extra that brings them."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="truescale", prog_name="truescale")
@click.option("--debug", is_flag=True, help="Show tracebacks and the log.")
def truescale(debug: bool) -> None:
    """Super-resolution whose product explains its input: degraded again, the measured data come back.

    \b
    truescale upscale t2_axial.nii.gz t2_iso.nii.gz
    truescale upscale series/ t2_iso.nii.gz --spacing 1
    truescale upscale scene.tif scene_5m.tif --scale 2
    truescale verify t2_iso.nii.gz --against t2_axial.nii.gz

    Research software, not a medical device: samples between measured slices are inferred.
    """
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, stream=sys.stderr)


@truescale.command()
@request_options
@click.option(
    "--uncertainty",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="A second product: the standard deviation of each sample of OUTPUT.",
)
@click.option(
    "--adapt",
    is_flag=True,
    help="First train the network on the input itself; kept if better on a part held back. Also: --model self.",
)
@click.option(
    "--adapt-seconds", metavar="S", type=click.FloatRange(1), default=300.0, show_default=True, help="Time for that."
)
@replacing_options
@cluster_option
def upscale(
    source: Path,
    output: Path,
    uncertainty: Path | None,
    adapt: bool,
    adapt_seconds: float,
    overwrite: bool,
    resume: bool,
    cluster: str | None,
    **options: Any,
) -> None:
    """Super-resolve INPUT into OUTPUT, verify the result and report beside it (OUTPUT.report.json).

    \b
    truescale upscale t2_axial.nii.gz t2_iso.nii.gz             isotropic at its finest spacing
    truescale upscale dicom_folder/ t2.nii.gz --scale 4x1x1     through-plane only
    truescale upscale s2.tif s2_5m.tif --model floor --bands 1,2,3
    truescale upscale t2_axial.nii.gz t2_iso.nii.gz --uncertainty t2_iso_sd.nii.gz

    INPUT: NIfTI (.nii, .nii.gz), a folder of one DICOM series, GeoTIFF or .zarr. OUTPUT: .nii, .nii.gz, .tif or .zarr.
    Without --scale, --spacing and --like a volume becomes isotropic at its finest spacing, and a raster doubles (2x).
    Research software, not a medical device.
    """
    from pipelines import costs, heap, runner

    heap.keep()
    warned: list[str] = []
    plans: list[Plan] = []
    job = job_of(source, output, overwrite, resume, options)
    reports = []
    with stoppable() as stopped, Screen(quiet=options["quiet"]) as screen:
        if adapt or options["model"] == "self":
            from pipelines.training import adapting

            folder = output.with_name(f"{output.name}.adapted")
            adapted = adapting.adapt(
                job, adapt_seconds, folder, resume=resume, progress=screen.progress, stopped=stopped
            )
            screen.say(f"adapt    {adapted.told()}")
            job = replace(job, request=replace(job.request, model=adapted.card.path))
        jobs = [job, *([runner.of_errors(job, str(uncertainty))] if uncertainty else [])]
        for own in jobs:
            report = runner.carry_out(
                own,
                cluster=cluster,
                progress=screen.progress,
                stopped=stopped,
                on_plan=on_plan_of(screen, warned, plans),
            )
            screen.say(describe_report(report, warned))
            reports.append(report)
    for made in plans if cluster is None else ():  # none if the product was there already; others' rate is not ours
        found = next((r.network_rate for r in reports if r.run_hash == made.run_hash), None)
        costs.keep_rate(rates_file(), made, found)
    if options["as_json"]:
        for report in reports:
            to_stdout(json.dumps(report.to_json()))


@truescale.command()
@click.argument("jobs", metavar="JOBS.yaml", type=click.Path(path_type=Path))
@click.option("--workers", metavar="N", type=click.IntRange(1), default=1, help="Inputs at once, each in a process.")
@cluster_option
@click.option("--summary", metavar="PATH", type=click.Path(path_type=Path), help="Default: JOBS.summary.csv and .json.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")
@click.option("--quiet", is_flag=True)
def batch(jobs: Path, workers: int, cluster: str | None, summary: Path | None, as_json: bool, quiet: bool) -> None:
    """Upscale many inputs. One that fails stops no other; called again, it does only what is missing.

    \b
    truescale batch jobs.yaml --workers 4       where jobs.yaml holds
        options: {model: floor}                 for all jobs, as for upscale
        jobs:
          - {input: "scans/*.nii.gz", output: "products/{name}_iso.nii.gz"}
          - {input: s2.tif, output: products/s2_5m.tif, scale: 2}

    Paths are relative to the file. Ends with 0 if all is well, else with the largest code of the failed ones.
    """
    from pipelines import batch as batches
    from pipelines import heap

    heap.keep()
    asked = batches.read_jobs(jobs)
    with stoppable() as stopped, Screen(quiet=quiet) as screen:
        outcomes = batches.run(asked, workers=workers, cluster=cluster, progress=screen.progress, stopped=stopped)
    batches.write_summary(outcomes, summary or jobs.with_suffix(".summary.csv"))
    if not quiet:
        to_stderr(describe_batch(outcomes, len(asked)))
    if as_json:
        to_stdout(json.dumps([asdict(outcome) for outcome in outcomes]))
    code = max((outcome.exit_code for outcome in outcomes), default=0)
    if code == 0 and len(outcomes) < len(asked):
        raise StoppedError(what=f"stopped after {len(outcomes)} of {len(asked)} jobs", fix="the same call goes on")
    if code:
        sys.exit(code)


@truescale.command()
@request_options
@replacing_options
def prepare(source: Path, output: Path, overwrite: bool, resume: bool, **options: Any) -> None:
    """First of three steps for many machines: plan, read and calibrate; prints the work folder.

    \b
    truescale prepare s2.tif s2_5m.tif        prints s2_5m.tif.work
    truescale run s2_5m.tif.work --part 1/8   eight of these, anywhere that sees the folder
    truescale finish s2_5m.tif.work           writes, verifies and reports s2_5m.tif
    """
    from pipelines import runner

    with stoppable() as stopped, Screen(quiet=options["quiet"]) as screen:
        folder = runner.prepare(
            job_of(source, output, overwrite, resume, options),
            progress=screen.progress,
            stopped=stopped,
            on_plan=on_plan_of(screen, []),
        )
    to_stdout(json.dumps({"work": str(folder)}) if options["as_json"] else folder)


@truescale.command("run")
@click.argument("work", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--part", metavar="K/N", default="1/1", show_default=True, help="Which share of the tiles.")
@click.option("--quiet", is_flag=True)
def run_part(work: Path, part: str, quiet: bool) -> None:
    """Second step: make the tiles of a prepared work folder, or one share of them.

    \b
    truescale run s2_5m.tif.work --part 3/8
    truescale run s2_5m.tif.work --part $SLURM_ARRAY_TASK_ID/8    in a job array 1-8

    Shares may run at the same time; what is done is not done again.
    """
    from pipelines import heap, runner

    number, slash, parts = part.partition("/")
    if not (slash and number.isdigit() and parts.isdigit()):
        raise UsageError(what=f"'{part}' is no part", fix="write it like 3/8")
    heap.keep()
    with stoppable() as stopped, Screen(quiet=quiet) as screen:
        tiles = runner.run_part(work, int(number), int(parts), progress=screen.progress, stopped=stopped)
        screen.say(f"done     {tiles} tile{'' if tiles == 1 else 's'} of part {part}")


@truescale.command()
@click.argument("work", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")
@click.option("--quiet", is_flag=True)
def finish(work: Path, as_json: bool, quiet: bool) -> None:
    """Third step: write, verify and report the product of a work folder whose tiles are all made.

    truescale finish s2_5m.tif.work
    """
    from pipelines import runner

    with stoppable() as stopped, Screen(quiet=quiet) as screen:
        report = runner.finish(work, progress=screen.progress, stopped=stopped)
        screen.say(describe_report(report))
    if as_json:
        to_stdout(json.dumps(report.to_json()))


@truescale.command()
@request_options
@click.option("--overwrite", is_flag=True, hidden=True)
@click.option("--resume", is_flag=True, hidden=True)
def plan(source: Path, output: Path, overwrite: bool, resume: bool, **options: Any) -> None:
    """Say what `upscale` would do with the same arguments: grids, model, degradation, tiles, memory.

    Reads no pixel, but for --slice-thickness auto where the header has none.

    truescale plan t2_axial.nii.gz t2_iso.nii.gz --spacing 1 --json
    """
    from pipelines import costs, runner
    from pipelines.stages import cores
    from pipelines.workspace import check_output

    job = job_of(source, output, overwrite, resume, options)
    check_output(job.paths, source)
    made, done = runner.planned(job), runner.kept(job) is not None
    cost = costs.estimate(made, cores(), costs.read_rates(rates_file()))
    if options["as_json"]:
        to_stdout(json.dumps({**made.summary(), **cost.summary(), "done": done}))
    else:
        to_stdout(describe_plan(made, cost) + "\ndone     the product of this request is there already" * done)


@truescale.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("--pixels", is_flag=True, help="Read the samples too: valid fraction, range, noise.")
@click.option("--bands", metavar="1,2,3", help="Bands of a raster, counted from 1.")
@click.option("--nodata", metavar="VALUE", type=float)
@kind_option
@click.option("--slice-thickness", type=click.Choice(["auto"]), help="Read samples too: estimate it from them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def inspect(source: Path, bands: str | None, as_json: bool, **options: Any) -> None:
    """Say what INPUT is: grid, spacing, thickness and where it came from, channels, problems.

    truescale inspect series/ --pixels
    """
    from pipelines import inspection

    found = inspection.inspect(source, bands=bands_of(bands), **options)
    to_stdout(json.dumps(found) if as_json else describe_header(found))


@truescale.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUTPUT.zarr", type=click.Path(path_type=Path))
@click.option("--bands", metavar="1,2,3", help="Bands of a raster, counted from 1.")
@click.option("--nodata", metavar="VALUE", type=float)
@kind_option
@click.option("--overwrite", is_flag=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")
@click.option("--quiet", is_flag=True)
def ingest(source: Path, output: Path, bands: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Copy samples, valid mask and grid of INPUT into chunked zarr; nothing else of the file.

    truescale ingest t2_axial.nii.gz t2_axial.zarr
    """
    from pipelines import inspection, runner

    with Screen(quiet=quiet) as screen:
        path = runner.ingest(source, output, progress=screen.progress, bands=bands_of(bands), **options)
        screen.say(f"done     {path}")
    if as_json:
        to_stdout(json.dumps(inspection.inspect(path)))


@truescale.command()
@click.argument("product", metavar="PRODUCT", type=click.Path(path_type=Path))
@click.option("--against", metavar="INPUT", type=click.Path(path_type=Path), required=True)
@kind_option
@click.option("--slice-thickness", metavar="MM", type=float)
@click.option("--degradation", metavar="NAME", help="As for upscale.")
@click.option("--noise", metavar="auto|0|SIGMA", default="auto", show_default=True)
@click.option(
    "--bands", metavar="1,2,3", help="Bands of INPUT that PRODUCT was made from. Default: as its report says, or all."
)
@click.option("--nodata", metavar="VALUE", type=float)
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")
@click.option("--quiet", is_flag=True)
def verify(product: Path, against: Path, as_json: bool, quiet: bool, bands: str | None, **options: Any) -> None:
    """Degrade PRODUCT again and compare it with INPUT: residual per slice or square, over the noise.

    truescale verify t2_iso.nii.gz --against t2_axial.nii.gz

    Exit code 0: every channel is explained within its noise and rounding; 3: one is not, or the input is refused. Bands
    are matched by the report beside PRODUCT and by their descriptions, else by their order.
    """
    from pipelines import inspection

    with Screen(quiet=quiet) as screen:
        result = inspection.check(product, against, progress=screen.progress, bands=bands_of(bands), **options)
    error = inspection.unexplained(result)
    if as_json:
        to_stdout(json.dumps({**result, **(error.to_json() if error else {})}))
    else:
        to_stdout(describe_check(result))
    if error:
        to_stderr(f"error    {error}")
        sys.exit(error.exit_code)


class _OrName(click.Group):
    """A group whose first word may be a model instead of a command: it is shown."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


@truescale.group(cls=_OrName, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models, show one (its name or card), or export its network for other programs.

    \b
    truescale models                                 what it is for, scales, weights, cost, field, gain
    truescale models lattice-mri                     all of its card
    truescale models export lattice-geo geo.onnx     also --format monai
    """
    from pipelines import card as cards

    context.obj = as_json
    if context.invoked_subcommand is None:
        found = cards.available()
        to_stdout(json.dumps([card.summary() for card in found]) if as_json else describe_models(found))


@models.command(hidden=True)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def show(of_group: bool, name: str, as_json: bool) -> None:
    """Show one model: all of its card."""
    from pipelines import card as cards

    to_stdout(json.dumps(cards.find(name).summary(), indent=None if as_json or of_group else 2))


@models.command()
@click.argument("model", metavar="MODEL")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["onnx", "monai"]), default="onnx", show_default=True)
@click.option("--overwrite", is_flag=True)
def export(model: str, output: Path, form: str, overwrite: bool) -> None:
    """Write the network of MODEL (a name or a card) to OUT, for other programs. Needs the extra 'export'.

    \b
    truescale models export lattice-geo geo.onnx              one file; onnxruntime makes the same values of it
    truescale models export lattice-geo geo/ --format monai   a folder that monai.bundle loads, and upscale --model too

    A network makes what is added to the interpolation. Interpolation and projection stay with upscale.
    """
    from pipelines import card as cards
    from pipelines.networks import exporting

    to_stdout(exporting.export(cards.find(model), output, form, overwrite=overwrite))


@truescale.command()
@click.option("--suite", metavar="smoke|med|geo|full", default="smoke", show_default=True)
@data_option
@click.option(
    "--models",
    metavar="A,B,PATH",
    help="Only these, cubic and the floor: names and card files. Default: all that `models` lists.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for page.html, tables and scores. The same call goes on with a stopped evaluation.",
)
@click.option("--limit", metavar="N", type=int, help="Only the first N subjects or places.")
@click.option("--unprojected", is_flag=True, help="Every network also without the projection.")
@memory_option
@click.option("--json", "as_json", is_flag=True, help="The tables as one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress.")
def evaluate(
    suite: str,
    data: Path | None,
    models: str | None,
    out: Path | None,
    limit: int | None,
    unprojected: bool,
    memory: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare methods with the truth: images made coarse by a simulated sensor, restored and measured.

    \b
    truescale evaluate --suite smoke                    minutes: crops, two kinds of slices, 2x
    truescale evaluate --suite med --out results/med    slices 3|0, 4|0, 4|1, 5|0 and 5|1 mm along each axis
    truescale evaluate --suite geo --out results/geo    2x, 4x, Sentinel-2 20 -> 10 m, multispectral -> PAN
    truescale evaluate --suite med --data my_volumes --models lattice-mri,my_net-1.0.json --out results/mine

    The data folder is the project's (its dev split is measured) or any folder of NIfTI, DICOM series or rasters, in
    which every subject or place has a folder of its own. Each condition is measured on noisy data with a wider blur
    than told, then on clean data with the blur as told; suite full adds the other combinations. Results name the files.
    """
    folder = existing_folder(data)
    from pipelines.evaluation import suite as suites

    chosen = [name for name in models.split(",") if name] if models is not None else None
    with Screen(quiet=quiet) as screen:
        result = suites.evaluate(
            suite, folder, chosen, screen.progress, out=out, limit=limit, unprojected=unprojected, memory=memory
        )
        if out is not None:
            screen.say(f"written  {out / 'page.html'}, tables.md, tables.json, scores.csv")
    to_stdout(json.dumps(result.to_json()) if as_json else result.to_text())


@truescale.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--quick", is_flag=True, help="Small images, few rounds: under a minute.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def bench(names: tuple[str, ...], quick: bool, device: str, as_json: bool, quiet: bool) -> None:
    """Measure the engine against its goals and its peers, side by side: all benches, or those of these names.

    \b
    truescale bench                      a quarter of an hour on two cores
    truescale bench --quick              under a minute
    truescale bench engine-2d seams      only these

    Ends with 0 even where a goal is missed: the table says so.
    """
    from pipelines.bench import suite
    from pipelines.bench.goals import Asked

    with Screen(quiet=quiet) as screen:
        found = suite.run(names, Asked(quick, suite.devices(device)), screen.progress)
    to_stdout(json.dumps(found.to_json()) if as_json else describe_bench(found))


@truescale.command()
@click.argument("name", metavar="head|landscape", type=click.Choice(["head", "landscape"]))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True)
def sample(name: str, output: Path, overwrite: bool) -> None:
    """Make the demo's inputs, with their truth beside them.

    \b
    truescale sample head head.nii.gz            thick slices of a numerical head, and head_truth.nii.gz
    truescale sample landscape landscape.tif     10 m bands of a made landscape, and landscape_truth.tif
    """
    from pipelines import samples_io

    Screen(quiet=False).say(f"making   the {name} and its truth, about half a minute")
    for path in samples_io.write_sample(name, output, overwrite=overwrite):
        to_stdout(path)


@truescale.command()
@click.argument("config", metavar="CONFIG.yaml", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@data_option
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the bundle. Default: beside the checkpoints in runs/.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Begin anew where a training of this name is.")
@click.option("--init-from", metavar="NAME|CARD.json", default="", help="Start from the weights of a bundle.")
@click.option("--search", "tries", metavar="N", type=click.IntRange(1), help="Try N settings of the config's 'search'.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--devices", metavar="N", type=click.IntRange(1), default=1, help="Processes that share each batch.")
@click.option("--quiet", is_flag=True)
def train(config: Path, data: Path | None, tries: int | None, quiet: bool, **options: Any) -> None:
    """Train a network as CONFIG says; writes a bundle. Needs the extra 'train'.

    \b
    TRUESCALE_DATA=data truescale train configs/training/edsr-2d.yaml
    truescale train configs/training/espcn-3d.yaml --data scans/          your own files, some held out to judge by
    truescale train configs/training/edsr-2d.yaml --data scenes/ --init-from runs/edsr-2d-1.0/edsr-2d-1.0.json
    truescale upscale scene.tif fine.tif --scale 2 --model runs/edsr-2d-1.0/edsr-2d-1.0.json

    FOLDER: that of all data, of which the config names a part, or any folder of NIfTI files, DICOM series, rasters or
    .zarr. Curves and pictures: tensorboard --logdir runs.
    """
    from pipelines import heap

    heap.keep()
    folder = existing_folder(data)
    with Screen(quiet=quiet) as screen:
        if tries is not None:
            from pipelines.training import search

            found = search.search(
                config, folder, tries, device=options["device"], progress=screen.progress, say=screen.say
            )
            to_stdout(f"done     {found.gain_db:+.2f} dB over the floor  {found.config}")
            return
        from pipelines.training import fit

        card = fit.train(config, folder, **options, progress=screen.progress, say=screen.say)
        for line in describe_training(card):
            screen.say(line)
    to_stdout(f"done     {card.id}  {card.folder}")


def main() -> None:
    """Run the command line; errors become one or two lines and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        truescale.main(["--debug", *arguments] if debug else arguments, standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(UsageError(what=error.format_message().rstrip("."), fix="see --help"), debug=False)
    except (click.Abort, KeyboardInterrupt):
        _fail(StoppedError(what="stopped", fix="run it again; nothing half-written is left"), debug)
    except TruescaleError as error:
        _fail(error, debug)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None or debug:
            raise
        fix = f"install it: pip install -c constraints.txt '.[{extra}]'"
        _fail(UsageError(what=f"this command needs {error.name}", fix=fix), debug)
    except Exception as error:  # noqa: BLE001 - a bug: say so without a page of text
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # under the text of --help or --version
            _fail(StoppedError(what="the disk under stdout is full", fix="free space there and run again"), debug)
        what = f"{type(error).__name__}, which is a bug in truescale"
        _fail(TruescaleError(what=what, fix="" if debug else "run again with --debug"), debug)


def _fail(error: TruescaleError, debug: bool) -> None:
    """Say what is wrong: to people, and with --json to programs."""
    if debug:
        import traceback

        traceback.print_exc()
    to_stderr(f"error    {error}")
    if "--json" in sys.argv:
        with suppress(StoppedError):  # nowhere to write it: the first error counts
            to_stdout(json.dumps(error.to_json()))
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
