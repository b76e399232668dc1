"""How much of the detail that a product adds is right, missing or wrong.

After opensr-test (Aybar et al. 2024, A Comprehensive Benchmark for Optical Remote Sensing Image Super-Resolution, IEEE
GRSL), for arrays of any number of axes. Its harmonisation (histogram matching and a shift) is left out: here product
and truth have one grid and one radiometry by construction, and what differs is an error.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

DETAIL = ("improvement", "omission", "hallucination")
"""Classes of a sample: nearest to the truth, to the measured image, to neither."""

STABLE = 0.01
"""Samples at which measured image, product and truth differ by less are not judged [of the peak] (opensr-test)."""

SHARPNESS = 0.8
"""Of the borders between the three classes (opensr-test: calibrated by how people judge)."""

Array = NDArray[np.float64]


def detail_classes(lifted: Array, product: Array, truth: Array) -> NDArray[np.int8]:
    """The class of each sample as an index into DETAIL, -1 where nothing was to be added and nothing was (*axes).

    lifted: the measured image on the fine grid, linearly interpolated; all (channel, *axes) over the peak of their
    channel. NaN is not judged. With the distances (mean of the absolute differences of the channels) im = product to
    truth and om = product to measured, both over measured to truth, and h = im + om - 1 >= 0, the class is the least of
    im + om (1 - exp(-g h)), om + im (1 - exp(-g h)), exp(-g im om), with g = SHARPNESS.
    """
    reference, im, om = (np.abs(a - b).mean(axis=0) for a, b in ((lifted, truth), (product, truth), (product, lifted)))
    with np.errstate(invalid="ignore"):
        judged = np.maximum(np.maximum(reference, im), om) > STABLE
    scale = np.maximum(reference[judged], 1e-9 * STABLE)  # nothing was to be added: anything is far from both
    im, om = im[judged] / scale, om[judged] / scale
    far = 1.0 - np.exp(-SHARPNESS * np.maximum(im + om - 1.0, 0.0))
    scores = np.stack([im + om * far, om + im * far, np.exp(-SHARPNESS * im * om)])
    classes = np.full(judged.shape, -1, np.int8)
    classes[judged] = scores.argmin(axis=0)
    return classes


def detail_shares(classes: NDArray[np.int8]) -> tuple[float, float, float]:
    """(improvement, omission, hallucination) as shares of the judged samples; NaN without any."""
    counts = np.bincount(classes[classes >= 0].ravel(), minlength=3)
    total = counts.sum()
    if not total:
        return math.nan, math.nan, math.nan
    return float(counts[0] / total), float(counts[1] / total), float(counts[2] / total)
