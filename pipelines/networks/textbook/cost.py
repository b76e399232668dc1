"""Multiply-adds of a run with a textbook network, from its card. Needs no torch."""

from __future__ import annotations

import math

from pipelines.card import ModelCard
from pipelines.tiles import Cover, Span


def multiply_adds(card: ModelCard, cover: Cover) -> float:
    """Of the network for one channel of all tiles, with the halos that these repeat."""
    halos = card.reach([span.place for span in cover.spans])
    computed = math.prod(_coarse(span, halo, card.local) for span, halo in zip(cover.spans, halos, strict=True))
    return 1000.0 * card.kmac_per_sample * math.prod(card.factors) * computed


def kmac_per_sample(card: ModelCard) -> float:
    """As counted when the bundle was written; of windows that are blended two an axis hold every sample."""
    return card.kmac_per_sample * (1 if card.local else 2 ** len(card.halo))


def _coarse(span: Span, halo: int, local: bool) -> int:
    """Coarse samples along an axis that the network sees, in all tiles."""
    boxes = [aligned(*span.nearest(estimate), halo, span.multiple_of) for _, _, estimate, _ in span.pieces()]
    return sum(stop - start if local else 2 * (stop - start - halo) for start, stop in boxes)


def aligned(low: int, high: int, halo: int, multiple_of: int) -> tuple[int, int]:
    """The range of samples around low to high (included) that a network is given."""
    return (low - halo) // multiple_of * multiple_of, -(-(high + 1 + halo) // multiple_of) * multiple_of
