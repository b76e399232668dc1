"""Other contrasts of the same scene: curves of intensity, regions with intensities of their own, smooth fields.

All are made of the fine image, before the forward model, so that a pair stays what a sensor would have measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]
Curve = Callable[[Array], Array]
"""Intensities -> intensities; the 1st and 99th percentile of the scene are 0 and 1 before it."""

REGIONS = (4, 10)
"""Of a synthetic contrast that is made of an image: least and most."""


def curve(rng: np.random.Generator) -> Curve:
    """Gamma, inversion, a rising curve or any; the last two mixed with the image itself."""
    kind = str(rng.choice(["gamma", "invert", "rising", "any"], p=[0.45, 0.2, 0.2, 0.15]))
    if kind == "gamma":
        power = float(np.exp(rng.uniform(-0.6, 0.6)))
        return lambda x: np.sign(x) * np.abs(x) ** power
    if kind == "invert":
        return lambda x: 1.2 - x
    knots = int(rng.integers(6, 11))
    values = rng.random(knots)
    values = np.cumsum(values) / values.sum() if kind == "rising" else values
    share, at = float(rng.uniform(0.3, 1.0)), np.linspace(-0.1, 1.2, knots)
    return lambda x: share * np.interp(x, at, values) + (1 - share) * x


def regions(rng: np.random.Generator, quantiles: Sequence[float]) -> Curve:
    """Intensities at random for regions of similar ones, and what is left of the differences within them.

    quantiles: of the scene; regions have about the same number of its samples. Unlike `curve` it jumps, so that edges
    appear where there were faint ones. After SynthSR (Billot et al. / Iglesias et al. 2021), without its label maps.
    """
    count = int(rng.integers(REGIONS[0], REGIONS[1] + 1))
    edges = np.unique(np.quantile(quantiles, np.sort(rng.random(count - 1))))
    means = rng.random(len(edges) + 1)
    slope = rng.normal(0.0, 0.5, len(edges) + 1)
    centres = np.concatenate([[edges[0]], (edges[1:] + edges[:-1]) / 2, [edges[-1]]])

    def made(x: Array) -> Array:
        region = np.searchsorted(edges, x)
        return np.asarray(means[region] + slope[region] * (x - centres[region]))

    return made


def of_labels(rng: np.random.Generator, classes: Array) -> Array:
    """An image of a label map: a mean and a texture of its own for each class, edges as soft as a sample."""
    values, region = np.unique(classes, return_inverse=True)
    region = region.reshape(classes.shape)
    means, spread = rng.random(len(values)), rng.uniform(0.0, 0.08, len(values))
    texture = ndimage.gaussian_filter(rng.normal(size=classes.shape), rng.uniform(0.3, 1.2))
    texture /= max(float(texture.std()), 1e-6)
    return np.asarray(ndimage.gaussian_filter(means[region] + spread[region] * texture, 0.5))


def bias_field(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """A smooth factor around 1: the exponential of a polynomial of the second order over the patch."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    total: Array = np.zeros(tuple(shape))
    for k, x in enumerate(axes):
        total = total + rng.normal(0, 0.12) * x + rng.normal(0, 0.08) * x**2
        for y in axes[k + 1 :]:
            total = total + rng.normal(0, 0.08) * x * y
    return np.asarray(np.exp(total))
