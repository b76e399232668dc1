"""Multiply-adds of a run with a textbook network, from its card. Needs no torch."""

from __future__ import annotations

import math

from pipelines.card import ModelCard
from pipelines.tiles import Cover, Span


def multiply_adds(card: ModelCard, cover: Cover) -> float:
    """Of the network for one channel of all tiles, with the halos that these repeat."""
    halos = card.reach([span.place for span in cover.spans])
    computed = math.prod(_coarse(span, halo) for span, halo in zip(cover.spans, halos, strict=True))
    return 1000.0 * card.kmac_per_sample * math.prod(card.factors) * computed


def _coarse(span: Span, halo: int) -> int:
    """Coarse samples along an axis that the network sees, in all tiles."""
    return sum(
        stop - start
        for start, stop in (
            aligned(*span.nearest(estimate), halo, span.multiple_of) for _, _, estimate, _ in span.pieces()
        )
    )


def aligned(low: int, high: int, halo: int, multiple_of: int) -> tuple[int, int]:
    """The range of samples around low to high (included) that a network is given."""
    return (low - halo) // multiple_of * multiple_of, -(-(high + 1 + halo) // multiple_of) * multiple_of
