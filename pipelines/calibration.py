"""What needs pixels and yet must be one number for all tiles: intensity scale, noise, the projection's weight.

Computed once per run from windows that the grid fixes (not the tiling), by the rules that the plan names; frozen as
JSON beside the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import minimum_filter

from pipelines import interpolation
from pipelines.degradation import Degradation, Profile, axis_matrix, width_in_fine
from pipelines.errors import InputError
from pipelines.grid import Box, Placement, fine_length
from pipelines.planning import Calibration, ChannelCalibration, Plan
from pipelines.projection import stable_weight, stein_weight

WINDOWS_PER_AXIS = 4
"""Windows are spread evenly from edge to edge of the in-plane axes, corners included."""

WINDOW_SIDE = {2: 96, 3: 40}
"""Samples per in-plane axis of a window, per number of axes."""

WINDOW_DEPTH = 48
"""Slices of a window, from the middle of a volume."""

RAYLEIGH_AGREEMENT = 1.10
"""The four Rayleigh estimates of a background block may differ by this factor (Gudbjartsson and Patz 1995)."""

DARK_SHARE = 0.05
"""The darkest blocks must be background if there is one: tissue can look like Rayleigh by chance."""

RAYLEIGH_BLOCKS = 3
"""At least so many background blocks, and half of the darkest, must agree before they are believed."""

BLOCK = 16
"""Side of the blocks, in-plane, that noise is estimated in."""

QUIET_QUANTILE = 0.2
"""Of the blocks' estimates: the quieter ones hold less texture."""

QUIET_BIAS = 0.903
"""That quantile over the true deviation on white noise, blocks of 14 x 14 coefficients (a test measures it)."""

FEWEST_COEFFICIENTS = 400
"""Their median absolute deviation is within 10 % of the noise; fewer say nothing."""

MAD_PER_SIGMA = 0.6744897501960817
"""Median absolute deviation of a Gaussian over its standard deviation."""

LABEL_VALUES = 2000
"""At most so many different whole numbers, mostly equal to their neighbour, look like a label map."""

LABEL_FLATNESS = 0.9
"""Share of equal neighbours from which on they do."""


def calibrate(plan: Plan, read: Callable[[Box], tuple[NDArray[np.floating], NDArray[np.bool_]]]) -> Calibration:
    """The calibration of a plan. read: box -> (samples (c, *box), valid). Raises InputError for a label map."""
    values, mask = window_samples(plan.coarse.shape, read)
    most_noise = plan.card.noise_over_scale
    channels = []
    for number, channel in enumerate(plan.channels):
        v = values[:, number].astype(np.float64)
        m = mask[:, number]
        if channel.treatment != "nearest" and plan.model != "nearest":
            refuse_labels(v, m, channel.name)
        known = v[m]
        low, middle, high = np.quantile(known, [0.01, 0.5, 0.99]) if known.size else (0.0, 0.0, 0.0)
        if channel.treatment == "nearest":
            sigma, method = 0.0, "none"
        elif plan.noise == "auto":
            sigma, method = noise_sigma(v, m, rician=channel.noise_model == "rician")
        else:
            sigma, method = float(plan.noise), "told"
        weight = _weight(plan, number, v, m, sigma) if channel.project else 0.0
        scale = float(high - low) or 1.0
        refined = channel.treatment == "network" and (most_noise is None or sigma / scale <= most_noise)
        channels.append(ChannelCalibration(float(middle), scale, sigma, method, weight, refined))
    return Calibration(tuple(channels))


def window_samples(
    shape: tuple[int, ...], read: Callable[[Box], tuple[NDArray[np.floating], NDArray[np.bool_]]]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Samples and validity (window, c, *window shape) of the windows that the grid fixes."""
    samples, valid = zip(*(read(box) for box in windows(shape)), strict=True)
    return np.stack(samples), np.stack(valid)


def windows(shape: tuple[int, ...]) -> Iterator[Box]:
    """Equal boxes spread over the image: the in-plane axes from edge to edge, the slices from the middle."""
    side = WINDOW_SIDE[len(shape)]
    starts, lengths = [], []
    for axis, n in enumerate(shape):
        if len(shape) == 3 and axis == 0:
            depth = min(n, WINDOW_DEPTH)
            starts.append([(n - depth) // 2])
            lengths.append(depth)
        else:
            length = min(n, side)
            count = min(WINDOWS_PER_AXIS, max(1, n // length))
            starts.append(sorted({round(k * (n - length) / max(1, count - 1)) for k in range(count)}))
            lengths.append(length)
    for start in np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(shape)):
        yield Box(tuple(int(s) for s in start), tuple(int(s) + n for s, n in zip(start, lengths, strict=True)))


def refuse_labels(values: NDArray[np.float64], valid: NDArray[np.bool_], name: str) -> None:
    """Raise InputError if samples (window, ..., y, x) look like labels: few whole numbers in flat regions."""
    known = values[valid]
    known = known[known != 0]
    if known.size < 500 or np.any(known != np.rint(known)):
        return
    count = len(np.unique(known))
    flat = [_flatness(values, valid, axis) for axis in range(1, values.ndim)]
    # every axis counts, so that a ramp is no label map; thick slices of labels differ more from slice to slice
    if 1 < count <= LABEL_VALUES and min(flat[-2:]) >= LABEL_FLATNESS and min(flat) >= LABEL_FLATNESS / 2:
        raise InputError(
            what=f"channel {name} looks like a label map ({count} whole numbers in flat regions)",
            why="labels have no values between them",
            fix="use --model nearest to replicate them",
        )


def _flatness(values: NDArray[np.float64], valid: NDArray[np.bool_], axis: int) -> float:
    """Share of equal neighbours along an axis, among pairs that are valid and not both 0."""
    a, b = (np.moveaxis(values, axis, 0)[cut] for cut in (slice(1, None), slice(None, -1)))
    m, n = (np.moveaxis(valid, axis, 0)[cut] for cut in (slice(1, None), slice(None, -1)))
    pairs = m & n & ((a != 0) | (b != 0))
    return float(np.mean((a == b)[pairs])) if pairs.any() else 0.0


def noise_sigma(values: NDArray[np.float64], valid: NDArray[np.bool_], *, rician: bool) -> tuple[float, str]:
    """(standard deviation of the noise in input units, how it was found) from windows (window, ..., y, x).

    rician: magnitude MR, whose background is Rayleigh: believed where four estimates of it agree. Else, and where they
    do not: the median absolute deviation (Donoho and Johnstone 1994) of the finest diagonal band in the quieter blocks,
    with the high-pass [1 -2 1] of the 5/3 wavelet; a Haar band lets more texture through (1.2 to 2 times the noise on
    Sentinel-2). Error on known noise: see tests.
    """
    blocks, whole = _blocks(values, valid)
    if rician and len(blocks):
        estimates = np.stack(
            [
                blocks.std(axis=(1, 2)) / 0.6551364,
                blocks.mean(axis=(1, 2)) / 1.2533141,
                np.median(blocks, axis=(1, 2)) / 1.1774100,
                np.sqrt((blocks**2).mean(axis=(1, 2)) / 2),
            ]
        )
        positive = whole & (estimates.min(axis=0) > 0) & (blocks.min(axis=(1, 2)) >= 0)
        ratio = estimates.max(axis=0) / np.where(positive, estimates.min(axis=0), 1.0)
        dark = np.zeros(len(blocks), bool)
        dark[np.argsort(estimates[3])[: max(RAYLEIGH_BLOCKS, round(DARK_SHARE * len(blocks)))]] = True
        agreed = dark & positive & (ratio <= RAYLEIGH_AGREEMENT)
        if agreed.sum() >= max(RAYLEIGH_BLOCKS, dark.sum() / 2):
            reference = float(np.median(estimates[3][agreed]))
            alike = positive & (ratio <= RAYLEIGH_AGREEMENT) & (estimates[3] < 1.25 * reference)
            return float(np.median(estimates[3][alike])), "background (Rayleigh)"
    diagonal = _diagonal(blocks)
    informative = whole & (np.ptp(blocks, axis=(1, 2)) > 0) & ((blocks == 0).mean(axis=(1, 2)) < 0.1)
    if not informative.any():  # so many holes that no block is whole: every coefficient that sees none
        seen = minimum_filter(valid, (1,) * (valid.ndim - 2) + (3, 3))[..., 1:-1, 1:-1]
        known = _diagonal(values)[seen & (values != 0)[..., 1:-1, 1:-1]]
        if np.count_nonzero(known) < FEWEST_COEFFICIENTS:
            return 0.0, "none"
        return float(np.median(np.abs(known)) / MAD_PER_SIGMA), "wavelet (diagonal band between holes)"
    deviation = np.median(np.abs(diagonal[informative]), axis=(1, 2)) / MAD_PER_SIGMA
    return float(np.quantile(deviation, QUIET_QUANTILE) / QUIET_BIAS), "wavelet (diagonal band)"


def _diagonal(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The finest diagonal band of (..., y, x): unit gain for white noise."""
    return np.asarray(np.diff(np.diff(values, 2, axis=-2), 2, axis=-1) / 6)


def _blocks(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """In-plane blocks (n, side, side) and whether all their samples are valid."""
    side_y, side_x = (min(BLOCK, n - n % 2) for n in values.shape[-2:])
    if min(side_y, side_x) < 4:
        return np.zeros((0, 4, 4)), np.zeros(0, bool)
    ny, nx = values.shape[-2] // side_y, values.shape[-1] // side_x

    def cut(array: NDArray[Any]) -> NDArray[Any]:
        flat = array.reshape(-1, *array.shape[-2:])[:, : ny * side_y, : nx * side_x]
        tiled = flat.reshape(-1, ny, side_y, nx, side_x).swapaxes(2, 3)
        return tiled.reshape(-1, side_y, side_x)

    return cut(values), np.asarray(cut(valid).all(axis=(1, 2)))


def _weight(plan: Plan, channel: int, values: NDArray[np.float64], valid: NDArray[np.bool_], sigma: float) -> float:
    """The `l` of least Stein risk on the windows; the least stable one for clean data."""
    least = stable_weight(plan.degradation(channel))
    if sigma == 0:
        return least
    shape = values.shape[1:]
    places = tuple(
        _window_place(place, n) if place.changed else place for place, n in zip(plan.places, shape, strict=True)
    )
    matrices: list[sparse.csr_array | None] = []
    splines: list[sparse.csr_array | None] = []
    for a, place in enumerate(places):
        if not plan.places[a].changed:
            matrices.append(None)
            splines.append(None)
            continue
        profile = Profile.parse(plan.channels[channel].spec[a])
        matrices.append(axis_matrix(place, profile, width_in_fine(profile, plan.coarse, a, place)))
        splines.append(interpolation.matrix(place, "cubic"))
    fine_shape = tuple(p.fine if m is not None else n for p, m, n in zip(places, matrices, shape, strict=True))
    model = Degradation(shape, fine_shape, tuple(matrices))
    whole = valid.reshape(len(valid), -1).mean(axis=1) > 0.8
    chosen = values[whole] if whole.any() else values
    weights, risk = stein_weight(chosen, model, tuple(splines), sigma)
    return max(least, float(weights[int(np.argmin(risk))]))


def _window_place(place: Placement, length: int) -> Placement:
    """The same scale on a window of its own field of view."""
    fine = fine_length(length, place.scale)
    return Placement(length, fine, place.scale, (place.scale - 1) / 2 + (fine - length * place.scale) / 2)
