"""The shape of a lattice network: what its card holds, how far it sees, how much it computes. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from pipelines.card import BETWEEN, ModelCard, finest
from pipelines.tiles import Cover, Span

LEAST_ERROR = 1e-4
"""Over the scale of the samples: added to every error that a network tells, so that none is zero."""

BLOCK = 384
"""Most coarse samples of a side of an image that are computed together."""


@dataclass(frozen=True, slots=True)
class LatticeOptions:
    """Shape of a network, as its card holds it.

    channels, blocks: width and number of residual blocks; basis: maps K of the head; planes: neighbouring planes that
    are read together (odd); fold: in-plane samples folded into channels; thin: every second convolution spans one
    sample along the first axis; phases: upsampled axes (1: the first of a plane, 2: both); hidden: width of the MLPs;
    positive: the magnitude of what it makes counts, and LEAST_ERROR more: it tells errors.
    """

    channels: int = 64
    blocks: int = 6
    basis: int = 20
    planes: int = 1
    fold: int = 1
    thin: bool = False
    phases: int = 2
    hidden: int = 64
    positive: bool = False

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """From the plain values of a card. Raises TypeError for unknown names."""
        return cls(**options)

    def to_json(self) -> dict[str, int | bool]:
        """Plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def margin(self) -> tuple[int, int]:
        """Lattice samples per side that the valid convolutions consume: (first axis, folded second axis)."""
        second = 2 + 2 * self.blocks
        return (2 + self.blocks if self.thin else second), second

    @property
    def halo(self) -> tuple[int, int]:
        """Coarse samples per side on (first axis, second axis), for any phase of the fold."""
        first, second = self.margin
        return first, second * self.fold + self.fold - 1

    def convolutions(self) -> Iterator[tuple[int, int, int]]:
        """Of each: multiply-adds a sample that it makes; rows and folded columns per side that later ones consume."""
        rows, columns = self.margin
        c = self.channels
        rows, columns = rows - 1, columns - 1
        yield 9 * self.planes * self.fold * c, rows, columns
        for _ in range(self.blocks):
            rows, columns = rows - 1, columns - 1
            yield 9 * c * c, rows, columns
            rows, columns = rows - (not self.thin), columns - 1
            yield (3 if self.thin else 9) * c * c, rows, columns
        yield 9 * c * self.basis * self.fold, 0, 0


def multiply_adds(card: ModelCard, cover: Cover) -> float:
    """Of all convolutions and heads for one channel of all tiles, with what these repeat.

    A layer's work in a tile is a product over the axes, so its sum over the tiles is the product of the sums.
    """
    o = LatticeOptions.of(card.options)
    made = math.prod(sum(stop - start for _, _, (start, stop), _ in span.pieces()) for span in cover.spans)
    if o.phases == 2:
        y, x = ([part for box in _lattice(span) for part in _blocks(*box)] for span in cover.spans)
        body = sum(m * _sum(y, r) * _sum(x, c) for m, r, c in o.convolutions())
        return float(body + o.basis * made)
    axis = finest([span.place.scale for span in cover.spans])
    rows, *others = sorted(range(3), key=lambda a: a != axis)
    ranges = [_lattice(span, 0 if a == rows else BETWEEN) for a, span in enumerate(cover.spans)]
    body = 0
    for planes, columns in (others, others[::-1]):
        folded = [(start // o.fold, -(-stop // o.fold)) for start, stop in ranges[columns]]
        layers = sum(m * _sum(ranges[rows], r) * _sum(folded, c) for m, r, c in o.convolutions())
        body += _sum(ranges[planes], 0) * layers
    return float(body + 2 * o.basis * made)


def kmac_per_sample(card: ModelCard) -> float:
    """Thousand multiply-adds per fine sample at 2x, without what tiles repeat; of a volume in both its views."""
    o = LatticeOptions.of(card.options)
    views = 2 if o.phases == 1 else 1
    body = sum(m for m, *_ in o.convolutions()) / o.fold
    return float(views * (body / 2**o.phases + o.basis)) / 1000


def _lattice(span: Span, between: int = 0) -> list[tuple[int, int]]:
    """Lattice samples on an axis that the estimate of each tile is made of; between: more per side to interpolate."""
    estimates = [estimate for _, _, estimate, _ in span.pieces()]
    if not span.place.changed:
        return [(start, stop) for start, stop in estimates]
    nearest = [span.nearest((start, stop)) for start, stop in estimates]
    return [(low - between, high + 1 + between) for low, high in nearest]


def _blocks(start: int, stop: int) -> list[tuple[int, int]]:
    """The blocks of an image that the predictor computes: all of one size."""
    count = math.ceil((stop - start) / BLOCK)
    return [(start, start + math.ceil((stop - start) / count))] * count


def _sum(ranges: Sequence[tuple[int, int]], margin: int) -> int:
    return sum(stop - start + 2 * margin for start, stop in ranges)
