"""A truth under one condition: the coarse data that a simulated sensor makes of it, and what a method is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipelines import formats, guides, guiding
from pipelines.degradation import Degradation, Profile
from pipelines.errors import InputError, UsageError
from pipelines.evaluation.conditions import Condition
from pipelines.evaluation.truths import Truth
from pipelines.grid import Box, Factor, Grid, decimal_fraction, fine_length
from pipelines.image import IN_PLANE, ArraySource, Header

NOISE = {"med": 0.015, "geo": 3.0 / 255.0}
"""Standard deviation of the noisy condition, over the 99.9th percentile."""

LEAST_COARSE = 8
"""Coarse samples an axis must have to be worth a number."""

LEAST_SCALE = Fraction(3, 2)
"""A truth is this much finer than what is simulated, or it says little of what lies between coarse samples."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A truth under one condition. header, coarse: what a method gets, (channel, *coarse); degradation: as told.

    guide: finer bands of the place made as coarse as the truth, on its grid; None without any.
    """

    truth: Truth
    condition: Condition
    header: Header
    coarse: NDArray[np.float64]
    factor: Factor
    degradation: Degradation
    guide: ArraySource | None = None


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


def factor_of(truth: Truth, condition: Condition) -> Factor | None:
    """The scale that a condition asks for of a truth.

    None where the condition is not for it: another kind of image, too coarse itself (LEAST_SCALE), or with fewer than
    LEAST_COARSE samples left on an axis.
    """
    if condition.fusion and condition.fusion not in truth.entry.fusions:
        return None
    scales = _scales(truth, condition)
    changed = [(n, s) for n, s in zip(truth.samples.shape[1:], scales, strict=True) if s != 1]
    if not changed or any(s < LEAST_SCALE or n < s * LEAST_COARSE for n, s in changed):
        return None
    return Factor(scales)


def _scales(truth: Truth, condition: Condition) -> tuple[Fraction, ...]:
    """Coarse over fine spacing of each axis; below 1 where the truth is the coarser one."""
    grid = truth.header.grid
    if condition.spacing_mm is None:
        return (Fraction(condition.scale or truth.entry.pan_ratio or 1),) * grid.ndim
    wanted = Fraction(str(condition.spacing_mm)) / decimal_fraction(grid.spacing[condition.axis])
    return tuple(wanted if a == condition.axis else Fraction(1) for a in range(grid.ndim))


def _profiles(condition: Condition, ndim: int, widened: float) -> tuple[Profile, ...]:
    """One profile per axis, `widened` times as wide as the nominal one."""
    p = condition.profile
    if p.value is None:  # a definition without a width
        return (p,) * ndim
    value = p.value
    wide = replace(p, value=value ** (widened**2) if p.kind == "mtf" else value * widened)  # MTF: exp(-sigma^2 ...)
    if condition.spacing_mm is None:
        return (wide,) * ndim
    return tuple(wide if a == condition.axis else IN_PLANE for a in range(ndim))


def simulate(truth: Truth, condition: Condition, rng: np.random.Generator) -> Case | None:
    """The coarse data of a truth under a condition; None where it is not for it (`factor_of`).

    Noise is Rician on MR volumes and Gaussian on all else; what the case is told is always the nominal profile.
    """
    factor = factor_of(truth, condition)
    if factor is None:
        return None
    fine, coarse = coarser(truth.header.grid, factor)
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
    return Case(cut, condition, header, measured, factor, told, _guide(cut, fine) if condition.fusion else None)


def _guide(truth: Truth, grid: Grid) -> ArraySource | None:
    """The guide of a truth on its grid, by Wald's protocol: what made the input coarse made the guide so before."""
    if truth.entry.guide is None:
        return None
    with formats.open_source(truth.entry.guide) as source:
        try:
            _, told = guides.guided(replace(truth.header, grid=grid), source.header, source.identity)
        except (InputError, UsageError):  # it covers a part of the truth, or none
            return None
        kept = told.channels
        finer = source.header.grid
        model = Degradation.between(grid, finer, (Profile("wald"),) * 2)
        channels = tuple(source.header.channels[c] for c in kept)
        header = replace(source.header, grid=finer, channels=channels)
        cut = guiding.CutSource(source, header, (0, 0), kept)
        lowered = guiding.LoweredSource(cut, replace(header, grid=grid, dtype="float32", problems=(), facts={}), model)
        samples = lowered.read(Box.whole(grid.shape))
        if not np.isfinite(samples).all():
            return None
        return ArraySource(samples, replace(lowered.header, may_have_invalid=False))


def _with_noise(
    measured: NDArray[np.float64], sigma: NDArray[np.float64], *, rician: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """sigma: (channel,), of Gaussian noise or of each of the two channels of a magnitude image."""
    scale = sigma.reshape(-1, *(1,) * (measured.ndim - 1))
    first = measured + scale * rng.normal(size=measured.shape)
    return np.asarray(np.hypot(first, scale * rng.normal(size=measured.shape))) if rician else first
