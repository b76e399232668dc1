"""Nearest, linear and cubic B-spline interpolation as one sparse matrix per axis, and the floor's first half.

Edge samples are held. The cubic equals SciPy's order 3 with mode `nearest` (Thevenaz, Blu and Unser 2000, Interpolation
Revisited), with the prefilter's tail cut at 1e-13 of its peak so that a row touches few samples and tiles agree.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipelines.degradation import along
from pipelines.grid import Placement

POLE = np.sqrt(3.0) - 2.0
"""Pole of the cubic B-spline prefilter."""

PREFILTER_REACH = 22
"""Taps of the prefilter on each side: POLE ** 22 is 3e-13."""

REACH = {"nearest": 1, "linear": 1, "cubic": 13}
"""Coarse samples on each side that a fine sample depends on, to 1e-7 for the cubic."""


@lru_cache(maxsize=64)
def matrix(place: Placement, kind: str) -> sparse.csr_array:
    """The interpolation (fine, coarse) along one axis; rows sum to 1. kind: nearest, linear or cubic."""
    u = place.positions()
    if kind == "nearest":
        taps = np.floor(u + 0.5 - 1e-9)[:, None]  # a tie goes to the lower sample
        weights = np.ones_like(taps)
    elif kind == "linear":
        low = np.floor(u)
        taps = np.stack([low, low + 1], axis=1)
        weights = np.stack([1 - (u - low), u - low], axis=1)
    else:
        taps, weights = _cubic_taps(u)
    columns = np.clip(taps, 0, place.coarse - 1).astype(int)  # edge samples are held
    rows = np.broadcast_to(np.arange(len(u))[:, None], columns.shape)
    result = sparse.csr_array((weights.ravel(), (rows.ravel(), columns.ravel())), shape=(place.fine, place.coarse))
    result.sum_duplicates()
    return result


def _cubic_taps(u: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Taps and weights of the spline through the samples: B-spline weights times the prefilter, each (fine, taps)."""
    low = np.floor(u)
    f = u - low
    spline = np.stack([(1 - f) ** 3, 4 - 6 * f**2 + 3 * f**3, 1 + 3 * f + 3 * f**2 - 3 * f**3, f**3], axis=1) / 6
    k = np.arange(-PREFILTER_REACH, PREFILTER_REACH + 1)
    prefilter = -6 * POLE / (1 - POLE**2) * POLE ** np.abs(k)
    prefilter /= prefilter.sum()
    width = len(k) + 3
    weights = np.zeros((len(u), width))
    for tap in range(4):
        weights[:, tap : tap + len(k)] += spline[:, tap : tap + 1] * prefilter
    taps = np.asarray(low[:, None] - 1 - PREFILTER_REACH + np.arange(width), np.float64)
    return taps, weights


def interpolate(image: NDArray[np.floating], places: tuple[Placement, ...], kind: str) -> NDArray[np.float64]:
    """A whole image (..., *coarse) on the fine samples (..., *fine)."""
    result = np.asarray(image, np.float64)
    for a, place in enumerate(places):
        if place.changed:
            result = along(matrix(place, kind), result, result.ndim - len(places) + a)
    return result
