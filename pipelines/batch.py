"""Many inputs, one cluster: a failed one never stops the others, and a second call does only what is missing."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml

from pipelines import runner
from pipelines.errors import TruescaleError, UsageError
from pipelines.image import ToldKind
from pipelines.job import Job
from pipelines.request import Device, Precision, Request
from pipelines.store import write_whole

Progress = Callable[[str, int, int], None]

OPTIONS = (*(f.name for f in fields(Request) if f.name != "workers"), "like", "guide", "bands", "nodata", "work")
"""What a batch may say of all its jobs or of one: the options of upscale."""


CHOICES: dict[str, tuple[object, ...]] = {
    "device": get_args(Device),
    "precision": get_args(Precision),
    "kind": (*get_args(ToldKind), None),
    "consistency": (True, False),
    "ensemble": (True, False),
    "strict": (True, False),
}
"""Options that have a few values only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one job. state: 'made', 'kept' (it was there already) or 'failed'."""

    input: str
    output: str
    state: str
    model: str = ""
    seconds: float | None = None
    consistency_over_noise: float | None = None
    warnings: int = 0
    error: str = ""
    exit_code: int = 0


def read_jobs(path: Path) -> list[Job]:
    """The jobs of a YAML file; paths are relative to its folder. Raises UsageError.

    options: {model: floor}                # for all jobs, as for upscale
    jobs:
      - {input: scans/*.nii.gz, output: products/{name}.nii.gz}
      - {input: s2.tif, output: s2_5m.tif, scale: 2}
    """
    try:
        data = yaml.safe_load(path.read_text())
        common, entries = dict(data.get("options") or {}), list(data["jobs"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            what=f"'{path.name}' is no list of jobs", why=str(error).splitlines()[0], fix="see truescale batch --help"
        ) from error
    found: list[Job] = []
    for number, entry in enumerate(entries, 1):
        try:
            found += _jobs({**common, **entry}, path.parent)
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(what=f"job {number} cannot be understood", why=str(error).splitlines()[0]) from error
    outputs = [os.path.normpath(job.output) for job in found]
    twice = sorted({o for o in outputs if outputs.count(o) > 1})
    if twice:
        raise UsageError(what=f"several jobs write '{Path(twice[0]).name}'", fix="use {name} in the output")
    return found


def _jobs(entry: dict[str, Any], folder: Path) -> Iterator[Job]:
    """One job per file that the input matches."""
    unknown = sorted(set(entry) - {"input", "output", *OPTIONS})
    if unknown or not {"input", "output"} <= set(entry):
        fault = f"has the unknown option '{unknown[0]}'" if unknown else "needs an input and an output"
        raise UsageError(what=f"a job {fault}", fix=f"known are input, output, {', '.join(OPTIONS)}")
    pattern, output = str(folder / str(entry.pop("input"))), str(folder / str(entry.pop("output")))
    inputs = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207 - may be absolute
    if not inputs:
        raise UsageError(what=f"no file matches '{pattern}'")
    asked = {name: entry[name] for name in list(entry) if name in {f.name for f in fields(Request)}}
    for name, value in asked.items():
        if isinstance(value, (list, dict)) or (name in CHOICES and value not in CHOICES[name]):
            raise UsageError(what=f"the option {name} cannot be {value!r}", fix="see truescale upscale --help")
    bands = entry.get("bands")
    if bands is not None and not (isinstance(bands, list) and all(isinstance(b, int) for b in bands)):
        raise UsageError(what=f"bands cannot be {bands!r}", fix="give a list like [3, 2, 1]")
    for source in inputs:
        name = Path(source).name.removesuffix(".gz").rpartition(".")[0] or Path(source).name
        yield Job(
            source,
            output.replace("{name}", name),
            Request(**asked),
            like=str(folder / entry["like"]) if entry.get("like") else None,
            guide=str(folder / entry["guide"]) if entry.get("guide") else None,
            bands=tuple(bands) if bands else None,
            nodata=entry.get("nodata"),
            work=str(folder / entry["work"]) if entry.get("work") else None,
            overwrite=True,
            resume=True,
        )


def carry_out(job: Job, stopped: Callable[[], bool] = lambda: False) -> Outcome:
    """One job, unless its product is there with a report of the same run. Never raises TruescaleError."""
    try:
        report = runner.over(job)
        state = "kept" if report else "made"
        if report is None:
            Path(job.output).parent.mkdir(parents=True, exist_ok=True)
            report = runner.carry_out(job, stopped=stopped)
    except TruescaleError as error:
        return Outcome(input=job.source, output=job.output, state="failed", error=str(error), exit_code=error.exit_code)
    except OSError as error:
        text = f"{Path(job.output).name} cannot be written there ({error.strerror or error})"
        return Outcome(input=job.source, output=job.output, state="failed", error=text, exit_code=2)
    except Exception as error:  # noqa: BLE001 - a bug: the other jobs go on
        text = f"{type(error).__name__}, which is a bug in truescale"
        return Outcome(input=job.source, output=job.output, state="failed", error=text, exit_code=1)
    return Outcome(
        input=job.source,
        output=job.output,
        state=state,
        model=report.model,
        seconds=report.seconds.get("total"),
        consistency_over_noise=report.consistency_over_noise,
        warnings=len(report.warnings),
    )


def run(
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    cluster: str | None = None,
    progress: Progress = lambda _stage, _done, _all: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """All jobs, in turn or spread over a cluster; outcomes in the order given, without what a stop left out."""
    found: dict[int, Outcome] = {}
    progress("jobs", 0, len(jobs))

    def on_done(outcomes: dict[int, Outcome]) -> None:
        found.update(outcomes)
        progress("jobs", len(found), len(jobs))

    if workers == 1 and cluster is None:
        for number, job in enumerate(jobs):
            if stopped():
                break
            on_done({number: carry_out(job, stopped)})
    else:
        from pipelines.engine import cluster as engine

        with engine.client(cluster, workers) as client, tempfile.TemporaryDirectory() as folder:
            stop = Path(folder) / "stop"  # processes of this machine see it; others end the input in hand
            work = partial(_some, str(stop))
            engine.run(
                client,
                work,
                list(enumerate(jobs)),
                most=1,
                on_done=on_done,
                stopped=stopped,
                on_stop=stop.touch,
                on_wait=lambda: progress("waiting", 0, 0),
            )
    return [found[number] for number in sorted(found)]


def _some(stop: str, jobs: Sequence[tuple[int, Job]]) -> dict[int, Outcome]:
    """Work for a cluster: jobs with their numbers, each in the process that it has come to."""
    stopped = Path(stop).exists
    alone = {n: replace(job, request=replace(job.request, workers=1)) for n, job in jobs}
    return {n: carry_out(job, stopped) for n, job in alone.items() if not stopped()}


def write_summary(outcomes: Sequence[Outcome], path: Path) -> None:
    """PATH.csv and PATH.json, a row per job. Raises OSError."""
    rows = [asdict(outcome) for outcome in outcomes]
    write_whole(path.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path.with_suffix(".csv"), text.getvalue())
