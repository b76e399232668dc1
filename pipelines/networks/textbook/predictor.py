"""Running a textbook network on boxes of samples: one forward pass of a tile and its halo per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.card import ModelCard, finest
from pipelines.errors import ModelError
from pipelines.grid import Box, Placement
from pipelines.networks import Condition
from pipelines.networks.textbook import axes_of
from pipelines.networks.textbook.blending import blended
from pipelines.networks.textbook.bundle import read_bundle
from pipelines.networks.textbook.cost import aligned
from pipelines.networks.textbook.field import Field, certify
from pipelines.networks.textbook.network import Textbook
from pipelines.networks.weights import prepare

Array = NDArray[np.float32]


def load(
    card: ModelCard, device: str = "cpu", threads: int | None = None, precision: str = "fp32"
) -> TextbookPredictor:
    """The predictor of a card.

    Raises ModelError if the weights are not those of the card or do not fit it, or if the receptive field is another.
    """
    prepare(device, precision, threads)
    net = read_bundle(card)
    certify(net, card)
    net.mixed = precision == "bf16"
    return TextbookPredictor(net, Field(card.halo, card.multiple_of), device, local=card.local)


@dataclass(frozen=True, slots=True)
class _Part:
    """Along one axis: coarse samples that the network is given, and which of its fine samples are asked for."""

    given: slice
    asked: slice


class TextbookPredictor:
    """A Predictor (see `pipelines.networks`) of one network on one device."""

    def __init__(self, net: Textbook, field: Field, device: str = "cpu", *, local: bool = True) -> None:
        """local: whether one pass makes a tile; otherwise windows of twice the field's halo are blended."""
        self._field = field
        self._local = local
        self._device = device
        self._turns = axes_of(net.scale) == "through-plane"
        self._scale = net.scale
        self._net = net.eval().to(device)

    @property
    def halo(self) -> tuple[int, ...]:
        """Coarse samples per side; of a volume with one axis refined most that axis first."""
        return self._field.halo

    @property
    def multiple_of(self) -> tuple[int, ...]:
        """In the same order."""
        return self._field.multiple_of

    def reach(self, places: tuple[Placement, ...]) -> tuple[int, ...]:
        """Halo per axis of the array that `places` describe."""
        order = self._order(places)
        return tuple(self.halo[order.index(a)] for a in range(len(places)))

    def residual(
        self, samples: Array, read: Box, write: Box, places: tuple[Placement, ...], condition: Condition
    ) -> Array:
        """See `Predictor.residual`. The condition is not told to these networks."""
        del condition
        order = self._order(places)
        parts = [self._part(n, a, read, write, places[a]) for n, a in enumerate(order)]
        back = tuple(order.index(a) for a in range(len(order)))
        result = np.empty((len(samples), *write.shape), np.float32)
        with torch.inference_mode():
            for c, image in enumerate(samples):
                given = image.transpose(order)[tuple(part.given for part in parts)]
                x = torch.from_numpy(np.ascontiguousarray(given))[None, None].to(self._device)
                made: Tensor = self._net(x) if self._local else blended(self._net, x, self.multiple_of)
                result[c] = made[0, 0][tuple(part.asked for part in parts)].cpu().numpy().transpose(back)
        return result

    def _order(self, places: Sequence[Placement]) -> tuple[int, ...]:
        """Which axis of the array is each of the network's. Raises ModelError if they do not suit it."""
        scales = [place.scale for place in places]
        first = finest(scales) if self._turns else None
        order = tuple(sorted(range(len(places)), key=lambda a: a != first))
        if tuple(scales[a] for a in order) != self._scale:
            raise ModelError(
                what=f"this network makes the scale {_text(self._scale)}, not {_text(scales)}",
                fix="choose another model or scale",
            )
        for a, place in enumerate(places):
            if place.offset.denominator != 1:
                raise ModelError(
                    what=f"fine samples do not divide the coarse ones of axis {a} evenly",
                    why="this network makes whole numbers of them within each",
                    fix="choose another model or grid",
                )
        return order

    def _part(self, own: int, axis: int, read: Box, write: Box, place: Placement) -> _Part:
        """own: the network's number of an axis of the array."""
        scale, shift = self._scale[own], int(place.offset)
        start, stop = write.start[axis] + shift, write.stop[axis] + shift
        low, high = aligned(start // scale, (stop - 1) // scale, self.halo[own], self.multiple_of[own])
        if low < read.start[axis] or high > read.stop[axis]:
            raise ModelError(
                what=f"samples {read.start[axis]} to {read.stop[axis]} on axis {axis} are too few for the network",
                why=f"it needs {low} to {high}",
            )
        return _Part(
            slice(low - read.start[axis], high - read.start[axis]), slice(start - low * scale, stop - low * scale)
        )


def _text(scales: Sequence[int | Fraction]) -> str:
    return "x".join(f"{float(s):g}" for s in scales)
