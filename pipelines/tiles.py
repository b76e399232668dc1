"""Which samples a tile reads, estimates and writes. Pure arithmetic, so every worker can recompute it.

read      coarse: what the network and the interpolation need for `estimate` (may reach beyond the image: reflected)
rows      coarse: the measurements that the projection of `write` depends on
estimate  fine:   every sample those rows see
write     fine:   one shard; the write boxes partition the fine grid
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import Box, Placement


@dataclass(frozen=True, slots=True)
class Tile:
    """The work for one shard."""

    index: int
    read: Box
    rows: Box
    estimate: Box
    write: Box


@dataclass(frozen=True, slots=True)
class Span:
    """Where one axis of the cover takes its samples from.

    shard: fine samples a tile writes; support: coarse samples from a fine sample to the farthest row that sees it;
    reach: of the projection; halo: coarse samples the estimate needs beyond its nearest; multiple_of: of read starts
    and lengths; even: estimates have one length, those at the edges of the image reach further inwards.
    """

    place: Placement
    shard: int
    support: int = 0
    reach: int = 0
    halo: int = 0
    multiple_of: int = 1
    even: bool = False

    @property
    def count(self) -> int:
        """Number of shards along this axis."""
        return math.ceil(self.place.fine / self.shard)

    def pieces(self) -> list[tuple[tuple[int, int], ...]]:
        """(read, rows, estimate, write) ranges of every shard; all reads have one length."""
        return _pieces(self)

    def piece(self, number: int) -> tuple[tuple[int, int], ...]:
        """The same of one shard; its read range as it is."""
        return self.around((number * self.shard, min(self.place.fine, (number + 1) * self.shard)))

    def around(self, write: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """The same of any range of fine samples."""
        place, rows, estimate = self.place, write, write
        if place.changed:
            margin = self.support + self.reach
            low, high = self.nearest(write)
            first = min(place.coarse, max(0, low - margin))
            rows = (first, max(first, min(place.coarse, high + margin + 1)))  # empty far outside the input
            if rows[0] < rows[1]:  # samples seen by those rows, and never fewer than are written
                see = [place.first + j * place.scale for j in (rows[0] - self.support, rows[1] - 1 + self.support)]
                estimate = (
                    min(write[0], max(0, math.floor(see[0]))),
                    max(write[1], min(place.fine, math.ceil(see[1]) + 1)),
                )
        return self.read(rows, estimate), rows, estimate, write

    def read(self, rows: tuple[int, int], estimate: tuple[int, int]) -> tuple[int, int]:
        """Coarse samples that an estimate and its rows need."""
        low, high = self.nearest(estimate)
        low, stop = low - self.halo, high + self.halo + 1
        if self.place.changed and rows[0] < rows[1]:
            low, stop = min(low, rows[0]), max(stop, rows[1])
        return math.floor(low / self.multiple_of) * self.multiple_of, stop

    def nearest(self, fine: tuple[int, int]) -> tuple[int, int]:
        """Coarse samples nearest to the first and last fine sample of a range."""
        first, last = (self.place.coordinates(i, i + 1)[0] for i in (fine[0], fine[1] - 1))
        return math.floor(first + Fraction(1, 2)), math.floor(last + Fraction(1, 2))


@lru_cache(maxsize=64)
def _pieces(span: Span) -> list[tuple[tuple[int, int], ...]]:
    found = [span.piece(k) for k in range(span.count)]
    if span.even:
        longest = max(estimate[1] - estimate[0] for _, _, estimate, _ in found)
        for k, (_, rows, (start, _), write) in enumerate(found):
            start = min(start, span.place.fine - longest)
            estimate = (start, start + longest)
            found[k] = (span.read(rows, estimate), rows, estimate, write)
    length = max(stop - start for (start, stop), *_ in found)
    length = math.ceil(length / span.multiple_of) * span.multiple_of
    return [((start, start + length), *rest) for (start, _), *rest in found]


def _tile(index: int, parts: Sequence[tuple[tuple[int, int], ...]]) -> Tile:
    """The tile with these (read, rows, estimate, write) ranges per axis."""
    boxes = [Box(tuple(p[b][0] for p in parts), tuple(p[b][1] for p in parts)) for b in range(4)]
    return Tile(index, *boxes)


@dataclass(frozen=True, slots=True)
class Cover:
    """All tiles of a fine grid, in C order of their shards."""

    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return math.prod(span.count for span in self.spans)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of shards per axis."""
        return tuple(span.count for span in self.spans)

    def position(self, index: int) -> tuple[int, ...]:
        """Shard coordinates of a tile."""
        return tuple(int(v) for v in np.unravel_index(index, self.shape))

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _tile(index, [span.pieces()[k] for span, k in zip(self.spans, self.position(index), strict=True)])

    def __iter__(self) -> Iterator[Tile]:
        return (self[i] for i in range(len(self)))

    def parts(self, tile: Tile) -> Iterator[Tile]:
        """The tile of a coarser cover, cut into tiles of this one's size; its read boxes are those of this cover."""
        ranges = [
            [span.around((k, min(stop, k + span.shard))) for k in range(start, stop, span.shard)]
            for span, start, stop in zip(self.spans, tile.write.start, tile.write.stop, strict=True)
        ]
        return (_tile(tile.index, parts) for parts in product(*ranges))


def reflected(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """Indices start <= i < stop folded into 0 <= i < length, as NumPy's pad mode `reflect` does (edges not doubled)."""
    if length == 1:
        return np.zeros(stop - start, np.intp)
    period = 2 * (length - 1)
    folded = np.arange(start, stop) % period
    return np.where(folded < length, folded, period - folded)
