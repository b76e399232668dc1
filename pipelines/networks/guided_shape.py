"""The shape of a guided network: what its card holds, how far it sees, how much it computes. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Self

from pipelines import interpolation
from pipelines.card import ModelCard
from pipelines.injection import KERNEL_REACH, REACH
from pipelines.tiles import Cover

FOLD = 2
"""Fine samples per axis that are folded into channels: a quarter of the work of the fine grid."""

SHARED, OF_GUIDE = 4, 3
"""Maps of `injection.detail` that a network sees: of the channel, and of each guide."""

BLOCK = 256
"""Most fine samples of a side that are computed together."""

TYPICAL = 4
"""Guides that cost is counted with."""


@dataclass(frozen=True, slots=True)
class GuidedOptions:
    """Shape of a network, as its card holds it. channels, blocks: width and number of residual blocks."""

    channels: int = 32
    blocks: int = 4

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """From the plain values of a card. Raises TypeError for unknown names."""
        return cls(**options)

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def margin(self) -> int:
        """Fine samples per side that the valid convolutions consume."""
        return FOLD * (2 + 2 * self.blocks)

    @property
    def guide_halo(self) -> int:
        """Fine samples per side of what is made that the guide is read of, for any phase of the fold."""
        return self.margin + FOLD - 1 + KERNEL_REACH

    def halo(self, scale: float) -> int:
        """The same of the input, in coarse samples."""
        return math.ceil(self.guide_halo / scale) + interpolation.REACH["cubic"] + REACH + 1

    def convolutions(self, guides: int) -> Iterator[tuple[int, int]]:
        """Of each: multiply-adds a folded sample that it makes; folded samples per side that later ones consume."""
        c, left = self.channels, 1 + 2 * self.blocks
        folded = FOLD * FOLD
        yield 9 * c * folded * (SHARED + guides * (SHARED + OF_GUIDE)) + c * c, left
        for _ in range(self.blocks):
            for _ in range(2):
                left -= 1
                yield 9 * c * c, left
        yield 9 * c * folded, 0


def multiply_adds(card: ModelCard, cover: Cover) -> float:
    """Of all convolutions for one channel of all tiles, with TYPICAL guides, with what blocks repeat."""
    options = GuidedOptions.of(card.options)
    y, x = ([part for _, _, box, _ in span.pieces() for part in blocks(*box)] for span in cover.spans)
    return float(sum(m * _sum(y, left) * _sum(x, left) for m, left in options.convolutions(TYPICAL)))


def kmac_per_sample(card: ModelCard) -> float:
    """Thousand multiply-adds per fine sample with TYPICAL guides, without what blocks repeat."""
    options = GuidedOptions.of(card.options)
    return sum(m for m, _ in options.convolutions(TYPICAL)) / FOLD**2 / 1000


def blocks(start: int, stop: int) -> list[tuple[int, int]]:
    """Ranges of fine samples that are computed together: they begin at multiples of BLOCK of the whole grid."""
    edges = [start, *range((start // BLOCK + 1) * BLOCK, stop, BLOCK), stop]
    return list(pairwise(edges))


def _sum(ranges: Sequence[tuple[int, int]], margin: int) -> int:
    return sum((stop - start) // FOLD + 1 + 2 * margin for start, stop in ranges)
