"""What `make demo` runs: samples and real images through the command line; products, pictures and a table of errors.

python workflows/demo.py FOLDER. Where TRUESCALE_DATA names a data folder, real scans and scenes are done as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import demo_pictures

CLI = [sys.executable, "-m", "pipelines.cli"]
PLAIN = ("cubic", "floor")
"""Methods without weights that the network is compared with."""


@dataclass(frozen=True)
class Job:
    """One image: its source, what `upscale` is told, and its truth where there is one."""

    name: str
    title: str
    source: Path
    suffix: str
    arguments: tuple[str, ...] = ()
    truth: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a command printed and cost."""

    text: str
    seconds: float
    peak_bytes: int


def say(line: str) -> None:
    """One line for the person who waits."""
    print(line, flush=True)


def call(*arguments: str | Path) -> Outcome:
    """Run one truescale command. Ends the demo with its message and exit code if it fails."""
    command = [*CLI, *(str(a) for a in arguments)]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        out.seek(0)
        text = out.read().decode()
        if process.returncode:
            err.seek(0)
            say(err.read().decode().strip())
            say(f"demo: stopped at: truescale {' '.join(command[3:])}")
            sys.exit(process.returncode)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, kilobytes elsewhere
    return Outcome(text, seconds, usage.ru_maxrss * unit)


def apart(task: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function run in a process of its own.

    This process stays small: Linux counts the parent's memory at the fork as the child's peak, so that one large
    picture here would be reported as the memory of every later command.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def fresh(folder: Path, name: str, made_from: dict[str, Any], *products: Path) -> bool:
    """Whether the products were made from exactly this: same command, same input, same models."""
    stamp = folder / ".stamps" / f"{name}.json"
    return all(p.exists() for p in products) and stamp.is_file() and json.loads(stamp.read_text()) == made_from


def note(folder: Path, name: str, made_from: dict[str, Any]) -> None:
    """Remember what a product was made from."""
    stamp = folder / ".stamps" / f"{name}.json"
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(json.dumps(made_from))


def state(path: Path) -> list[list[Any]]:
    """Names, sizes and times of a file or of the files in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def made_sample(folder: Path, kind: str, suffix: str, tools: str) -> tuple[Path, Path]:
    """(input, truth) of a made image."""
    source, truth = folder / f"{kind}{suffix}", folder / f"{kind}_truth{suffix}"
    made_from = {"sample": kind, "tools": tools}
    if fresh(folder, kind, made_from, source, truth):
        say(f"demo: {source.name} is up to date")
    else:
        done = call("sample", kind, source, "--overwrite")
        note(folder, kind, made_from)
        say(f"demo: truescale sample {kind} {source}: {cost(done)}")
    return source, truth


def cost(done: Outcome) -> str:
    """Time and memory of a command."""
    return f"{done.seconds:.1f} s, peak {done.peak_bytes / 1e9:.2f} GB"


def nibabel_example(folder: Path) -> Path:
    """The first volume of the MR series that nibabel installs with itself: oblique, 2.2 mm slices."""
    path = folder / "example.nii.gz"
    if not path.exists():
        import nibabel

        series = nibabel.load(Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz")
        nibabel.save(series.slicer[..., 0], path)
        say(f"demo: {path.name}: first volume of example4d.nii.gz, which nibabel brings along")
    return path


def jobs(folder: Path, data: Path | None, tools: str) -> Iterator[Job]:
    """All images, the ones made by code first."""
    source, truth = made_sample(folder, "head", ".nii.gz", tools)
    yield Job("head", "Numerical head, 4 mm slices to 1 mm", source, ".nii.gz", (), truth)
    source, truth = made_sample(folder, "landscape", ".tif", tools)
    yield Job("landscape", "Numerical landscape, 10 m to 5 m", source, ".tif", ("--scale", "2"), truth)
    example = nibabel_example(folder)
    yield Job("example", "MR volume, 2.2 mm slices to 1.1 mm", example, ".nii.gz", ("--scale", "2x1x1"))
    if data is None:
        say("demo: TRUESCALE_DATA names no data folder: real scans and scenes are left out")
        return
    med, geo, twice = data / "med", data / "geo/scenes/dev", ("--scale", "2")
    thick, series = med / "thick/dev/ms01_flair.nii.gz", med / "dicom/siemens_2d_t1_sag"
    satellite, aerial = geo / "s2_l1c_t33uub/s2_t33uub_10m.tif", geo / "multi_karoo/aerial_karoo_5m.tif"
    for job in (
        Job("flair", "FLAIR, 4 mm slices to 1 mm", thick, ".nii.gz", ("--spacing", "1")),
        Job("sagittal", "DICOM series, sagittal T1, 4.8 mm to 1 mm", series, ".nii.gz"),
        Job("sentinel2", "Sentinel-2, 10 m to 5 m", satellite, ".tif", twice),
        Job("aerial", "Aerial photograph, 5 m to 2.5 m", aerial, ".tif", twice),
    ):
        if job.source.exists():
            yield job
        else:
            say(f"demo: {job.name}: not in the data folder, left out")


def upscaled(folder: Path, job: Job, tools: str, model: str | None = None) -> Path:
    """The product of a job by the default model, or by one of PLAIN (kept apart in compared/)."""
    name = job.name if model is None else f"{job.name}_{model}"
    output = (folder if model is None else folder / "compared") / f"{name}_up{job.suffix}"
    output.parent.mkdir(exist_ok=True)
    options = [*job.arguments, *([] if model is None else ["--model", model])]
    made_from = {"source": state(job.source), "options": options, "tools": tools}
    if fresh(folder, f"{name}_up", made_from, output):
        say(f"demo: {output.name} is up to date")
        return output
    done = call("upscale", job.source, output, *options, "--overwrite", "--quiet", "--json")
    report = json.loads(done.text.splitlines()[-1])
    if model is None:
        (folder / f"{job.name}_run.json").write_text(json.dumps(report, indent=1) + "\n")
    note(folder, f"{name}_up", made_from)
    ratio = report.get("consistency_over_noise")
    explains = "" if ratio is None else f", residual {ratio:.2f} of the noise"
    say(f"demo: truescale upscale {shown(job.source)} {output.name} {' '.join(options)}".rstrip())
    say(f"demo:   {report['model']}: {cost(done)}{explains}")
    return output


def shown(path: Path) -> str:
    """A path short enough to read."""
    return "/".join(path.parts[-2:])


def compared(folder: Path, job: Job, products: dict[str, Path], tools: str) -> dict[str, dict[str, float]]:
    """Method -> metric -> value against the truth; remembered, because structural similarity takes its time."""
    assert job.truth is not None
    made_from = {"files": [state(p) for p in (*products.values(), job.truth)], "tools": tools}
    kept = folder / ".stamps" / f"{job.name}_errors.values.json"
    if fresh(folder, f"{job.name}_errors", made_from, kept):
        found: dict[str, dict[str, float]] = json.loads(kept.read_text())
        return found
    found = apart(demo_pictures.all_errors, job.source, job.truth, products)
    kept.write_text(json.dumps(found))
    note(folder, f"{job.name}_errors", made_from)
    return found


def table(errors: dict[str, dict[str, dict[str, float]]]) -> str:
    """Job -> method -> metric -> value as aligned text, each job with its own columns."""
    lines = []
    for job, methods in errors.items():
        columns = list(next(iter(methods.values())))
        lines.append(f"{job:<24}" + "".join(f"{c:>12}" for c in columns))
        for method, values in methods.items():
            lines.append(f"  {method:<22}" + "".join(f"{values[c]:>12.4f}" for c in columns))
        lines.append("")
    lines.append("psnr, sre: dB, higher is better; ssim: 1 is best; hfen, rmse, sam (degrees), ergas: lower is better")
    return "\n".join(lines) + "\n"


def drawn(folder: Path, job: Job, product: Path, errors: dict[str, dict[str, float]], tools: str) -> None:
    """The picture of a job, unless it is there already."""
    path = folder / f"{job.name}.png"
    made_from = {"files": [state(p) for p in (job.source, product)], "errors": errors, "tools": tools}
    if fresh(folder, f"{job.name}_picture", made_from, path):
        say(f"demo: {path.name} is up to date")
        return
    apart(demo_pictures.picture_of_files, path, job.title, (job.source, product, job.truth), errors)
    note(folder, f"{job.name}_picture", made_from)
    say(f"demo: picture {path}")


def toolchain() -> str:
    """A short text that changes with the code and with the models: what was made with another is made again."""
    here = Path(__file__).parent
    folders = [here, *(here.parent / name for name in ("pipelines", "srmed", "srgeo"))]
    digest = hashlib.sha256(call("models", "--json").text.encode())
    for file in sorted(f for folder in folders for f in folder.rglob("*") if f.suffix in (".py", ".yaml")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Do all jobs; quick where nothing has changed."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    named = os.environ.get("TRUESCALE_DATA")
    tools = toolchain()
    errors: dict[str, dict[str, dict[str, float]]] = {}
    started = time.perf_counter()
    for job in jobs(folder, Path(named) if named else None, tools):
        product = upscaled(folder, job, tools)
        found: dict[str, dict[str, float]] = {}
        if job.truth is not None:
            plain = {m: upscaled(folder, job, tools, m) for m in PLAIN}
            model = json.loads((folder / f"{job.name}_run.json").read_text())["model"]
            found = compared(folder, job, {**plain, model: product}, tools)
            errors[job.name] = found
        drawn(folder, job, product, found, tools)
    text = table(errors)
    (folder / "errors.txt").write_text(text)
    say("\n" + text)
    say(f"demo: done in {time.perf_counter() - started:.0f} s; look into {folder}/")


if __name__ == "__main__":
    main()
