"""What is measured: dev volumes and scenes as truths, and the conditions under which a sensor is simulated."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines import formats
from pipelines.degradation import Degradation, Profile
from pipelines.errors import InputError
from pipelines.grid import Box, Factor, Grid, decimal_fraction, fine_length
from pipelines.image import IN_PLANE, Header

CROP_VOLUME = 96
"""Samples per axis of the smoke suite's volumes."""

CROP_SCENE = 256
"""Samples per side of the smoke suite's scenes."""

TISSUE = 0.02
"""Volumes: samples above this share of the 99.9th percentile are of the body."""

NOISE = {"med": 0.015, "geo": 3.0 / 255.0}
"""Standard deviation of the noisy condition, over the 99.9th percentile."""

WIDER = 1.2
"""Mismatch: the data are made with a profile this much wider than told."""

LEAST_COARSE = 8
"""Coarse samples an axis must have to be worth a number."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How the coarse data are made. profile: what is told; widened: the true width over the told one.

    spacing_mm: of the slices (volumes); scale: of the image (scenes); axis: of the volume, counted as in the array.
    """

    domain: str
    profile: Profile
    spacing_mm: float | None = None
    scale: int | None = None
    axis: int = 0
    noisy: bool = False
    widened: float = 1.0

    @property
    def name(self) -> str:
        """One line for the heading of a table; all three axes of a volume share it."""
        if self.spacing_mm is not None:
            width = self.profile.value or 0.0
            what = f"slices {width:g}|{self.spacing_mm - width:g} mm"
        else:
            what = f"{self.scale}x {self.profile}"
        data = "noisy" if self.noisy else "clean"
        if self.widened == 1.0:
            return f"{what}, {data}"
        return f"{what}, {data}, {abs(self.widened - 1):.0%} {'wider' if self.widened > 1 else 'narrower'} than told"


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """A fine image. subject: the person or place; samples: (channel, *shape), NaN = invalid; mask: what counts."""

    subject: str
    name: str
    header: Header
    samples: NDArray[np.float64]
    mask: NDArray[np.bool_]
    peaks: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A truth under one condition. header, coarse: what a method gets, (channel, *coarse); degradation: as told."""

    truth: Truth
    condition: Condition
    header: Header
    coarse: NDArray[np.float64]
    factor: Factor
    degradation: Degradation


def conditions(domain: str, suite: str) -> list[Condition]:
    """Those of a suite ('smoke' or 'full') for one domain ('med' or 'geo')."""
    full = suite == "full"
    kinds = [(False, 1.0), (True, 1.0), (False, WIDER)]
    if full:
        kinds += [(False, 1 / WIDER), (True, WIDER)]
    if domain == "geo":
        scales = (2, 4) if full else (2,)
        return [Condition("geo", Profile("mtf", 0.3), scale=s, noisy=n, widened=w) for s in scales for n, w in kinds]
    slices = ((3, 0), (4, 0), (4, 1), (5, 0), (5, 1)) if full else ((4, 0), (4, 1))
    axes = (0, 1, 2) if full else (0,)
    return [
        Condition("med", Profile("slice", t), spacing_mm=t + g, axis=a, noisy=n, widened=w)
        for t, g in slices
        for n, w in kinds
        for a in axes
    ]


def truths(domain: str, suite: str, data: Path) -> Iterator[Truth]:
    """The dev volumes or scenes, one after the other: whole, or their centre for the smoke suite.

    data: the folder that holds med/ and geo/, each with its manifest.csv. Raises InputError if there is none.
    """
    table = data / domain / "manifest.csv"
    if not table.is_file():
        raise InputError(what=f"there is no {domain}/manifest.csv in the data folder", fix="name another with --data")
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "dev"]
    for row in rows:
        path = data / domain / row["path"]
        if domain == "med" and row["kind"] == "volume":
            yield _volume(path, row["subject"], whole=suite == "full")
        elif domain == "geo" and Path(row["path"]).parts[0] == "scenes":
            scene = _scene(path, Path(row["path"]).parts[2], whole=suite == "full")
            if scene is not None:
                yield scene


def _name(path: Path) -> str:
    return path.name.split(".")[0]


def _centre(shape: tuple[int, ...], extent: int) -> Box:
    start = tuple(max(0, (n - extent) // 2) for n in shape)
    return Box(start, tuple(min(n, a + extent) for a, n in zip(start, shape, strict=True)))


def _volume(path: Path, subject: str, *, whole: bool) -> Truth:
    with formats.open_source(path) as source:
        header = source.header
        values = source.read(Box.whole(header.grid.shape))[:1].astype(np.float64)
    values /= np.percentile(values, 99.9)
    mask = body(values[0])[None]
    box = Box.whole(header.grid.shape) if whole else _centre(header.grid.shape, CROP_VOLUME)
    index = (slice(None), *box.slices)
    header = replace(header, grid=header.grid.crop(box), channels=header.channels[:1], dtype="float32", problems=())
    return Truth(subject, _name(path), header, values[index].copy(), mask[index].copy(), np.ones(1))


def body(volume: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where a volume scaled to its 99.9th percentile counts: above 0.02, closed by 2, filled, dilated by 2."""
    bright = np.pad(np.asarray(volume) > TISSUE, 2)  # or the closing would eat what touches the border
    closed = ndimage.binary_closing(bright, iterations=2)
    filled = ndimage.binary_fill_holes(closed)
    dilated = np.asarray(ndimage.binary_dilation(filled, iterations=2), bool)
    return dilated[tuple(slice(2, -2) for _ in range(volume.ndim))]


def _scene(path: Path, place: str, *, whole: bool) -> Truth | None:
    """None if no band is an image with contrast in the part looked at."""
    with formats.open_source(path) as source:
        header = source.header
        box = Box.whole(header.grid.shape) if whole else _centre(header.grid.shape, CROP_SCENE)
        values = source.read(box).astype(np.float64)
    valid = np.isfinite(values)
    kept = [
        k
        for k, channel in enumerate(header.channels)
        if channel.kind == "image" and valid[k].mean() > 0.5 and np.ptp(values[k][valid[k]]) > 0
    ]
    if not kept:
        return None
    values, valid = values[kept], valid[kept]
    peaks = np.array([np.percentile(v[m], 99.9) for v, m in zip(values, valid, strict=True)])
    channels = tuple(header.channels[k] for k in kept)
    header = replace(header, grid=header.grid.crop(box), channels=channels, dtype="float32", problems=())
    return Truth(place, _name(path), header, values, valid, peaks)


def coarser(fine: Grid, factor: Factor) -> tuple[Grid, Grid]:
    """(the fine grid, cut at its ends to whole coarse samples; the coarse grid whose `rescaled(factor)` it is)."""
    counts = tuple(math.floor(n / s) for n, s in zip(fine.shape, factor, strict=True))
    shape = tuple(fine_length(m, s) for m, s in zip(counts, factor, strict=True))
    step = np.eye(fine.ndim + 1)
    for a, (m, n, s) in enumerate(zip(counts, shape, factor, strict=True)):
        step[a, a] = float(s)
        step[a, -1] = float((s - 1) / 2 + (n - m * s) / 2)
    cut = fine.crop(Box((0,) * fine.ndim, shape))
    return cut, replace(fine, shape=counts, affine=fine.affine @ step)


def _factor(grid: Grid, condition: Condition) -> Factor:
    if condition.spacing_mm is None:
        return Factor((Fraction(condition.scale or 1),) * grid.ndim)
    wanted = Fraction(str(condition.spacing_mm)) / decimal_fraction(grid.spacing[condition.axis])
    return Factor(tuple(wanted if a == condition.axis else Fraction(1) for a in range(grid.ndim)))


def _profiles(condition: Condition, ndim: int, widened: float) -> tuple[Profile, ...]:
    """One profile per axis, `widened` times as wide as the nominal one."""
    p = condition.profile
    value = p.value or 0.0
    wide = replace(p, value=value ** (widened**2) if p.kind == "mtf" else value * widened)  # MTF: exp(-sigma^2 ...)
    if condition.spacing_mm is None:
        return (wide,) * ndim
    return tuple(wide if a == condition.axis else IN_PLANE for a in range(ndim))


def simulate(truth: Truth, condition: Condition, rng: np.random.Generator) -> Case | None:
    """The coarse data of a truth under a condition; None where an axis would hold fewer than LEAST_COARSE samples.

    Noise is Rician on MR volumes and Gaussian on all else; what the case is told is always the nominal profile.
    """
    factor = _factor(truth.header.grid, condition)
    fine, coarse = coarser(truth.header.grid, factor)
    if any(coarse.shape[a] < LEAST_COARSE for a in factor.changed):
        return None
    index = (slice(None), *(slice(0, n) for n in fine.shape))
    cut = replace(truth, samples=truth.samples[index], mask=truth.mask[index])
    made = Degradation.between(coarse, fine, _profiles(condition, fine.ndim, condition.widened))
    if np.isfinite(cut.samples).all():
        measured = made.forward(cut.samples)
    else:
        pairs = [made.forward_valid(v, m) for v, m in zip(cut.samples, np.isfinite(cut.samples), strict=True)]
        measured = np.stack([values for values, _ in pairs])
    rician = condition.domain == "med" and truth.header.modality == "MR"
    if condition.noisy:
        measured = _with_noise(measured, NOISE[condition.domain] * truth.peaks, rician=rician, rng=rng)
    nominal = _profiles(condition, fine.ndim, 1.0)
    channels = tuple(
        replace(c, profiles=nominal, noise_model="rician" if rician else "gaussian") for c in truth.header.channels
    )
    header = replace(
        truth.header,
        grid=coarse,
        channels=channels,
        facts={},
        slice_axis=condition.axis if condition.spacing_mm is not None else None,
        may_have_invalid=not bool(np.isfinite(measured).all()),
    )
    told = Degradation.between(coarse, fine, nominal)
    return Case(cut, condition, header, measured, factor, told)


def _with_noise(
    measured: NDArray[np.float64], sigma: NDArray[np.float64], *, rician: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """sigma: (channel,), of Gaussian noise or of each of the two channels of a magnitude image."""
    scale = sigma.reshape(-1, *(1,) * (measured.ndim - 1))
    first = measured + scale * rng.normal(size=measured.shape)
    return np.asarray(np.hypot(first, scale * rng.normal(size=measured.shape))) if rician else first
