"""Degrade a product again and compare it with its input: the promise, for anyone to check.

Both are read in order of the product's slowest axis, so memory is bounded whatever the size and a compressed product
is decoded once. Residuals are kept per part of the input: a slice of a volume, a square of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.degradation import Degradation
from pipelines.grid import Box, Orientation
from pipelines.image import SLAB_SAMPLES, Source, TurnedSource
from pipelines.projection import Residual

PART_SIDE = 256
"""Side of the parts of an image, in its own samples, unless they would be more than `PARTS` on an axis."""

PARTS = 64
"""Parts of an image on an axis, at most."""


class Tally:
    """Residuals of every channel and part: arrays (channel, *parts)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._squares, self._maximum = np.zeros(shape), np.zeros(shape)
        self._count = np.zeros(shape, np.int64)
        self._lagged, self._pairs = np.zeros(shape[0]), np.zeros(shape[0], np.int64)

    def add(
        self, channel: int, parts: tuple[slice, ...], edges: Sequence[Sequence[int]], d: NDArray[np.floating]
    ) -> None:
        """Count the finite differences `d` (*box); edges: where in the box each of the parts begins, per axis."""
        known = np.isfinite(d)
        d = np.where(known, d, 0.0)
        self._lagged[channel] += np.sum(d[..., 1:] * d[..., :-1])
        self._pairs[channel] += np.count_nonzero(known[..., 1:] & known[..., :-1])
        squares, count, largest = d * d, known.astype(np.int64), np.abs(d)
        for axis, starts in enumerate(edges):
            squares = np.add.reduceat(squares, starts, axis)
            count = np.add.reduceat(count, starts, axis)
            largest = np.maximum.reduceat(largest, starts, axis)
        self._squares[channel][parts] += squares
        self._count[channel][parts] += count
        self._maximum[channel][parts] = np.maximum(self._maximum[channel][parts], largest)

    def of(self, channel: int, part: tuple[int, ...]) -> Residual:
        """Of one part."""
        at = (channel, *part)
        return Residual(float(self._squares[at]), int(self._count[at]), float(self._maximum[at]))

    def correlation(self, channel: int) -> float | None:
        """Of neighbours along the fastest axis: near 0 where the residual is noise; None of nothing."""
        mean_square, pairs = self.total(channel).rms ** 2, self._pairs[channel]
        return float(self._lagged[channel] / pairs / mean_square) if mean_square and pairs else None

    def total(self, channel: int) -> Residual:
        """Of one channel."""
        return Residual(
            float(self._squares[channel].sum()), int(self._count[channel].sum()), float(self._maximum[channel].max())
        )


@dataclass(frozen=True, slots=True)
class Verification:
    """Residuals per channel and part of the input.

    inner: of the samples that see valid fine samples only; beside: of those next to a hole, compared with what they
    see of it. sides: of a part along each axis, in samples of the input.
    """

    inner: Tally
    beside: Tally
    shape: tuple[int, ...]
    sides: tuple[int, ...]

    def add(
        self, channel: int, box: Box, inner: NDArray[np.floating], beside: NDArray[np.floating] | None = None
    ) -> None:
        """Count differences (*box.shape), NaN where there are none, under the parts that a box of the input touches."""
        sides = list(zip(box.start, box.stop, self.sides, strict=True))
        parts = tuple(slice(a // s, (b - 1) // s + 1) for a, b, s in sides)
        edges = [
            [max(p * s, a) - a for p in range(cut.start, cut.stop)] for cut, (a, _, s) in zip(parts, sides, strict=True)
        ]
        self.inner.add(channel, parts, edges, inner)
        if beside is not None:
            self.beside.add(channel, parts, edges, beside)

    def parts(self) -> Iterator[tuple[tuple[int, ...], Box]]:
        """Index and box, in the input's samples, of every part."""
        for part in np.ndindex(*_parts(self.shape, self.sides)):
            start = tuple(p * s for p, s in zip(part, self.sides, strict=True))
            stop = tuple(min(n, a + s) for n, a, s in zip(self.shape, start, self.sides, strict=True))
            yield part, Box(start, stop)


def _parts(shape: Sequence[int], sides: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.ceil(n / s) for n, s in zip(shape, sides, strict=True))


def _sides(shape: tuple[int, ...], slice_axis: int | None) -> tuple[int, ...]:
    """A slice of a volume, or a square of an image."""
    if len(shape) == 2:
        return tuple(min(n, max(PART_SIDE, math.ceil(n / PARTS))) for n in shape)
    return tuple(1 if a == (slice_axis or 0) else n for a, n in enumerate(shape))


class _Rolling:
    """Ascending reads of a source along its slowest axis: each sample is read once, a tail is kept."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._shape = source.header.grid.shape
        self._kept: NDArray[np.floating] | None = None
        self._start = 0

    def read(self, start: int, stop: int) -> NDArray[np.floating]:
        """Samples (c, stop - start, ...) with start not below that of any earlier call."""
        have = self._start + (0 if self._kept is None else self._kept.shape[1])
        parts = []
        if self._kept is not None and start < have:
            parts.append(self._kept[:, start - self._start : stop - self._start])
        if stop > have:
            low = max(start, have)
            parts.append(self._source.read(Box((low, *(0,) * (len(self._shape) - 1)), (stop, *self._shape[1:]))))
        self._kept = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        self._start = start
        return self._kept


def verify(
    product: Source,
    observed: Source,
    models: Sequence[Degradation | None],
    *,
    orientation: Orientation | None = None,
    on_rows: Callable[[int, int], None] = lambda _done, _all: None,
) -> Verification:
    """Residuals of `observed` minus the degraded `product`.

    models: one per channel along the axes of `observed` (None: not compared); orientation: what turns those axes onto
    the product's. Rows whose fine samples are partly invalid are renormalised (and left out below one half).
    """
    own = observed.header.grid
    sides = _sides(own.shape, observed.header.slice_axis)
    tallies = [Tally((len(models), *_parts(own.shape, sides))) for _ in range(2)]
    result = Verification(tallies[0], tallies[1], own.shape, sides)
    back = Orientation(tuple(range(own.ndim)), (False,) * own.ndim)
    if orientation is not None and orientation.turns:
        observed, back = TurnedSource(observed, orientation), orientation.inverse
        models = [None if m is None else m.turned(orientation) for m in models]
    coarse, fine = observed.header.grid.shape, product.header.grid.shape
    per_row = math.prod(fine[1:]) * max(1, fine[0] // coarse[0]) * len(models)
    step = max(1, SLAB_SAMPLES // per_row)
    known, made = _Rolling(observed), _Rolling(product)
    for start in range(0, coarse[0], step):
        stop = min(coarse[0], start + step)
        rows = Box((start, *(0,) * (len(coarse) - 1)), (stop, *coarse[1:]))
        boxes = [box for m in models if m is not None and 0 not in (box := m.fine_box(rows)).shape]
        if not boxes:  # beyond a partial reference, or nothing but classes
            continue
        low, high = min(b.start[0] for b in boxes), max(b.stop[0] for b in boxes)
        y, x = known.read(start, stop), made.read(low, high)
        columns = Box((low, *(0,) * (len(fine) - 1)), (high, *fine[1:]))
        cropped: dict[tuple[int, ...], Degradation] = {}  # channels of one blur share their matrices
        for c, model in enumerate(models):
            if model is None:
                continue
            shared = tuple(id(matrix) for matrix in model.matrices)
            if shared not in cropped:
                cropped[shared] = model.crop(rows, columns)
            inner, beside = _differences(y[c], x[c], cropped[shared])
            holes = None if beside is None else back.array(beside)
            result.add(c, back.box(rows, coarse), back.array(inner), holes)
        on_rows(stop, coarse[0])
    return result


def _differences(
    y: NDArray[np.floating], x: NDArray[np.floating], model: Degradation
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Differences (*coarse) of wholly valid rows, and of those beside holes if there are any; NaN elsewhere."""
    valid = np.isfinite(x)
    y = np.where(_seeing(model), y, np.nan).astype(np.float64)  # rows beyond a partial reference compare with nothing
    if valid.all():
        return y - model.forward(x), None
    degraded, share = model.forward_valid(x, valid)
    difference, whole = y - degraded, share > 1 - 1e-9
    return np.where(whole, difference, np.nan), np.where(whole, np.nan, difference)


def _seeing(model: Degradation) -> NDArray[np.bool_]:
    """Which coarse samples see any of the product's."""
    result = np.ones(model.coarse_shape, bool)
    for a in model.changed:
        result &= np.expand_dims(model.sees(a), [b for b in range(result.ndim) if b != a])
    return result
