"""What a file is, and whether a product explains its input: the answers of `inspect` and `verify` as plain values."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import formats
from pipelines.calibration import noise_sigma, window_samples
from pipelines.degradation import Degradation, Profile
from pipelines.errors import UsageError
from pipelines.grid import Box, Grid, Orientation
from pipelines.image import Header, Source, Told, TurnedSource
from pipelines.labels import look, told
from pipelines.projection import Residual
from pipelines.request import parse_noise
from pipelines.verification import verify
from pipelines.workspace import require_space
from pipelines.zarr_image import Statistics, ZarrImage, doubts, write_image

Progress = Callable[[str, int, int], None]

SAME_SPACING = 1.001
"""Spacings closer than this ratio are one: files round them."""


def inspect(
    path: str | Path, *, pixels: bool = False, bands: Sequence[int] | None = None, nodata: float | None = None
) -> dict[str, Any]:
    """Everything the header says, as plain values.

    pixels: also the valid fraction, range and noise per channel, and what the samples say against the header.
    """
    with formats.open_source(path, bands=tuple(bands) if bands else None, nodata=nodata) as source:
        header = source.header
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
        if pixels:
            found["pixels"], further = _pixels(source)
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


def _pixels(source: Source) -> tuple[list[dict[str, Any]], list[str]]:
    """Numbers per channel, and what they say against the header."""
    total = int(np.prod(source.header.grid.shape))
    with _ingested(source) as (image, found):
        upright = _upright(image)
        noise = [_noise(upright, c) for c in range(len(source.header.channels))]
        labels = [line for c in range(len(source.header.channels)) for line in _labels(upright, c)]
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
    return [f"{told(image.header.channels[channel].name, found)}: use --model nearest"] if found.labels else []


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
    slice_thickness: float | None = None,
    degradation: str | None = None,
    noise: str | float = "auto",
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> dict[str, Any]:
    """Residual of INPUT minus the degraded PRODUCT: per channel, and per slice of a volume or square of an image.

    Samples next to a hole see a part of their surroundings only: `beside_holes` counts them apart.

    Raises UsageError if the two do not have the same channels, GeometryError if their grids do not fit.
    """
    noise = parse_noise(noise)
    said = Told(Profile.parse(degradation) if degradation else None, slice_thickness)
    chosen = tuple(bands) if bands else None
    with (
        formats.open_source(product) as made,
        formats.open_source(against, bands=chosen, nodata=nodata, slice_thickness=slice_thickness) as given,
        _ingested(given) as (observed, _),
    ):
        if len(made.header.channels) != len(given.header.channels):
            raise UsageError(
                what=f"the product has {len(made.header.channels)} channels, the input {len(given.header.channels)}",
                fix="name the bands it was made from with --bands",
            )
        fine = made.header.grid.joining(given.header.grid)
        to_input = Orientation.onto(fine, given.header.grid)
        _refuse_coarser(to_input.grid(fine), given.header.grid)
        models: list[Degradation | None] = [
            given.header.degradation(to_input.grid(fine), c, said) if channel.kind == "image" else None
            for c, channel in enumerate(given.header.channels)
        ]
        if not any(model is not None and model.changed for model in models):
            same = all(model is not None for model in models)
            raise UsageError(
                what="the product has no finer grid than the input" if same else "the product holds no image channel",
                why="there is nothing to degrade" if same else "classes are repeated, not averaged",
                fix="name the product first, its input after --against",
            )
        sigmas = [
            (0.0, "none") if m is None else _noise(_upright(observed), c) if noise == "auto" else (float(noise), "told")
            for c, m in enumerate(models)
        ]
        result = verify(
            made,
            observed,
            models,
            orientation=to_input.inverse,
            on_rows=lambda done, total: progress("verify", done, total),
        )
        names, axes = [c.name for c in given.header.channels], given.header.grid.axes
    channels, parts = [], []
    for c, model in enumerate(models):
        if model is None:
            continue
        sigma, method = sigmas[c]
        channels.append(
            {
                **_numbers(names[c], result.inner.total(c), sigma),
                "lag1_correlation": result.inner.correlation(c),
                "beside_holes": _numbers(names[c], result.beside.total(c), sigma),
                "noise_sigma": sigma,
                "noise_method": method,
                "degradation": " x ".join(model.spec),
            }
        )
        parts += [
            {**_numbers(names[c], result.inner.of(c, part), sigma), "start": list(box.start), "stop": list(box.stop)}
            for part, box in result.parts()
        ]
    return {"product": str(product), "against": str(against), "axes": axes, "channels": channels, "parts": parts}


def _refuse_coarser(product: Grid, given: Grid) -> None:
    if any(f > SAME_SPACING * c for f, c in zip(product.spacing, given.spacing, strict=True)):
        raise UsageError(
            what="the product is coarser than the input",
            why="there is nothing to degrade: the two look swapped",
            fix="name the product first, its input after --against",
        )


def _numbers(name: str, residual: Residual, sigma: float) -> dict[str, Any]:
    return {
        "channel": name,
        "rmse": residual.rms if residual.count else None,
        "maximum": residual.maximum if residual.count else None,
        "samples": residual.count,
        "over_noise": residual.rms / sigma if sigma and residual.count else None,
    }
