"""How thick the slices of a volume are, told by its samples: `--slice-thickness auto`.

Anatomy looks alike along all axes, and slices are blurred along one. So the in-plane lines, degraded by a candidate
profile at the slice spacing (`degradation.axis_matrix`: aliasing included), must vary from sample to sample as the
through-plane lines do; the thickness at which they do is the estimate. Three choices make the two alike in spite of
anatomy that has more edges one way than another:

- both are compared in what the third axis shows of fine detail (second and fourth differences along it), for that
  selects structures that cross neither of the two,
- each place counts alike (divided by the local energy), or the skull would decide alone,
- bands of both are compared as logarithms, weighed by how far they differ between axes of isotropic heads
  (`DIFFERENCES`, from the train split alone).

White noise is in the slices but not in what was degraded from them, so its variance is a second unknown, between none
and all that is seen in-plane.

After Han et al. 2023, Estimating the slice profile from the image (ESPRESO), with moments in place of a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from pipelines.calibration import noise_sigma
from pipelines.degradation import Profile, along, axis_matrix
from pipelines.errors import InputError
from pipelines.grid import Box, Orientation, Placement, decimal_fraction
from pipelines.image import Fact, Header, Source, TurnedSource

DETAIL = ((1.0, -2.0, 1.0), (1.0, -4.0, 6.0, -4.0, 1.0))
"""Differences along the third axis: what is compared is mostly structure that lies across it."""

BANDS = np.array([[1, 4 / 3, 1 / 3], [1, 0, -1], [1, -4 / 3, 1 / 3]])
"""From covariances at lags 0, 1, 2 the energy after [1, 2, 1] / sqrt 6, [1, 0, -1] / sqrt 2, [1, -2, 1] / sqrt 6."""

CANDIDATES = (0.4, 0.55, 0.75, 1.0, 1.25, 1.6)
"""Thicknesses over spacing that are tried; between them the bands are a cubic in the logarithm."""

USUAL, SPREAD = 0.9, 0.25
"""What slices usually measure over their spacing: no gap to a third of it (median, standard deviation of the log)."""

DIFFERENCES = 1e-5 * np.array(
    [
        [171, -60, -255, 99, -20, -158],
        [-60, 58, 84, -45, 23, 66],
        [-255, 84, 516, -159, 24, 277],
        [99, -45, -159, 103, -23, -147],
        [-20, 23, 24, -23, 22, 27],
        [-158, 66, 277, -147, 27, 281],
    ]
)
"""Covariance of the log ratios of bands (detail by detail) where thickness and noise are right: how axes differ.
Of the seven isotropic heads of the train split made thick along each axis, with and without noise; a tenth of the
weight is on the diagonal alone. `tests/bench/bench_thickness.py --fit` prints it."""

MIN_SLICES_SEEN = 8
"""Fewer say too little about lags of two slices."""

FINER = 1.5
"""In-plane samples must be finer than the slices by this factor: they are what is degraded."""

MOST_SAMPLES = 3_000_000
"""Read at most, about: of all slices the middle, and of these the centre."""

BODY = 0.1
"""Of the 99th percentile: darker than this is air."""

SLABS = 8
"""Parts of the volume, one of which is left out at a time to see what the rest would say (jackknife)."""

KNOWN = (0.47, 1.5)
"""Thicknesses over spacing that can be told from still thinner or thicker ones, which are not tried."""

TOO_UNSURE = 0.3
"""A standard deviation of the logarithm above this says no more than the prior."""

ASSUMED = "the slice thickness is not known"
"""How a reader begins the line that says so."""

INTERVAL = 1.645
"""Standard deviations of a normal distribution on both sides of 90 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thickness:
    """FWHM [mm] of the slice profile, the 90 % interval of that estimate, and what each in-plane axis alone says."""

    mm: float
    low_mm: float
    high_mm: float
    by_axis_mm: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.mm:.3g} mm (90 %: {self.low_mm:.3g} to {self.high_mm:.3g})"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one in-plane axis says, for each of `CANDIDATES`.

    own, degraded: energies (candidate, slab, band) through-plane and of the degraded in-plane lines, bands of all
    `DETAIL`; noise: (candidate, band), what white noise of variance 1 adds to own and not to degraded.
    """

    own: NDArray[np.float64]
    degraded: NDArray[np.float64]
    noise: NDArray[np.float64]

    def residual(self, variance: float, without: int | None = None) -> NDArray[np.float64]:
        """Log ratios (candidate, band), 0 where thickness and noise are right. without: a slab to leave out."""
        keep = [s for s in range(self.own.shape[1]) if s != without]
        own, degraded = self.own[:, keep].mean(axis=1), self.degraded[:, keep].mean(axis=1)
        own = np.maximum(own, 1e-3 * own.max())  # sums over few slices can be negative
        degraded = np.maximum(degraded, 1e-3 * degraded.max())
        return np.asarray(np.log(own) - np.log(np.maximum(degraded + variance * self.noise, 0.02 * degraded)))


def estimate(
    volume: NDArray[np.floating], spacing_mm: Sequence[float], *, kind: str = "slice", noise: float | None = None
) -> Thickness:
    """The thickness of the slices of `volume` (slices first: (z, y, x)), whose profile has the shape `kind`.

    spacing_mm: (z, y, x). noise: the most that its standard deviation can be, in units of the volume; None: estimated.
    Raises InputError if the volume cannot tell: few slices, in-plane not finer, flat, or contradicting itself.
    """
    _refuse(volume.shape, spacing_mm)
    y = np.nan_to_num(np.asarray(volume, np.float32), posinf=0.0, neginf=0.0)
    if noise is None:
        middle = len(y) // 2
        inner = y[max(0, middle - 24) : middle + 24].astype(np.float64)[None]
        noise = noise_sigma(inner, np.ones(inner.shape, bool), rician=False)[0]
    found = [evidence(y, spacing_mm, axis, kind) for axis in (1, 2)]
    (log, sd), single = _posterior(found, noise**2)
    sd = math.hypot(sd, (single[0][0] - single[1][0]) / 2)  # axes that disagree were not foreseen by DIFFERENCES
    spacing = float(spacing_mm[0])
    one, other = (spacing * math.exp(m) for m, _ in single)
    if sd > TOO_UNSURE:
        raise _untold(f"its in-plane axes say {one:.3g} and {other:.3g} mm, unsurely")
    if not KNOWN[0] <= math.exp(log) <= KNOWN[1]:
        raise _untold(f"{math.exp(log):.2g} of the slice spacing, as it looks, is beyond {KNOWN[0]:g} to {KNOWN[1]:g}")
    low, high = (spacing * math.exp(log + way * INTERVAL * sd) for way in (-1, 1))
    return Thickness(mm=spacing * math.exp(log), low_mm=low, high_mm=high, by_axis_mm=(one, other))


def _refuse(shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    """Raise InputError if a volume of this grid cannot tell."""
    if shape[0] < MIN_SLICES_SEEN:
        raise _untold(f"there are {shape[0]} slices, and it takes {MIN_SLICES_SEEN}")
    if FINER * max(spacing_mm[1:]) > spacing_mm[0]:
        raise _untold("the samples in-plane are not much finer than the slices")
    if min(n * t for n, t in zip(shape[1:], spacing_mm[1:], strict=True)) < MIN_SLICES_SEEN * spacing_mm[0]:
        raise _untold("the slices are too small in-plane")


def _untold(why: str) -> InputError:
    return InputError(
        what="the slice thickness cannot be estimated from this volume", why=why, fix="give --slice-thickness MM"
    )


def evidence(volume: NDArray[np.float32], spacing_mm: Sequence[float], axis: int, kind: str) -> Evidence:
    """What lines along in-plane `axis` (1 or 2) say, degraded by each of `CANDIDATES`. Raises InputError if flat."""
    third = 3 - axis
    y = np.ascontiguousarray(volume.transpose(0, axis, third))  # through-plane, compared, third
    scale = decimal_fraction(spacing_mm[0]) / decimal_fraction(spacing_mm[axis])
    reach = max(3, round(5 * spacing_mm[0] / spacing_mm[third]))  # as far as five slices
    bright = BODY * float(np.percentile(y[::2, ::2, ::2], 99))
    blurred = _degraded(y, scale, kind, 1.0)[0]
    body = uniform_filter(blurred, (3, 3, reach // 2 | 1)) > bright
    own, degraded, noise = [], [], []
    for taps in DETAIL:
        count = y.shape[2] - len(taps) + 1
        fine = np.sum([np.float32(tap) * y[:, :, n : n + count] for n, tap in enumerate(taps)], axis=0)
        half = len(taps) // 2
        weight = _weight(_degraded(fine, scale, kind, 1.0)[0], body[:, :, half : half + count], reach)
        shares = [_lags(weight, a).mean(axis=0) for a in (0, 1)]
        rows = []
        for ratio in CANDIDATES:
            lines, gains = _degraded(fine, scale, kind, ratio)
            lines *= weight
            white = float(np.dot(taps, taps)) * (shares[0] * gains[0] * [1, 0, 0] - shares[1] * gains)
            rows.append([_lags(lines, a) @ BANDS.T for a in (0, 1)] + [BANDS @ white])
        own.append(np.stack([row[0] for row in rows]))
        degraded.append(np.stack([row[1] for row in rows]))
        noise.append(np.stack([row[2] for row in rows]))
    return Evidence(np.concatenate(own, -1), np.concatenate(degraded, -1), np.concatenate(noise, -1))


def _degraded(
    lines: NDArray[np.float32], scale: Fraction, kind: str, ratio: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Axis 1 degraded by a profile of `ratio` spacings, and what that makes of white noise: covariances at lags 0-2."""
    place = Placement(int(lines.shape[1] / scale), lines.shape[1], scale, (scale - 1) / 2)
    matrix = axis_matrix(place, Profile(kind, ratio), ratio * float(scale))
    spread = (matrix @ matrix.T).tocsr()
    return along(matrix, lines, 1).astype(np.float32), np.array([spread.diagonal(k).mean() for k in range(3)])


def _weight(lines: NDArray[np.float32], body: NDArray[np.bool_], reach: int) -> NDArray[np.float32]:
    """One over the local energy's root, within the body. Raises InputError if there is none."""
    energy = uniform_filter(lines * lines, (5, 5, reach))
    known = body & (energy > 0)
    if known.mean() < 0.003:
        raise _untold("it is flat, or all but empty")
    weight = known / np.sqrt(energy + 0.1 * energy[known].mean())
    return np.asarray(weight / np.sqrt((weight**2).mean()), np.float32)


def _lags(lines: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    """Covariances (slab, 3) at lags 0, 1, 2 along an axis; slabs along the last one."""
    z = np.moveaxis(lines, axis, 0)
    products = [np.einsum("ijk,ijk->k", z[k:], z[: len(z) - k]) / z[k:, :, 0].size for k in range(3)]
    bounds = np.linspace(0, lines.shape[2], SLABS + 1).astype(int)
    parts = [[p[start:stop].mean() for start, stop in pairwise(bounds)] for p in products]
    return np.array(parts, np.float64).T


def _posterior(found: Sequence[Evidence], most_noise: float) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """(mean, standard deviation) of the log of thickness over spacing: of all axes together, and of each alone.

    The axes share one volume, so together they count as one of them: the mean of their log likelihoods.
    """
    tried = np.log(CANDIDATES)
    logs = np.linspace(tried[0], tried[-1], 121)
    power = np.vander(tried, 4)
    between = np.vander(logs, 4) @ np.linalg.pinv(power)
    noises = most_noise * np.linspace(0, 1.1, 12)
    prior = ((logs - math.log(USUAL)) / SPREAD) ** 2
    costs = []
    for one in found:
        precision = np.linalg.inv(DIFFERENCES + _jackknife(one))
        off = np.stack([between @ one.residual(n) for n in noises])
        costs.append(np.einsum("nti,ij,ntj->nt", off, precision, off))
    single = [_moments(cost + prior, logs) for cost in costs]
    return _moments(np.mean(costs, axis=0) + prior, logs), single


def _jackknife(one: Evidence) -> NDArray[np.float64]:
    """Covariance of the residuals of this very volume, where its slices are as thick as they are apart."""
    middle = CANDIDATES.index(1.0)
    left = np.stack([one.residual(0.0, s)[middle] for s in range(SLABS)])
    return np.asarray((SLABS - 1) * np.cov(left.T, bias=True))


def _moments(cost: NDArray[np.float64], logs: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation over thickness of exp(-cost / 2) (noise, thickness), summed over the noise."""
    share = np.exp(-0.5 * (cost - cost.min())).sum(axis=0)
    share /= share.sum()
    mean = float(share @ logs)
    return mean, math.sqrt(float(share @ (logs - mean) ** 2))


def of_source(source: Source) -> Thickness:
    """The estimate for an open volume, from a bounded part of it. Raises InputError if it cannot tell."""
    header = source.header
    axis = header.slice_axis
    number = next((n for n, channel in enumerate(header.channels) if channel.kind == "image"), None)
    if axis is None or number is None or header.grid.frame.unit != "mm":
        raise _untold("it is no volume of slices in millimetres")
    upright = TurnedSource(source, Orientation.upright(header.grid, axis))
    grid = upright.header.grid
    _refuse(grid.shape, grid.spacing)
    return estimate(upright.read(_centre(grid.shape))[number], grid.spacing, kind=_kind(header, number, axis))


def _kind(header: Header, channel: int, axis: int) -> str:
    """The shape of the header's profile: `cosine` of CT, else `slice`."""
    own = header.channels[channel].profiles[axis]
    return own.kind if own.in_mm else "slice"


def _centre(shape: Sequence[int]) -> Box:
    """The middle of a volume (z, y, x), about `MOST_SAMPLES` at most: fewer slices, down to 48, then less of each."""
    slices = min(shape[0], max(48, MOST_SAMPLES // (shape[1] * shape[2])))
    share = min(1.0, math.sqrt(MOST_SAMPLES / (slices * shape[1] * shape[2])))
    lengths = (slices, *(max(1, int(n * share)) for n in shape[1:]))
    starts = tuple((n - length) // 2 for n, length in zip(shape, lengths, strict=True))
    return Box(starts, tuple(a + n for a, n in zip(starts, lengths, strict=True)))


def told_by_samples(source: Source, header: Header) -> Header:
    """`header` of a source, with the thickness that its samples tell where the file itself names none.

    Raises InputError if they cannot tell.
    """
    stated = header.facts.get("thickness_mm")
    if all(channel.kind != "image" for channel in header.channels):
        return header  # classes are repeated, however thick the slices
    if header.slice_axis is not None and stated is not None and stated.origin != "assumed":
        return header
    found = of_source(source)
    axis, value = header.slice_axis or 0, float(f"{found.mm:.3g}")
    spacing = header.grid.spacing[axis]
    channels = tuple(
        replace(c, profiles=tuple(Profile(_kind(header, n, axis), value) if a == axis else p for a, p in own))
        for n, c in enumerate(header.channels)
        for own in [list(enumerate(c.profiles))]
    )
    facts = {
        "thickness_mm": Fact(value, "mm", "estimated"),
        "gap_mm": Fact(round(spacing - value, 3), "mm", "estimated"),
        "thickness_low_mm": Fact(float(f"{found.low_mm:.3g}"), "mm", "estimated, 90 %"),
        "thickness_high_mm": Fact(float(f"{found.high_mm:.3g}"), "mm", "estimated, 90 %"),
    }
    said = f"the slice thickness was estimated from the samples: {found}; pass --slice-thickness MM if you know it"
    problems = tuple(p for p in header.problems if not p.startswith(ASSUMED))
    return replace(header, channels=channels, facts={**header.facts, **facts}, problems=(*problems, said))
