"""The fine samples of a work folder, shown as a Source: sinks, verification and viewers read all images in one way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import Box, Placement
from pipelines.image import Header, Source, slabs
from pipelines.planning import Plan
from pipelines.store import Store


def field_of_view(place: Placement) -> tuple[Fraction, Fraction]:
    """Coarse coordinates between which fine centres belong to the input: its faces, and half a fine sample more.

    (Where M s is not whole, the outermost centres overhang by at most a quarter.)
    """
    margin = Fraction(1, 2) + Fraction(1, 2) / place.scale
    return -margin, place.coarse - 1 + margin


class StoredProduct(Source):
    """A Source over the finished fine samples: invalid where the nearest coarse sample is, or beyond the input."""

    def __init__(self, store: Store, header: Header, plan: Plan) -> None:
        self._store, self._header, self._plan = store, header, plan
        self._fine = store.array(store.fine)
        self._valid = store.array(store.coarse, "valid") if store.has_mask() else None

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        return self._plan.run_hash

    def blocks(self, max_samples: int) -> Iterator[Box]:
        yield from slabs(self._header.grid.shape, max_samples)

    def read(self, box: Box) -> NDArray[np.floating]:
        values = np.asarray(self._fine[(slice(None), *box.slices)])
        nearest, inside = [], []
        for a, place in enumerate(self._plan.places):
            u = place.coordinates(box.start[a], box.stop[a])
            index = np.array([math.floor(c + Fraction(1, 2)) for c in u])
            low, high = field_of_view(place)
            inside.append(np.array([low < c < high for c in u]))
            nearest.append(np.clip(index, 0, place.coarse - 1))
        keep = np.ones(box.shape, bool)
        for a, within in enumerate(inside):
            keep &= np.expand_dims(within, [b for b in range(len(inside)) if b != a])
        if self._valid is not None:
            hull = tuple(slice(int(n[0]), int(n[-1]) + 1) for n in nearest)
            valid = np.asarray(self._valid[(slice(None), *hull)], bool)
            valid = valid[np.ix_(range(len(valid)), *[n - n[0] for n in nearest])]
            values[~valid] = np.nan
        values[:, ~keep] = np.nan
        return values

    @property
    def anywhere(self) -> bool:
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredProduct, (self._store, self._header, self._plan)


class WatchedSource(Source):
    """A Source that reports what has been read of it: (rows of the slowest axis so far, all of them)."""

    def __init__(self, source: Source, on_read: Callable[[int, int], None]) -> None:
        self._source, self._on_read = source, on_read

    @property
    def header(self) -> Header:
        return self._source.header

    @property
    def identity(self) -> str:
        return self._source.identity

    def blocks(self, max_samples: int) -> Iterator[Box]:
        return self._source.blocks(max_samples)

    def read(self, box: Box) -> NDArray[np.floating]:
        self._on_read(box.start[0], self.header.grid.shape[0])
        values = self._source.read(box)
        self._on_read(box.stop[0], self.header.grid.shape[0])
        return values

    @property
    def anywhere(self) -> bool:
        return self._source.anywhere

    def close(self) -> None:
        self._source.close()
