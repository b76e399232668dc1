"""Degrade a product again and compare it with its input: the promise, for anyone to check.

Both are read in order, a slab at a time, so memory is bounded whatever the size and a gzip stream is decoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.degradation import Degradation
from pipelines.grid import Box
from pipelines.image import Source
from pipelines.projection import Residual

SLAB_SAMPLES = 4_000_000
"""Fine samples per channel that are held at once, about."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Residual of coarse slices start <= j < stop, per channel: all rows, and those that see only valid samples."""

    start: int
    stop: int
    residuals: tuple[Residual, ...]
    inner: tuple[Residual, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """Residuals per slab, and merged per channel."""

    slabs: tuple[Slab, ...]

    def total(self, channel: int, *, inner: bool = False) -> Residual:
        """Of one channel."""
        result = Residual()
        for slab in self.slabs:
            result = result.merged((slab.inner if inner else slab.residuals)[channel])
        return result


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
    on_slab: Callable[[int, int], None] = lambda _done, _all: None,
) -> Verification:
    """Residuals of `observed` minus the degraded `product`, one model per channel (None: not compared).

    Rows whose fine samples are partly invalid are renormalised (and left out below one half); `inner` has only the
    others.
    """
    coarse, fine = observed.header.grid.shape, product.header.grid.shape
    per_row = int(np.prod(fine[1:])) * max(1, fine[0] // coarse[0])
    step = max(1, SLAB_SAMPLES // per_row)
    known, made = _Rolling(observed), _Rolling(product)
    slabs = []
    for start in range(0, coarse[0], step):
        stop = min(coarse[0], start + step)
        rows = Box((start, *(0,) * (len(coarse) - 1)), (stop, *coarse[1:]))
        boxes = [m.fine_box(rows) for m in models if m is not None]
        if not boxes:
            break
        low, high = min(b.start[0] for b in boxes), max(b.stop[0] for b in boxes)
        if high <= low:
            continue
        y, x = known.read(start, stop), made.read(low, high)
        columns = Box((low, *(0,) * (len(fine) - 1)), (high, *fine[1:]))
        pairs = [
            (Residual(), Residual()) if model is None else _compare(y[c], x[c], model.crop(rows, columns))
            for c, model in enumerate(models)
        ]
        slabs.append(Slab(start, stop, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)))
        on_slab(stop, coarse[0])
    return Verification(tuple(slabs))


def _compare(y: NDArray[np.floating], x: NDArray[np.floating], model: Degradation) -> tuple[Residual, Residual]:
    valid = np.isfinite(x)
    y = np.where(_seeing(model), y, np.nan)  # rows beyond a partial reference compare with nothing
    if valid.all():
        difference = y.astype(np.float64) - model.forward(x)
        both = Residual.of(difference)
        return both, both
    degraded, share = model.forward_valid(x, valid)
    difference = y.astype(np.float64) - degraded
    return Residual.of(difference), Residual.of(np.where(share > 1 - 1e-9, difference, np.nan))


def _seeing(model: Degradation) -> NDArray[np.bool_]:
    """Which coarse samples see any of the product's."""
    result = np.ones(model.coarse_shape, bool)
    for a in model.changed:
        matrix = model.matrices[a]
        assert matrix is not None
        sees = np.diff(matrix.indptr) > 0
        result &= np.expand_dims(sees, [b for b in range(result.ndim) if b != a])
    return result
