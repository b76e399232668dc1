"""Networks that supply the residual r of a product: x = Project(cubic(y) + r(y)).

A network is local: its output at a fine sample depends on a certified number of coarse samples around it and on nothing
else, so that tiles agree with the whole. Torch is imported by `load` only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.card import ModelCard
from pipelines.errors import ModelError
from pipelines.grid import Box, Placement
from pipelines.injection import Relation
from pipelines.tiles import Cover


@dataclass(frozen=True, slots=True)
class Family:
    """Three 'module:function': one loads a network, called with (card, device, threads, precision).

    The others count its multiply-adds, in a run called with (card, cover), and a fine sample called with (card), in
    thousands; without torch.
    """

    load: str
    multiply_adds: str
    kmac_per_sample: str


NETWORKS: dict[str, Family] = {
    "lattice": Family(
        "pipelines.networks.predictor:load",
        "pipelines.networks.shape:multiply_adds",
        "pipelines.networks.shape:kmac_per_sample",
    ),
    "textbook": Family(
        "pipelines.networks.textbook.predictor:load",
        "pipelines.networks.textbook.cost:multiply_adds",
        "pipelines.networks.textbook.cost:kmac_per_sample",
    ),
}
"""Families that a card can name."""

GUIDED: dict[str, Family] = {
    "guided": Family(
        "pipelines.networks.guided_predictor:load",
        "pipelines.networks.guided_shape:multiply_adds",
        "pipelines.networks.guided_shape:kmac_per_sample",
    ),
}
"""The same of those that need a guide."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a network is told about the measurement, one value per channel, free of units.

    blur_fwhm_coarse: full width at half maximum of the blur along the upsampled axes, in coarse samples.
    noise_over_scale: standard deviation of the noise over the `scale` that the samples were divided by.
    """

    blur_fwhm_coarse: tuple[float, ...]
    noise_over_scale: tuple[float, ...]


class Predictor(Protocol):
    """A network with its weights, on its device.

    halo: coarse samples per axis (array order) that the residual at a fine sample needs on each side of the nearest
    coarse index; multiple_of: what the start and the shape of a read box must be multiples of.
    """

    @property
    def halo(self) -> tuple[int, ...]:
        """See above; the first axis is the upsampled one of a volume: `reach` says it for any axis."""
        ...

    @property
    def multiple_of(self) -> tuple[int, ...]:
        """See above."""
        ...

    def reach(self, places: tuple[Placement, ...]) -> tuple[int, ...]:
        """The halo per axis for the axes that `places` upsample. Raises ModelError if they do not suit the network."""
        ...

    def residual(
        self,
        samples: NDArray[np.float32],
        read: Box,
        write: Box,
        places: tuple[Placement, ...],
        condition: Condition,
    ) -> NDArray[np.float32]:
        """The residual (c, *write.shape) in the units of `samples`.

        samples: (c, *read.shape), finite, (x - centre) / scale, reflected by the caller where `read` reaches beyond
        the image (NumPy's mode 'reflect'); read: global coarse indices; write: global fine indices. Raises ModelError
        if `read` lacks a part of the halo or the axes do not suit the network.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Guidance:
    """What a guided network sees of the guide of a tile, each guide channel as (x - centre) / scale.

    lowered: (g, *read), on the coarse grid, reflected like the samples; fine: (g, *box.shape), on the fine one, inside
    the image; relations: of each channel of the samples with the guides.
    """

    lowered: NDArray[np.float32]
    fine: NDArray[np.float32]
    box: Box
    relations: tuple[Relation, ...]


class GuidedPredictor(Protocol):
    """A network that needs a guide, with its weights, on its device."""

    def residual(
        self,
        samples: NDArray[np.float32],
        read: Box,
        write: Box,
        places: tuple[Placement, ...],
        guidance: Guidance,
    ) -> NDArray[np.float32]:
        """The guides' detail and the network's residual (c, *write.shape), together, in the units of `samples`.

        samples, read, write: as for `Predictor.residual`. Raises ModelError if `read` lacks a part of the halo.
        """
        ...


def load_guided(
    card: ModelCard, device: str = "cpu", threads: int | None = None, precision: str = "fp32"
) -> GuidedPredictor:
    """As `load`, of a card that is `guided`."""
    if device == "auto":
        device = "cuda" if has_cuda() else "cpu"
    predictor: GuidedPredictor = _function(_family(card).load)(card, device, threads, precision)
    return predictor


def load(card: ModelCard, device: str = "cpu", threads: int | None = None, precision: str = "fp32") -> Predictor:
    """The network of a card, its weights verified, on a device (auto, cpu or cuda). Raises ModelError.

    precision: 'fp32', or 'bf16' for the body of the network; sums, the head and all else stay in float32.
    """
    if device == "auto":
        device = "cuda" if has_cuda() else "cpu"
    predictor: Predictor = _function(_family(card).load)(card, device, threads, precision)
    return predictor


def multiply_adds(card: ModelCard, cover: Cover) -> float:
    """Of the network for one channel of all tiles, 0 without one. Needs no torch."""
    return float(_function(_family(card).multiply_adds)(card, cover)) if card.network else 0.0


def kmac_per_sample(card: ModelCard) -> float:
    """Thousand multiply-adds per fine sample and channel, without halos, at 2x if a network makes many scales."""
    return float(_function(_family(card).kmac_per_sample)(card)) if card.network else 0.0


def _family(card: ModelCard) -> Family:
    known = GUIDED if card.guided else NETWORKS
    if card.network not in known:
        raise ModelError(
            what=f"the model {card.name} names the network '{card.network}', which is not known here",
            fix=f"known are {', '.join(sorted(known))}; update truescale or choose another model",
        )
    return known[card.network]


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), name))


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())
