"""What a finer image of the same place says about a coarse one: its detail, weighed by how both go together.

A guide g on the fine grid is made coarse by the input's own forward model; what that takes away, d = g - cubic(A g), is
detail that the input cannot hold. Where the high frequencies of both agree on the coarse grid, those of the input are
a weighed sum of the guides' (`gains`: least squares in a small window), and so is its detail. How much blunter or
sharper the input's sensor is than the guide's (`kernel`) is the same at all scales, hence told by the coarse grid too.
After Garzelli, Nencini and Capobianco 2008 (context-based detail injection) and Aiazzi et al. 2006 (sensor MTF).

Arrays are (..., y, x): *coarse on the input's grid, *fine on the guide's. Both in units of their own range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from pipelines.degradation import along

HIGH_SIGMA = 1.0
"""Coarse samples: what a Gaussian of this width leaves out is a high frequency."""

WINDOW_SIGMA = 1.0
"""Coarse samples: width of the window in which guides are weighed."""

CUT = 2.5
"""Gaussians end at so many standard deviations."""

RIDGE = 0.03
"""Pull towards the weights of the whole image, over the mean square of a guide's high frequencies."""

REACH = 7
"""Coarse samples on each side that a weight between two coarse samples depends on."""

ORDERS = 3
"""Terms of the kernel: the detail, its Laplacian and the Laplacian of that. More fit noise (measured)."""

KERNEL_REACH = ORDERS - 1
"""Fine samples on each side that the kernel needs."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Relation:
    """How one channel goes with the guides over the whole image: one number per guide, and the kernel.

    gains: least-squares weights of the guides' high frequencies; power: their mean squares; ratio: root of the mean
    square of the channel's own over each of them, with the sign of their correlation; kernel: (ORDERS,).
    """

    gains: tuple[float, ...]
    power: tuple[float, ...]
    ratio: tuple[float, ...]
    kernel: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Lifting:
    """From coarse samples to fine ones: matrices (fine, coarse) per axis of the spline and of linear interpolation."""

    cubic: tuple[sparse.csr_array, ...]
    linear: tuple[sparse.csr_array, ...]

    def smooth(self, image: NDArray[np.floating]) -> Array:
        """(..., *coarse) -> (..., *fine) by the cubic spline."""
        return _lifted(self.cubic, image)

    def straight(self, image: NDArray[np.floating]) -> Array:
        """The same by linear interpolation."""
        return _lifted(self.linear, image)


def _lifted(matrices: Sequence[sparse.csr_array], image: NDArray[np.floating]) -> Array:
    result = np.asarray(image, np.float64)
    for a, matrix in enumerate(matrices):
        result = along(matrix, result, result.ndim - len(matrices) + a)
    return result


def high(image: NDArray[np.floating]) -> Array:
    """High frequencies of (..., *coarse)."""
    return np.asarray(image, np.float64) - _blurred(image, HIGH_SIGMA)


def _blurred(image: NDArray[np.floating], sigma: float) -> Array:
    widths = (0.0,) * (image.ndim - 2) + (sigma, sigma)
    return np.asarray(ndimage.gaussian_filter(np.asarray(image, np.float64), widths, mode="mirror", truncate=CUT))


def sharpened(image: NDArray[np.floating], kernel: Sequence[float]) -> Array:
    """The kernel applied to (..., *fine): a sum of the image and its Laplacians."""
    term = np.asarray(image, np.float64)
    result = kernel[0] * term
    for weight in kernel[1:]:
        term = _laplacian(term)
        result += weight * term
    return result


def _laplacian(image: Array) -> Array:
    taps = [1.0, -2.0, 1.0]
    axes = (image.ndim - 2, image.ndim - 1)
    return np.asarray(sum(ndimage.correlate1d(image, taps, axis=a, mode="mirror") for a in axes))


def local_gains(channel: Array, guides: Array, relation: Relation) -> Array:
    """Weight of each guide (g, *coarse) around each coarse sample, of high frequencies (*coarse) and (g, *coarse).

    Least squares in a Gaussian window, drawn towards the weights of the whole image where the window says little.
    """
    count = len(guides)
    prior = np.array(relation.gains)
    rest = channel - np.tensordot(prior, guides, 1)
    normal = np.empty((*channel.shape, count, count))
    right = np.empty((*channel.shape, count))
    for i in range(count):
        for j in range(i, count):
            normal[..., i, j] = normal[..., j, i] = _blurred(guides[i] * guides[j], WINDOW_SIGMA)
        normal[..., i, i] += RIDGE * relation.power[i] + np.finfo(np.float32).tiny
        right[..., i] = _blurred(guides[i] * rest, WINDOW_SIGMA)
    return np.moveaxis(prior + np.linalg.solve(normal, right[..., None])[..., 0], -1, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Detail:
    """What the guides say of one channel, on the fine grid.

    added: (*fine), the detail to add to its interpolation; shared: (4, *fine) and of_guides: (g, 3, *fine), what a
    network sees of it: see `detail`.
    """

    added: Array
    shared: Array
    of_guides: Array


def detail(
    channel: Array, lowered: Array, guides: Array, lifting: Lifting, relation: Relation, *, held: tuple[slice, ...]
) -> Detail:
    """The detail of a channel (*coarse) from guides (g, *fine) and their coarse versions (g, *coarse).

    held: of the coarse samples, those inside the image, which `lifting` starts from. shared: the interpolation, the
    detail with and without the kernel, what the guides leave unexplained at the coarse scale; of_guides: each one's
    part of the detail, and its own detail and interpolation scaled to the channel.
    """
    cut: Any = (..., *held)
    highs, own = high(lowered), high(channel)
    gains = lifting.straight(local_gains(own, highs, relation)[cut])
    smooth = lifting.smooth(lowered[cut])
    missing = guides - smooth
    parts = gains * missing
    sharp = sharpened(parts, relation.kernel)
    unexplained = lifting.smooth(own[cut]) - (gains * lifting.smooth(highs[cut])).sum(axis=0)
    added = sharp.sum(axis=0)
    ratio = np.array(relation.ratio)[:, None, None]
    return Detail(
        added,
        np.stack([lifting.smooth(channel[cut]), added, parts.sum(axis=0), unexplained]),
        np.stack([sharp, ratio * missing, ratio * smooth], axis=1),
    )


class Relating:
    """Gathers, window by window, how a channel goes with its guides. Call `first` of all, then `second` of all.

    Sums of products only, so that the windows' order is all that the result depends on.
    """

    def __init__(self, guides: int) -> None:
        self._products = np.zeros((guides, guides))
        self._with_channel = np.zeros(guides)
        self._squares, self._count = 0.0, 0
        self._terms, self._with_terms = np.zeros((ORDERS, ORDERS)), np.zeros(ORDERS)

    def first(self, channel: Array, lowered: Array) -> None:
        """A window: samples (*coarse) of the channel and (g, *coarse) of the guides."""
        own, highs = high(channel).ravel(), high(lowered).reshape(len(lowered), -1)
        self._products += highs @ highs.T
        self._with_channel += highs @ own
        self._squares += float(own @ own)
        self._count += own.size

    @property
    def _plain(self) -> Relation:
        power = np.diag(self._products) / max(1, self._count)
        tiny = np.finfo(np.float32).tiny
        ridge = 1e-6 * np.diag(np.diag(self._products)) + tiny * np.eye(len(power))
        gains = np.linalg.solve(self._products + ridge, self._with_channel)
        own = np.sqrt(self._squares / max(1, self._count))
        ratio = np.where(self._with_channel < 0, -1.0, 1.0) * own / np.sqrt(power + tiny)
        ratio = np.where(power > 0, ratio, 0.0)
        return Relation(tuple(gains.tolist()), tuple(power.tolist()), tuple(ratio.tolist()), (1.0, 0.0, 0.0))

    def second(self, channel: Array, lowered: Array, lifting: Lifting, inner: tuple[slice, ...]) -> None:
        """The same window again; inner: of its fine samples, those far from where it was cut out of the image."""
        own, highs = high(channel), high(lowered)
        gains = lifting.straight(local_gains(own, highs, self._plain))
        term = (gains * lifting.smooth(highs)).sum(axis=0)
        terms = []
        for order in range(ORDERS):
            term = _laplacian(term) if order else term
            terms.append(term[inner].ravel())
        stacked = np.stack(terms)
        self._terms += stacked @ stacked.T
        self._with_terms += stacked @ lifting.smooth(own)[inner].ravel()

    @property
    def relation(self) -> Relation:
        """Of all windows."""
        scale = np.sqrt(np.diag(self._terms))
        seen = scale > 0
        kernel = np.array([1.0, *(0.0,) * (ORDERS - 1)])
        if seen.all():
            normal = self._terms / np.outer(scale, scale) + 1e-9 * np.eye(ORDERS)
            kernel = np.linalg.solve(normal, self._with_terms / scale) / scale
        plain = self._plain
        return Relation(plain.gains, plain.power, plain.ratio, tuple(kernel.tolist()))
