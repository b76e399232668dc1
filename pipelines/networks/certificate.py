"""Certifies a network's receptive field: traced with NaN, confirmed with other samples, compared with its card.

A NaN goes through every convolution that sees it, whatever the weights, so it marks exactly the samples that an output
depends on. Tiles agree with the whole only if that is what the card says.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from pipelines.card import ModelCard
from pipelines.errors import ModelError
from pipelines.grid import Box, Placement
from pipelines.networks import Condition, Predictor

BEYOND = 3
"""Samples beyond the halo that are offered and must not be used."""

_CERTIFIED: set[str] = set()
"""Cards that this process has certified, by all of them that may change a product."""


def certify(predictor: Predictor, card: ModelCard) -> None:
    """Raise ModelError unless the halo of a card is what its network needs: no less, and no more.

    predictor: one that computes single samples quickly. Both phases of a folded axis are tried.
    """
    if card.digest in _CERTIFIED:
        return
    if card.axes == "through-plane" and len(set(card.halo[1:])) > 1:
        raise ModelError(what=f"the card of {card.id} states two halos in the plane", fix="correct the card")
    places = _places(card)
    stated = card.reach(places)
    for axis, halo in enumerate(stated):
        reach = max(_reach(predictor, places, stated, axis, shift) for shift in (0, 1))
        if reach != halo:
            raise ModelError(
                what=f"the card of {card.id} states a halo of {halo} samples on axis {axis}, its network has {reach}",
                why="tiles would not agree with the whole"
                if reach > halo
                else "every tile would be computed too large",
                fix="correct the card",
            )
    _CERTIFIED.add(card.digest)


def _places(card: ModelCard) -> tuple[Placement, ...]:
    """A lattice long enough for any halo, at the least scale of the card."""
    scale = Fraction(2) if card.scales[0] <= 2 <= card.scales[1] else Fraction(card.scales[0]).limit_denominator(12)
    length = 4 * (max(card.halo) + BEYOND + 2)
    fine = int(length * scale)
    changed = Placement(length, fine, scale, (scale - 1) / 2 + (fine - length * scale) / 2)
    same = Placement(length, length, Fraction(1), Fraction(0))
    return (changed, same, same) if card.axes == "through-plane" else (changed, changed)


def _reach(predictor: Predictor, places: tuple[Placement, ...], halo: Sequence[int], axis: int, shift: int) -> int:
    """Samples on either side that the fine samples nearest to one coarse sample depend on along an axis."""
    centre = [p.coarse // 2 // 2 * 2 + shift for p in places]
    read = Box(
        tuple(c - h - BEYOND for c, h in zip(centre, halo, strict=True)),
        tuple(c + h + BEYOND + 1 for c, h in zip(centre, halo, strict=True)),
    )
    half = Fraction(1, 2)
    fine = [
        [i for i, u in enumerate(p.coordinates()) if -half <= u - c < half] for p, c in zip(places, centre, strict=True)
    ]
    write = Box(tuple(f[0] for f in fine), tuple(f[-1] + 1 for f in fine))
    told = Condition((1.0,), (0.0,))
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(1, *read.shape)).astype(np.float32)
    plain = predictor.residual(samples, read, write, places, told)

    def changed(low: int, high: int, value: float | None) -> bool:
        """Whether the output depends on the samples at distances low to high."""
        other = samples.copy()
        distance = np.abs(np.arange(read.shape[axis]) - (centre[axis] - read.start[axis]))
        index: list[slice | np.ndarray] = [slice(None)] * other.ndim
        index[1 + axis] = np.flatnonzero((distance >= low) & (distance <= high))
        place = tuple(index)
        other[place] = rng.normal(size=other[place].shape) if value is None else value
        return not np.array_equal(plain, predictor.residual(other, read, write, places, told))

    far = halo[axis] + BEYOND
    traced = max((d for d in range(far, max(-1, halo[axis] - BEYOND), -1) if changed(d, d, np.nan)), default=0)
    if changed(traced + 1, far, None):
        raise ModelError(what="the network is not local", why="samples beyond its traced reach change its output")
    return traced
