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
from pipelines.grid import Box, Grid, Orientation, Placement, fine_length
from pipelines.labels import Samples, refuse_labels
from pipelines.likeness import statistics, unlike
from pipelines.planning import Calibration, ChannelCalibration, Plan
from pipelines.projection import EXPLAINED, stable_weight, stein_weight

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

PATCH = 7
"""Side of the patches, in-plane, whose principal components are looked at."""

MOST_PATCHES = 40_000
"""About: they are thinned out evenly where there are more."""

FEWEST_PATCHES = 4 * PATCH**2
"""Fewer say too little about their covariance."""

ROUNDING = 12**-0.5
"""Standard deviation of what rounding to whole numbers does."""

FEWEST_COEFFICIENTS = 60
"""Their median absolute deviation is within some 15 % of the noise; fewer say nothing."""

MAD_PER_SIGMA = 0.6744897501960817
"""Median absolute deviation of a Gaussian over its standard deviation."""


def calibrate(plan: Plan, read: Callable[[Box], tuple[NDArray[np.floating], NDArray[np.bool_]]]) -> Calibration:
    """The calibration of a plan. read: box -> (samples (c, *box), valid). Raises InputError for a label map."""
    upright = Orientation.upright(plan.coarse, plan.slice_axis)
    shape, read = upright.axes(plan.coarse.shape), turned(read, plan.coarse, upright)
    values, mask = window_samples(shape, read)
    most_noise = plan.card.noise_over_scale
    channels = []
    for number, channel in enumerate(plan.channels):
        v = values[:, number].astype(np.float64)
        m = mask[:, number]
        if channel.treatment != "nearest" and plan.kind != "image":
            refuse_labels((v, m), shape, _one_channel(read, number), channel.name)
        known = v[m]
        low, middle, high = np.quantile(known, [0.01, 0.5, 0.99]) if known.size else (0.0, 0.0, 0.0)
        if channel.treatment == "nearest":
            sigma, method = 0.0, "none"
        elif plan.noise == "auto":
            sigma, method = noise_sigma(v, m, rician=channel.noise_model == "rician")
        else:
            sigma, method = float(plan.noise), "told"
        weight = _weight(plan, upright, number, v, m, sigma) if channel.project else 0.0
        scale = float(high - low) or 1.0
        refined = channel.treatment == "network" and (most_noise is None or sigma / scale <= most_noise)
        odd = unlike(statistics(v, m, scale), plan.card.typical) if refined else ""
        refined = refined and not (odd and plan.strict)
        channels.append(ChannelCalibration(float(middle), scale, sigma, method, weight, refined, odd))
    return Calibration(tuple(channels))


def _one_channel(
    read: Callable[[Box], tuple[NDArray[np.floating], NDArray[np.bool_]]], number: int
) -> Callable[[Box], Samples]:
    def one(box: Box) -> Samples:
        values, valid = read(box)
        return values[number], valid[number]

    return one


def turned(
    read: Callable[[Box], tuple[NDArray[np.floating], NDArray[np.bool_]]], grid: Grid, orientation: Orientation
) -> Callable[[Box], tuple[NDArray[np.floating], NDArray[np.bool_]]]:
    """`read` of an array on `grid`, along other axes."""
    back, shape = orientation.inverse, orientation.axes(grid.shape)

    def one(box: Box) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        values, valid = read(back.box(box, shape))
        return orientation.array(values), orientation.array(valid)

    return one


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
            count = min(WINDOWS_PER_AXIS, -(-n // length))  # overlapping rather than leaving a side unseen
            starts.append(sorted({round(k * (n - length) / max(1, count - 1)) for k in range(count)}))
            lengths.append(length)
    for start in np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(shape)):
        yield Box(tuple(int(s) for s in start), tuple(int(s) + n for s, n in zip(start, lengths, strict=True)))


def noise_sigma(values: NDArray[np.float64], valid: NDArray[np.bool_], *, rician: bool) -> tuple[float, str]:
    """(standard deviation of the noise in input units, how it was found) from windows (window, ..., y, x).

    rician: magnitude MR, whose background is Rayleigh: believed where four estimates of it agree. Else, and where they
    do not: the least principal component of small patches (Pyatykh, Hesser and Zheng 2013), for in some direction the
    image is flat and only noise is left. Between holes, and of few samples: the median absolute deviation (Donoho and
    Johnstone 1994) of the diagonal band of the 5/3 wavelet. Whole numbers have at least the noise of rounding. Error on
    known noise: see tests and `tests/bench/bench_noise.py`.
    """
    sigma, method = _noise_found(values, valid, rician=rician)
    known = values[valid]
    if sigma > 0 and sigma < ROUNDING and np.all(known == np.rint(known)):
        return ROUNDING, "rounding to whole numbers"
    return sigma, method


def _noise_found(values: NDArray[np.float64], valid: NDArray[np.bool_], *, rician: bool) -> tuple[float, str]:
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
    patches = _patches(values, valid)
    if len(patches) >= FEWEST_PATCHES:
        return _least_component(patches), "least principal component"
    # too small, or so many holes that few patches are whole: every coefficient that sees none
    seen = minimum_filter(valid, (1,) * (valid.ndim - 2) + (3, 3))[..., 1:-1, 1:-1]
    diagonal = _diagonal(values)[seen & (values != 0)[..., 1:-1, 1:-1]]
    if np.count_nonzero(diagonal) < FEWEST_COEFFICIENTS:
        return 0.0, "none"
    return float(np.median(np.abs(diagonal)) / MAD_PER_SIGMA), "wavelet (diagonal band)"


def _least_component(patches: NDArray[np.float64]) -> float:
    """Standard deviation along the least principal component of (n, d), free of the bias of a sample's least one."""
    count, directions = patches.shape
    variances = np.maximum(np.linalg.eigvalsh(np.cov(patches.T)), 0.0)
    spread = np.sqrt(directions / count)
    # of white noise the sample variances lie between (1 - spread)^2 and (1 + spread)^2 (Marchenko and Pastur 1967)
    flat = np.count_nonzero(variances <= variances[0] * ((1 + spread) / (1 - spread)) ** 2)
    return float(np.sqrt(variances[0]) / (1 - np.sqrt(flat / count)))


def _patches(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """In-plane patches (n, PATCH * PATCH) that are valid, not constant and not background."""
    if min(values.shape[-2:]) < PATCH:
        return np.zeros((0, PATCH**2))
    step = max(1, round((values.size / MOST_PATCHES) ** 0.5))

    def cut(array: NDArray[Any]) -> NDArray[Any]:
        views = np.lib.stride_tricks.sliding_window_view(array, (PATCH, PATCH), axis=(-2, -1))
        return views[..., ::step, ::step, :, :].reshape(-1, PATCH**2)

    patches: NDArray[np.float64] = cut(values)
    kept = cut(valid).all(axis=1) & (np.ptp(patches, axis=1) > 0) & ((patches == 0).mean(axis=1) < 0.1)
    return np.asarray(patches[kept], np.float64)


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


def _weight(
    plan: Plan,
    upright: Orientation,
    channel: int,
    values: NDArray[np.float64],
    valid: NDArray[np.bool_],
    sigma: float,
) -> float:
    """The `l` of least Stein risk on the windows that explains them; the least stable one for clean data.

    upright: what turned the windows.
    """
    least = stable_weight(plan.degradation(channel))
    if sigma == 0:
        return least
    shape = values.shape[1:]
    whole = upright.axes(plan.places)
    places = tuple(_window_place(place, n) if place.changed else place for place, n in zip(whole, shape, strict=True))
    matrices: list[sparse.csr_array | None] = []
    splines: list[sparse.csr_array | None] = []
    for own, place in zip(upright.order, places, strict=True):
        if not plan.places[own].changed:
            matrices.append(None)
            splines.append(None)
            continue
        profile = Profile.parse(plan.channels[channel].spec[own])
        matrices.append(axis_matrix(place, profile, width_in_fine(profile, plan.coarse, own, place)))
        splines.append(interpolation.matrix(place, "cubic"))
    fine_shape = tuple(p.fine if m is not None else n for p, m, n in zip(places, matrices, shape, strict=True))
    model = Degradation(shape, fine_shape, tuple(matrices))
    full = valid.reshape(len(valid), -1).mean(axis=1) > 0.8
    chosen = values[full] if full.any() else values
    weights, risk, residual = stein_weight(chosen, model, tuple(splines), sigma)
    explained = residual <= EXPLAINED * sigma
    explained[0] = True  # the least weight, if even that leaves more
    return max(least, float(weights[int(np.argmin(np.where(explained, risk, np.inf)))]))


def _window_place(place: Placement, length: int) -> Placement:
    """The same scale on a window of its own field of view."""
    fine = fine_length(length, place.scale)
    return Placement(length, fine, place.scale, (place.scale - 1) / 2 + (fine - length * place.scale) / 2)
