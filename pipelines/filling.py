"""Invalid samples of an ingested image, filled from valid neighbours so that no filter or network meets a hole.

Normalised Gaussian smoothing; beyond its reach, the channel's mean. The mask stays, so filled values never count as
measured. Filling reads valid samples only, so the order of the blocks does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.grid import Box
from pipelines.image import Source
from pipelines.store import Store, attempt, own_chunks

SIGMA = 3.0
"""Standard deviation of the smoothing, in coarse samples."""

REACH = 12
"""Samples beyond which a hole is filled with the mean."""

CHUNKS = 4
"""Side of what is filled at a time, in chunks: what is read around it counts little."""


def fill_invalid(folder: Path, image: Source, group: Path | None = None) -> None:
    """Fill the invalid samples of WORK/coarse.zarr in place. image: the same samples; it says who does the boxes.

    group: of another image of the work folder.
    """
    store = Store(folder)
    group = group or store.coarse
    valid = store.array(group, "valid")
    shape = tuple(int(n) for n in valid.shape[1:])
    step = tuple(int(c) * CHUNKS for c in valid.chunks[1:])  # whole chunks: each has one writer
    starts = np.stack(np.meshgrid(*[range(0, n, s) for n, s in zip(shape, step, strict=True)], indexing="ij"), -1)
    boxes = [
        Box(tuple(int(v) for v in start), tuple(min(int(v) + s, n) for v, s, n in zip(start, step, shape, strict=True)))
        for start in starts.reshape(-1, len(shape))
    ]
    known = image.each(_known, boxes)
    totals = [sum(part[c][0] for part in known) for c in range(int(valid.shape[0]))]
    counts = [sum(part[c][1] for part in known) for c in range(int(valid.shape[0]))]
    means = tuple(total / count if count else 0.0 for total, count in zip(totals, counts, strict=True))
    holes = [b for b, part in zip(boxes, known, strict=True) if any(n < math.prod(b.shape) for _, n in part)]
    with attempt(group) as name:
        image.each(partial(_fill, group.absolute(), name, means), holes)


def _known(image: Source, box: Box) -> list[tuple[float, int]]:
    """Sum and number of the valid samples of a box, per channel."""
    values = image.read(box)
    known = np.isfinite(values)
    return [(float(np.sum(v[k], dtype=np.float64)), int(k.sum())) for v, k in zip(values, known, strict=True)]


def _fill(group: Path, of: str, means: Sequence[float], image: Source, box: Box) -> None:
    """Fill the holes of a box from the valid samples in it and around it. of: the attempt."""
    outer = box.grow(REACH).clip(image.header.grid.shape)
    values = image.read(outer)
    inner = box.within(outer).slices
    with own_chunks(group, of) as begun:
        for c, mean in enumerate(means):
            known = np.isfinite(values[c])
            if not known[inner].all():
                index: Any = (c, *box.slices)
                begun("samples")[index] = _filled(np.where(known, values[c], 0), known, mean)[inner]


def _filled(values: NDArray[np.floating], known: NDArray[np.bool_], mean: float) -> NDArray[np.floating]:
    weight = ndimage.gaussian_filter(known.astype(np.float64), SIGMA, mode="constant", radius=REACH)
    total = ndimage.gaussian_filter(
        np.where(known, values, 0.0).astype(np.float64), SIGMA, mode="constant", radius=REACH
    )
    near = weight > 1e-6
    smooth = np.where(near, total / np.where(near, weight, 1.0), mean)
    return np.where(known, values, smooth).astype(values.dtype)
