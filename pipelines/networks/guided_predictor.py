"""Running a guided network on a tile: block by block, every channel with the same guides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from pipelines import interpolation
from pipelines.card import ModelCard
from pipelines.errors import ModelError
from pipelines.grid import Box, Placement
from pipelines.injection import REACH, Detail, Lifting, detail
from pipelines.networks import Guidance
from pipelines.networks.guided import GuidedNet
from pipelines.networks.guided_shape import FOLD, GuidedOptions, blocks
from pipelines.networks.weights import fill, misfit, prepare
from pipelines.tiles import reflected

Array = NDArray[np.float32]


def load(card: ModelCard, device: str = "cpu", threads: int | None = None, precision: str = "fp32") -> GuidedPredictor:
    """The predictor of a card. Raises ModelError if its weights do not fit it."""
    card.verify()
    prepare(device, precision, threads)
    try:
        net = GuidedNet(GuidedOptions.of(card.options), mixed=precision == "bf16")
    except (TypeError, RuntimeError) as error:
        raise misfit(card, error) from error
    fill(net, card)
    return GuidedPredictor(net, device)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A block: fine samples it makes, those it looks at inside the image, and coarse ones those depend on.

    shape: of the whole fine grid; held: of the coarse samples, those inside the image.
    """

    made: Box
    fine: Box
    coarse: Box
    shape: tuple[int, ...]
    lifting: Lifting
    held: tuple[slice, ...]


class GuidedPredictor:
    """See `networks.GuidedPredictor`."""

    def __init__(self, net: GuidedNet, device: str = "cpu") -> None:
        self.options, self.device = net.options, device
        self._net = net.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch lacks it

    def residual(
        self, samples: Array, read: Box, write: Box, places: tuple[Placement, ...], guidance: Guidance
    ) -> Array:
        """See `networks.GuidedPredictor.residual`."""
        result = np.empty((len(samples), *write.shape), np.float32)
        try:
            with torch.inference_mode():
                for rows in blocks(write.start[0], write.stop[0]):
                    for columns in blocks(write.start[1], write.stop[1]):
                        made = Box((rows[0], columns[0]), (rows[1], columns[1]))
                        part = self._part(made, read, places)
                        own = (slice(None), *made.within(write).slices)
                        result[own] = self._block(part, samples, read, guidance)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                what="the device has no memory left for a tile", why="others use it", fix="run it with --device cpu"
            ) from error
        return result

    def _part(self, made: Box, read: Box, places: tuple[Placement, ...]) -> _Part:
        shape = tuple(p.fine for p in places)
        fine = made.grow(self.options.guide_halo).clip(shape)
        low, high, held = [], [], []
        cubic: list[sparse.csr_array] = []
        linear: list[sparse.csr_array] = []
        for a, place in enumerate(places):
            first, last = (round(float(u)) for u in (place.positions()[i] for i in (fine.start[a], fine.stop[a] - 1)))
            reach = interpolation.REACH["cubic"] + 1
            seen = (max(0, first - reach), min(place.coarse, last + reach + 1))  # splines know the true edge
            seen = (min(seen[0], place.coarse - 1), max(seen[1], 1))
            low.append(seen[0] - REACH)
            high.append(seen[1] + REACH)
            held.append(slice(REACH, REACH + seen[1] - seen[0]))
            for kind, kept in (("cubic", cubic), ("linear", linear)):
                whole = interpolation.matrix(place, kind)
                kept.append(whole[fine.start[a] : fine.stop[a], seen[0] : seen[1]].tocsr())
        coarse = Box(tuple(low), tuple(high))
        if coarse.intersection(read) != coarse:
            raise ModelError(what="a tile holds too few samples for the network", why=f"it needs {coarse}, not {read}")
        return _Part(made, fine, coarse, shape, Lifting(tuple(cubic), tuple(linear)), tuple(held))

    def _block(self, part: _Part, samples: Array, read: Box, guidance: Guidance) -> Array:
        """The residual (c, *made)."""
        coarse = part.coarse.within(read).slices
        lowered = guidance.lowered[(slice(None), *coarse)].astype(np.float64)
        guides = guidance.fine[(slice(None), *part.fine.within(guidance.box).slices)].astype(np.float64)
        result = np.empty((len(samples), *part.made.shape), np.float32)
        for c, relation in enumerate(guidance.relations):
            channel = samples[c][coarse].astype(np.float64)
            found = detail(channel, lowered, guides, part.lifting, relation, held=part.held)
            result[c] = found.added[part.made.within(part.fine).slices] + self._refined(part, found)
        return result

    def _refined(self, part: _Part, found: Detail) -> Array:
        """What the network adds (*made)."""
        margin = self.options.margin
        start = [a // FOLD * FOLD - margin for a in part.made.start]  # folding starts at global multiples
        stop = [-(-b // FOLD) * FOLD + margin for b in part.made.stop]
        rows, columns = (
            reflected(a, b, n) - first for a, b, n, first in zip(start, stop, part.shape, part.fine.start, strict=True)
        )

        def put(maps: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(maps[..., rows[:, None], columns].astype(np.float32)).to(self.device)[None]

        weights = torch.ones(1, len(found.of_guides), device=self.device)
        made = self._net(put(found.shared), put(found.of_guides), weights)[0, 0].float().cpu().numpy()
        inner = Box(tuple(start), tuple(stop)).grow(-margin)
        return np.asarray(made[part.made.within(inner).slices])
