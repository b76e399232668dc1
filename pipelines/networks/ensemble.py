"""Self-ensemble: the mean of what a network makes of an image and of its mirror images, each mirrored back.

Timofte et al., Seven ways to improve example-based single image super resolution, CVPR 2016. A mirrored image lies on
mirrored grids, so the phases of its samples are mirrored too, and any scale will do.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import Box, Placement
from pipelines.networks import Condition, Predictor


class Ensemble:
    """A Predictor of another one's means, over the mirror images along each axis: 4 of an image, 8 of a volume."""

    def __init__(self, inner: Predictor) -> None:
        self._inner = inner

    @property
    def halo(self) -> tuple[int, ...]:
        """See `Predictor`."""
        return self._inner.halo

    @property
    def multiple_of(self) -> tuple[int, ...]:
        """See `Predictor`."""
        return self._inner.multiple_of

    def reach(self, places: tuple[Placement, ...]) -> tuple[int, ...]:
        """See `Predictor`."""
        return self._inner.reach(places)

    def residual(
        self,
        samples: NDArray[np.float32],
        read: Box,
        write: Box,
        places: tuple[Placement, ...],
        condition: Condition,
    ) -> NDArray[np.float32]:
        """See `Predictor.residual`."""
        total = np.zeros((len(samples), *write.shape), np.float32)
        coarse, fine = tuple(p.coarse for p in places), tuple(p.fine for p in places)
        turns = list(product((False, True), repeat=len(places)))
        for turned in turns:
            flip = (slice(None), *(slice(None, None, -1 if t else 1) for t in turned))
            made = self._inner.residual(
                np.ascontiguousarray(samples[flip]),
                _mirrored(read, coarse, turned),
                _mirrored(write, fine, turned),
                tuple(_mirrored_place(p) if t else p for p, t in zip(places, turned, strict=True)),
                condition,
            )
            total += made[flip]
        return total / np.float32(len(turns))


def _mirrored(box: Box, shape: tuple[int, ...], turned: tuple[bool, ...]) -> Box:
    """The box where the axes that are turned count from their other end."""
    ends = [(n - b, n - a) if t else (a, b) for a, b, n, t in zip(box.start, box.stop, shape, turned, strict=True)]
    return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


def _mirrored_place(place: Placement) -> Placement:
    return replace(place, first=place.fine - 1 - place.first - (place.coarse - 1) * place.scale)
