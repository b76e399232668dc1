"""Label maps among images: few different whole numbers, and neighbours that are equal far more often than by chance.

A label map that is taken for an image comes out with classes that were never drawn. So where a channel has few values
in the windows, the whole of it is looked at: a mask may be empty wherever a window lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.grid import Box

Samples = tuple[NDArray[np.floating], NDArray[np.bool_]]
"""Samples (..., y, x) or (..., z, y, x) of one channel, and which are valid."""

FLATNESS_NEEDED = ((2, -1.0), (8, 0.3), (64, 0.65), (2000, 0.9))
"""Up to so many different values, this much flatness makes a label map: two values always do.

Of 430 real bands and volumes, and 238 crops of 100 x 100 from them with few values, those of 9 to 64 values reach 0.60
(water in a JPEG-compressed photo, an enlarged scene) and the one of fewer 0.16. Tissue and land-cover maps have 0.3
(ragged by noise) to 0.95.
"""

FEW_VALUES = 64
"""Where the windows hold at most so many, all of the image is looked at."""

FEWEST_SAMPLES = 500
"""Fewer say nothing."""

BLOCK_SIDE = {2: 1024, 3: 96}
"""Samples per axis of what is read at once, per number of axes."""


@dataclass(frozen=True, slots=True)
class Census:
    """How many whole numbers occur (0: there are others, or more than can be labels), and the flatness per axis."""

    count: int
    background: float
    flatness: tuple[float, ...]

    @property
    def labels(self) -> bool:
        """Whether this is a label map."""
        needed = next((flat for most, flat in FLATNESS_NEEDED if self.count <= most), np.inf)
        # every axis counts, so that a ramp is no label map; labels differ more from thick slice to thick slice
        return self.count > 1 and min(self.flatness[-2:]) >= needed and min(self.flatness) >= needed / 2


def refuse_labels(windows: Samples, shape: tuple[int, ...], read: Callable[[Box], Samples], name: str) -> None:
    """Raise InputError if a channel looks like labels. windows: (window, *shape); read: any other part of it."""
    axes = len(shape)
    found = census([windows], axes)
    if 0 < found.count <= FEW_VALUES:
        found = census((read(box) for box in _blocks(shape)), axes, background=found.background)
    if found.labels:
        raise InputError(
            what=f"channel {name} looks like a label map ({found.count} whole numbers in flat regions)",
            why="labels have no values between them",
            fix="use --model nearest to replicate them",
        )


def _blocks(shape: tuple[int, ...]) -> Iterator[Box]:
    side = BLOCK_SIDE[len(shape)]
    for start in itertools.product(*(range(0, n, side) for n in shape)):
        yield Box(start, tuple(min(n, s + side) for n, s in zip(shape, start, strict=True)))


def census(parts: Iterable[Samples], axes: int, background: float | None = None) -> Census:
    """What values there are and how flat they lie on the last `axes` axes.

    background: neighbours that both have this value do not count (None: the most frequent one). The flatness is the
    share of equal neighbours beyond that of the same values in random order (after Cohen 1960): 0 for noise, 1 if all
    are equal.
    """
    none = Census(0, 0.0, (0.0,) * axes)
    tally: dict[float, int] = {}
    equal, pairs = np.zeros(axes), np.zeros(axes)
    for values, valid in parts:
        known = values[valid]
        if np.any(known != np.rint(known)):
            return none
        for value, times in zip(*np.unique(known, return_counts=True), strict=True):
            tally[float(value)] = tally.get(float(value), 0) + int(times)
        if len(tally) > FLATNESS_NEEDED[-1][0]:
            return none
        if background is None:
            background = max(tally, key=lambda v: tally[v], default=0.0)
        for axis in range(axes):
            a, b, seen = _neighbours(values, valid, axis - axes)
            seen &= (a != background) | (b != background)
            equal[axis] += np.count_nonzero((a == b) & seen)
            pairs[axis] += np.count_nonzero(seen)
    total = sum(tally.values())
    if background is None or total < FEWEST_SAMPLES:
        return none
    squares = {value: (times / total) ** 2 for value, times in tally.items()}
    nowhere = squares.pop(background, 0.0)
    chance = sum(squares.values()) / max(1 - nowhere, 1 / total)
    flatness = (equal / np.maximum(pairs, 1) - chance) / max(1 - chance, 1 / total)
    return Census(len(tally), background, tuple(float(f) for f in flatness))


def _neighbours(
    values: NDArray[np.floating], valid: NDArray[np.bool_], axis: int
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]:
    """Both samples of every pair along an axis, and whether both are valid."""
    a, b = (np.moveaxis(values, axis, 0)[cut] for cut in (slice(1, None), slice(None, -1)))
    m, n = (np.moveaxis(valid, axis, 0)[cut] for cut in (slice(1, None), slice(None, -1)))
    return a, b, m & n
