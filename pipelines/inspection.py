"""What a file is, and whether a product explains its input: the answers of `inspect` and `verify` as plain values."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import formats, thickness
from pipelines.calibration import ROUNDING, noise_sigma, window_samples
from pipelines.degradation import Degradation, Profile
from pipelines.errors import InputError, UsageError
from pipelines.grid import Box, Grid, Orientation
from pipelines.image import Header, Source, Told, ToldKind, TurnedSource
from pipelines.labels import WAYS_ON, look, told
from pipelines.projection import EXPLAINED, Residual
from pipelines.report import report_path
from pipelines.request import parse_noise
from pipelines.verification import Verification, verify
from pipelines.workspace import require_space
from pipelines.zarr_image import Statistics, ZarrImage, doubts, write_image

Progress = Callable[[str, int, int], None]

SAME_SPACING = 1.001
"""Spacings closer than this ratio are one: files round them."""

FLOAT_ROUNDING = 1e-6
"""Of the largest sample: what float32 and the reach of a tile may change. Products of real volumes differ by 1e-8."""

UNNAMED = re.compile(r"band \d+")
"""What a band without a description is called by its number."""


def inspect(
    path: str | Path,
    *,
    pixels: bool = False,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    kind: ToldKind | None = None,
    slice_thickness: Literal["auto"] | None = None,
) -> dict[str, Any]:
    """Everything the header says, as plain values.

    pixels: also the valid fraction, range and noise per channel, and what the samples say against the header.
    slice_thickness: 'auto' for what the samples say of it, whatever the header does. Raises InputError if nothing.
    """
    with formats.open_source(path, bands=tuple(bands) if bands else None, nodata=nodata, kind=kind) as source:
        header = source.header.of_kind(kind)
        found: dict[str, Any] = {
            "kind": _kind(header),
            "domain": header.domain,
            "modality": header.modality,
            "dtype": header.dtype,
            "axes": header.grid.axes,
            "axes_named": list(header.anatomical_axes or header.grid.axes),
            "shape": list(header.grid.shape),
            "spacing": list(header.grid.spacing),
            "unit": header.grid.frame.unit,
            "affine": [list(row) for row in (header.file_affine or header.grid.affine.tolist())],
            "affine_world": header.file_world,
            "slice_axis": None if header.slice_axis is None else header.grid.axes[header.slice_axis],
            "channels": [
                {"name": c.name, "kind": c.kind, "unit": c.unit, "profiles": [str(p) for p in c.profiles]}
                for c in header.channels
            ],
            "degradation": ", ".join(
                f"{a} {p}" for a, p in zip(header.grid.axes, header.channels[0].profiles, strict=True)
            ),
            "may_have_invalid": header.may_have_invalid,
            "facts": {name: asdict(fact) for name, fact in header.facts.items()},
            "problems": list(header.problems),
        }
        if slice_thickness:
            found["slice_thickness"] = asdict(thickness.of_source(source))
        if pixels:
            found["pixels"], further = _pixels(source, kind)
            found["problems"] += further
    return found


def _kind(header: Header) -> str:
    if header.channels[0].kind == "classes" and len(header.channels) == 1:
        return "label map"
    return "volume" if header.grid.ndim == 3 else "raster"


@contextmanager
def _ingested(source: Source) -> Iterator[tuple[ZarrImage, Statistics]]:
    """The source copied to zarr for random access in bounded memory; removed again."""
    grid = source.header.grid
    needed = int(np.prod(grid.shape)) * len(source.header.channels) * (source.header.working.itemsize + 1)
    require_space({Path(tempfile.gettempdir()): needed}, "name a roomier folder with TMPDIR")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.zarr"
        found = write_image(source, source.header, path)
        with ZarrImage(path) as image:
            yield image, found


def _pixels(source: Source, kind: ToldKind | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Numbers per channel, and what they say against the header."""
    total = int(np.prod(source.header.grid.shape))
    with _ingested(source) as (image, found):
        upright = _upright(image)
        noise = [_noise(upright, c) for c in range(len(source.header.channels))]
        labels = [] if kind else [line for c in range(len(source.header.channels)) for line in _labels(upright, c)]
    numbers = [
        {
            "channel": channel.name,
            "valid_fraction": found.valid[c] / total,
            "minimum": found.minimum[c],
            "maximum": found.maximum[c],
            "noise_sigma": noise[c][0],
            "noise_method": noise[c][1],
        }
        for c, channel in enumerate(source.header.channels)
    ]
    return numbers, doubts(source.header, found) + labels


def _upright(image: Source) -> Source:
    """The image as a run looks at it: slices first, along the axes of its world."""
    return TurnedSource(image, Orientation.upright(image.header.grid, image.header.slice_axis))


def _noise(image: Source, channel: int) -> tuple[float, str]:
    """Estimate as a run would make it, from an upright image."""
    values, valid = window_samples(image.header.grid.shape, _reader(image, channel))
    rician = image.header.channels[channel].noise_model == "rician"
    return noise_sigma(values[:, 0].astype(np.float64), valid[:, 0], rician=rician)


def _labels(image: Source, channel: int) -> list[str]:
    """What a run would refuse an image channel with if it is a label map."""
    if image.header.channels[channel].kind != "image":
        return []
    shape, read = image.header.grid.shape, _reader(image, channel)

    def one(box: Box) -> tuple[Any, Any]:
        values, valid = read(box)
        return values[0], valid[0]

    values, valid = window_samples(shape, read)
    found = look((values[:, 0], valid[:, 0]), shape, one)
    return [f"{told(image.header.channels[channel].name, found)}: {WAYS_ON}"] if found.labels else []


def _reader(image: Source, channel: int) -> Callable[[Box], tuple[Any, Any]]:
    """Reads samples (1, *box) of one channel, 0 where they are not valid, and which are."""

    def read(box: Box) -> tuple[Any, Any]:
        values = image.read(box)[channel : channel + 1]
        known = np.isfinite(values)
        return np.where(known, values, 0), known

    return read


def check(
    product: str | Path,
    against: str | Path,
    *,
    kind: ToldKind | None = None,
    slice_thickness: float | None = None,
    degradation: str | None = None,
    noise: str | float = "auto",
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> dict[str, Any]:
    """Residual of INPUT minus the degraded PRODUCT: per channel, and per slice of a volume or square of an image.

    Samples next to a hole see a part of their surroundings only: `beside_holes` counts them apart. A channel is
    `explained` up to its `bound`; bands: None for those that the report beside the product names, and a slice thickness
    that its run estimated is taken from there too.

    Raises UsageError if the two do not have the same channels, GeometryError if their grids do not fit.
    """
    noise = parse_noise(noise)
    if slice_thickness is None and degradation is None:
        slice_thickness = _estimated_thickness(Path(product))
    said = Told(Profile.parse(degradation) if degradation else None, slice_thickness)
    told = {"nodata": nodata, "slice_thickness": slice_thickness, "kind": kind}
    chosen = tuple(bands) if bands else _reported_bands(Path(product), Path(against))
    with (
        formats.open_source(product) as made,
        formats.open_source(against, bands=chosen, **told) as opened,
        _InOrder(opened, _order(made.header, opened.header)) as given,
        _ingested(given) as (observed, found),
    ):
        header = given.header.of_kind(kind)
        to_input, models = _models(made.header, header, said)
        result = verify(
            made,
            observed,
            models,
            orientation=to_input.inverse,
            on_rows=lambda done, total: progress("verify", done, total),
        )
        channels, parts = _judged(observed, models, result, _rounding(made.header, found), noise)
    verdicts = [c["explained"] for c in channels]
    return {
        "product": str(product),
        "against": str(against),
        "axes": header.grid.axes,
        "explained": True in verdicts and False not in verdicts,
        "channels": channels,
        "parts": parts,
    }


def unexplained(found: dict[str, Any]) -> InputError | None:
    """What to say of a product that does not explain its input; None if it does. found: of `check`."""
    if found["explained"]:
        return None
    compared = [c for c in found["channels"] if c["samples"]]
    if not compared:
        return InputError(
            what="no sample of the input could be compared with the product",
            why="none lies where the product is valid",
            fix="check that the product was made from this input",
        )
    worst = max(compared, key=lambda c: c["rmse"] / (c["bound"] or 1.0))
    return InputError(
        what=f"the product does not explain the input: {worst['channel']} differs by {worst['rmse']:.4g} once degraded",
        why=f"noise and rounding explain up to {worst['bound']:.4g}",
        fix="check that it was made from this input, and with this --degradation and --noise",
    )


class _InOrder(Source):
    """Another Source with its channels in another order, or fewer of them."""

    def __init__(self, source: Source, order: Sequence[int]) -> None:
        self._source, self._order = source, list(order)
        self._header = replace(source.header, channels=tuple(source.header.channels[c] for c in order))

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        return f"{self._source.identity} {self._order}"

    def blocks(self, max_samples: int) -> Iterator[Box]:
        yield from self._source.blocks(max_samples)

    def read(self, box: Box) -> NDArray[np.floating]:
        return self._source.read(box)[self._order]


def _reported_bands(product: Path, against: Path) -> tuple[int, ...] | None:
    """The bands of a raster that the report beside a product says it was made from; None without one."""
    if formats.kind_of(against) != "raster":
        return None
    fact = _reported(product, "bands", "it names the bands of the product", "remove it, give --bands")
    if not fact:
        return None
    chosen = tuple(int(n) for n in fact["value"].split(","))
    with formats.open_source(against) as source:  # another file of the same bands is matched by their names
        return chosen if max(chosen) <= len(source.header.channels) else None


def _estimated_thickness(product: Path) -> float | None:
    """The slice thickness [mm] that the run estimated, as the report beside its product says; None if it did not."""
    why = "it says how thick the slices were taken to be"
    fact = _reported(product, "thickness_mm", why, "remove it, give --slice-thickness")
    return float(fact["value"]) if fact and fact["origin"] == "estimated" else None


def _reported(product: Path, name: str, why: str, fix: str) -> dict[str, Any] | None:
    """A fact of the report beside a product; None without one. Raises InputError (why, fix) if it is damaged."""
    report = report_path(product)
    if not report.is_file():
        return None
    try:
        fact: dict[str, Any] | None = json.loads(report.read_text())["facts"].get(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(what=f"'{report.name}' is damaged", why=why, fix=fix) from error
    return fact


def _order(made: Header, given: Header) -> list[int]:
    """The channel of the input for each of the product: by their names where files give them, else by their order."""
    wanted, names = [c.name for c in made.channels], [c.name for c in given.channels]
    described = not any(UNNAMED.fullmatch(name) for name in wanted) and len(set(names)) == len(names)
    if described and len(set(wanted)) == len(wanted) and set(wanted) <= set(names):
        return [names.index(name) for name in wanted]
    if len(wanted) != len(names):
        raise UsageError(
            what=f"the product has {len(wanted)} channels, the input {len(names)}",
            fix="name the bands it was made from with --bands",
        )
    return list(range(len(names)))


def _models(made: Header, given: Header, said: Told) -> tuple[Orientation, list[Degradation | None]]:
    """What turns the product onto the input's axes, and the forward model of each channel (None: not compared)."""
    fine = made.grid.joining(given.grid)
    to_input = Orientation.onto(fine, given.grid)
    _refuse_coarser(to_input.grid(fine), given.grid)
    models: list[Degradation | None] = [
        given.degradation(to_input.grid(fine), c, said) if channel.kind == "image" else None
        for c, channel in enumerate(given.channels)
    ]
    if not any(model is not None for model in models):
        raise UsageError(
            what="the input holds no image channel",
            why="classes are repeated, not averaged",
            fix="say --kind image if the product was made with it",
        )
    if not any(model is not None and model.changed for model in models):
        raise UsageError(
            what="the product has no finer grid than the input",
            why="there is nothing to degrade",
            fix="name a product first, and after --against the input it was made from",
        )
    return to_input, models


def _refuse_coarser(product: Grid, given: Grid) -> None:
    coarser = [
        f"{axis} ({f:.4g} against {c:.4g} {given.frame.unit})"
        for axis, f, c in zip(given.axes, product.spacing, given.spacing, strict=True)
        if f > SAME_SPACING * c
    ]
    if coarser:
        raise UsageError(
            what=f"the product is coarser than the input along {', '.join(coarser)}",
            why="there is nothing to degrade",
            fix="name a product made from this input; if the two are swapped, the product comes first",
        )


def _rounding(made: Header, found: Statistics) -> list[float]:
    """What storing the product may change of each channel [input units, root mean square]."""
    if np.dtype(made.dtype).kind in "iu":
        return [ROUNDING] * len(made.channels)
    extremes = zip(found.minimum, found.maximum, strict=True)
    return [FLOAT_ROUNDING * max(abs(low or 0.0), abs(high or 0.0)) for low, high in extremes]


def _judged(
    observed: Source,
    models: Sequence[Degradation | None],
    result: Verification,
    rounding: Sequence[float],
    noise: str | float,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All channels that are compared, and all their parts. noise: told, or 'auto'."""
    upright = _upright(observed)
    channels, parts = [], []
    for c, model in enumerate(models):
        if model is not None:
            sigma = _noise(upright, c) if noise == "auto" else (float(noise), "told")
            channel, own_parts = _compared(observed.header.channels[c].name, result, c, sigma, rounding[c])
            channels.append({**channel, "degradation": " x ".join(model.spec)})
            parts += own_parts
    return channels, parts


def _compared(
    name: str, result: Verification, c: int, noise: tuple[float, str], rounding: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One channel, and each of its parts. noise: its standard deviation and how it was found."""
    (sigma, method), total = noise, result.inner.total(c)
    bound = max(EXPLAINED * sigma, rounding)
    channel = {
        **_numbers(name, total, sigma),
        "bound": bound,
        "explained": total.rms <= bound if total.count else None,
        "lag1_correlation": result.inner.correlation(c),
        "beside_holes": _numbers(name, result.beside.total(c), sigma),
        "noise_sigma": sigma,
        "noise_method": method,
    }
    parts = [
        {**_numbers(name, result.inner.of(c, part), sigma), "start": list(box.start), "stop": list(box.stop)}
        for part, box in result.parts()
    ]
    return channel, parts


def _numbers(name: str, residual: Residual, sigma: float) -> dict[str, Any]:
    return {
        "channel": name,
        "rmse": residual.rms if residual.count else None,
        "maximum": residual.maximum if residual.count else None,
        "samples": residual.count,
        "over_noise": residual.rms / sigma if sigma and residual.count else None,
    }
