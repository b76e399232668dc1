"""Label maps among images: few different whole numbers, and neighbours that are equal far more often than by chance.

Where they differ, labels differ as any two do (which number a region has is a name), but an image by little: so a
quantised surface, as flat as any label map, is told from it.

A label map that is taken for an image comes out with classes that were never drawn. So where a channel has few values
in the windows, the whole of it is looked at: a mask may be empty wherever a window lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.grid import Box

Samples = tuple[NDArray[np.floating], NDArray[np.bool_]]
"""Samples (..., y, x) or (..., z, y, x) of one channel, and which are valid."""

FLATNESS_NEEDED = ((2, -1.0), (8, 0.3))
"""Up to so many different values, this much flatness makes a label map: two values always do.

The one crop with 3 to 8 values among the real ones below has 0.16. Tissue and land-cover maps have 0.34 (ragged by
noise) to 0.95.
"""

SUM_NEEDED = ((64, 1.15), (2000, 1.4))
"""Up to so many, this much flatness and unrelatedness together.

Of 479 real bands and volumes, whole and in crops of 100 x 100, the 292 with 9 to 64 values reach 1.02 and the 3629 with
up to 2000 values 1.31 (both in a JPEG-compressed photo). Land cover of 9 to 20 unsorted classes has 1.31 and more (one
of 48 crops 1.10, the others 1.25), parcellations of 30 to 360 regions at 1 to 3 mm 1.44 and more.
"""

LEAST_UNRELATED = 0.3
"""Below, and with more values than 8, it is an image however flat: quantised surfaces have 0 to 0.15, quantised and
enlarged scenes 0.1 to 0.25, parcellations numbered from front to back 0.37 to 0.7.
"""

LEAST_FLATNESS = 0.2
"""Below, and with more values than 8, it is an image however unrelated: noise."""

NUMBERED = (0.7, 0.35, 0.75)
"""With more values than 8, regions numbered row by row: at least so flat, at most so scattered, at least so ordered.

A value of an image says little about where it lies, in a ramp one coordinate (scattered 0.5), the number of a region
both. Real images at least half as flat have 0.46 and more, superpixels 0.02 to 0.3 and an order of 0.8 to 1. Scenes
enlarged by repeating samples are flat and not scattered, but have an order of 0.1.
"""

FEW_VALUES = 64
"""Where the windows hold at most so many, all of the image is looked at."""

FEWEST_SAMPLES = 500
"""Fewer say nothing."""

WAYS_ON = "use --model nearest to repeat them; if it is an image all the same, say --kind image"
"""What to do with a channel that looks like labels."""

BLOCK_SIDE = {2: 1024, 3: 96}
"""Samples per axis of what is read at once, per number of axes."""


@dataclass(frozen=True, slots=True)
class Census:
    """How many whole numbers occur (0: there are others, or more than can be labels), and how they lie.

    flatness: per axis. unrelated: 0 where neighbours that differ do so by the least step, 1 where they do so as any two
    different samples. scattered: variance of the place of samples of one value, over that of all. ordered: correlation
    of value and row, or column.
    """

    count: int
    background: float
    flatness: tuple[float, ...]
    unrelated: float
    scattered: float = 1.0
    ordered: float = 0.0

    @property
    def labels(self) -> bool:
        """Whether this is a label map."""
        if self.count < 2:
            return False
        # every axis counts, so that a ramp is no label map; labels differ more from thick slice to thick slice
        flat = min(*self.flatness[-2:], 2 * min(self.flatness))
        for most, needed in FLATNESS_NEEDED:
            if self.count <= most:
                return flat >= needed
        if flat >= NUMBERED[0] and self.scattered <= NUMBERED[1] and self.ordered >= NUMBERED[2]:
            return True
        if flat < LEAST_FLATNESS or self.unrelated < LEAST_UNRELATED:
            return False
        return any(self.count <= most and flat + self.unrelated >= needed for most, needed in SUM_NEEDED)


def refuse_labels(windows: Samples, shape: tuple[int, ...], read: Callable[[Box], Samples], name: str) -> None:
    """Raise InputError if a channel looks like labels. windows: (window, *shape); read: any other part of it."""
    found = look(windows, shape, read)
    if found.labels:
        raise InputError(
            what=told(name, found),
            why="labels have no values between them",
            fix=WAYS_ON,
        )


def told(name: str, found: Census) -> str:
    """What to say of a channel that is a label map."""
    return f"channel {name} looks like a label map ({found.count} whole numbers in flat regions)"


def look(windows: Samples, shape: tuple[int, ...], read: Callable[[Box], Samples]) -> Census:
    """The census of the windows of a channel, or of all of it where they hold few values."""
    axes = len(shape)
    found = census([windows], axes)
    if 0 < found.count <= FEW_VALUES:
        found = census((read(box) for box in _blocks(shape)), axes, background=found.background)
    return found


def _blocks(shape: tuple[int, ...]) -> Iterator[Box]:
    side = BLOCK_SIDE[len(shape)]
    for start in itertools.product(*(range(0, n, side) for n in shape)):
        yield Box(start, tuple(min(n, s + side) for n, s in zip(shape, start, strict=True)))


def census(parts: Iterable[Samples], axes: int, background: float | None = None) -> Census:
    """What values there are and how they lie on the last `axes` axes.

    background: neighbours that both have this value do not count (None: the most frequent one). The flatness is the
    share of equal neighbours beyond that of the same values in random order (after Cohen 1960): 0 for noise, 1 if all
    are equal. Unrelated is the mean difference of in-plane neighbours that differ, over that of the same values in
    random order, both beyond the least step.
    """
    none = Census(0, 0.0, (0.0,) * axes, 0.0)
    tally: dict[float, int] = {}
    equal, pairs, apart = np.zeros(axes), np.zeros(axes), np.zeros(axes)
    places: list[tuple[float, float]] = []
    for values, valid in parts:
        known = values[valid]
        if np.any(known != np.rint(known)):
            return none
        for value, times in zip(*np.unique(known, return_counts=True), strict=True):
            tally[float(value)] = tally.get(float(value), 0) + int(times)
        if len(tally) > SUM_NEEDED[-1][0]:
            return none
        if background is None:
            background = max(tally, key=lambda v: tally[v], default=0.0)
        places += _places(values, valid & (values != background))
        for axis in range(axes):
            a, b, seen = _neighbours(values, valid, axis - axes)
            seen &= (a != background) | (b != background)
            equal[axis] += np.count_nonzero((a == b) & seen)
            pairs[axis] += np.count_nonzero(seen)
            apart[axis] += np.sum(np.abs(a - b), where=seen, dtype=np.float64)
    total = sum(tally.values())
    if background is None or total < FEWEST_SAMPLES:
        return none
    squares = {value: (times / total) ** 2 for value, times in tally.items()}
    nowhere = squares.pop(background, 0.0)
    chance = sum(squares.values()) / max(1 - nowhere, 1 / total)
    flatness = (equal / np.maximum(pairs, 1) - chance) / max(1 - chance, 1 / total)
    step, usual = _steps(tally)
    differ = np.sum((pairs - equal)[-2:])
    unrelated = (np.sum(apart[-2:]) / differ - step) / (usual - step) if differ and usual > step else 0.0
    scattered, ordered = np.mean(places, axis=0) if places else (1.0, 0.0)
    return Census(
        len(tally), background, tuple(float(f) for f in flatness), float(unrelated), float(scattered), float(ordered)
    )


def _places(values: NDArray[np.floating], known: NDArray[np.bool_]) -> Iterator[tuple[float, float]]:
    """How scattered and how ordered the values of each plane are that holds enough of them."""
    planes = zip(values.reshape(-1, *values.shape[-2:]), known.reshape(-1, *known.shape[-2:]), strict=True)
    for plane, inside in planes:
        kinds, which, times = np.unique(plane[inside], return_inverse=True, return_counts=True)
        if len(kinds) <= FLATNESS_NEEDED[-1][0] or len(which) < FEWEST_SAMPLES:
            continue
        scattered, ordered = [], []
        for place in np.nonzero(inside):
            if np.ptp(place):
                own = np.bincount(which, place) / times
                scattered.append(np.mean((place - own[which]) ** 2) / np.var(place))
                ordered.append(abs(np.corrcoef(place, plane[inside])[0, 1]))
        yield float(max(scattered)), float(max(ordered))


def _steps(tally: dict[float, int]) -> tuple[float, float]:
    """The greatest step that all values are whole numbers of apart; the mean difference of two different samples."""
    values = sorted(tally)
    steps = np.diff(values)
    below = np.cumsum([tally[v] for v in values])[:-1] / sum(tally.values())
    differ = 1 - sum((times / sum(tally.values())) ** 2 for times in tally.values())
    usual = 2 * np.sum(below * (1 - below) * steps) / differ if len(steps) else 0.0
    return float(math.gcd(*(int(s) for s in steps))), float(usual)


def _neighbours(
    values: NDArray[np.floating], valid: NDArray[np.bool_], axis: int
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]:
    """Both samples of every pair along an axis, and whether both are valid."""
    a, b = (np.moveaxis(values, axis, 0)[cut] for cut in (slice(1, None), slice(None, -1)))
    m, n = (np.moveaxis(valid, axis, 0)[cut] for cut in (slice(1, None), slice(None, -1)))
    return a, b, m & n
