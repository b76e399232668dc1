"""Invalid samples of an ingested image, filled from valid neighbours so that no filter or network meets a hole.

Normalised Gaussian smoothing; beyond its reach, the channel's mean. The mask stays, so filled values never count as
measured. Filling reads valid samples only, so the order of the blocks does not matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.grid import Box
from pipelines.store import Store

SIGMA = 3.0
"""Standard deviation of the smoothing, in coarse samples."""

REACH = 12
"""Samples beyond which a hole is filled with the mean."""


def fill_invalid(folder: Path) -> None:
    """Fill the invalid samples of WORK/coarse.zarr in place."""
    store = Store(folder)
    samples, valid = store.array(store.coarse), store.array(store.coarse, "valid")
    shape = tuple(int(n) for n in samples.shape[1:])
    step = tuple(int(c) * 4 for c in samples.chunks[1:])
    starts = np.stack(np.meshgrid(*[range(0, n, s) for n, s in zip(shape, step, strict=True)], indexing="ij"), -1)
    boxes = [
        Box(tuple(int(v) for v in start), tuple(min(int(v) + s, n) for v, s, n in zip(start, step, shape, strict=True)))
        for start in starts.reshape(-1, len(shape))
    ]
    index: Any
    for c in range(int(samples.shape[0])):
        holes, total, count = [], 0.0, 0
        for box in boxes:
            index = (c, *box.slices)
            known, values = np.asarray(valid[index], bool), np.asarray(samples[index], np.float64)
            total, count = total + float(values[known].sum()), count + int(known.sum())
            if not known.all():
                holes.append(box)
        mean = total / count if count else 0.0
        for box in holes:
            outer = box.grow(REACH).clip(shape)
            index = (c, *outer.slices)
            filled = _filled(np.asarray(samples[index]), np.asarray(valid[index], bool), mean)
            index = (c, *box.slices)
            samples[index] = filled[box.within(outer).slices]


def _filled(values: NDArray[np.floating], known: NDArray[np.bool_], mean: float) -> NDArray[np.floating]:
    weight = ndimage.gaussian_filter(known.astype(np.float64), SIGMA, mode="constant", radius=REACH)
    total = ndimage.gaussian_filter(
        np.where(known, values, 0.0).astype(np.float64), SIGMA, mode="constant", radius=REACH
    )
    near = weight > 1e-6
    smooth = np.where(near, total / np.where(near, weight, 1.0), mean)
    return np.where(known, values, smooth).astype(values.dtype)
