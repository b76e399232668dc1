"""Features that a trained network makes of images, to compare images by: nothing is downloaded for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.card import ModelCard
from pipelines.errors import ModelError
from pipelines.networks.textbook import REGISTRY
from pipelines.networks.textbook.bundle import read_bundle
from pipelines.networks.textbook.upsampling import Cubic

TRIED = 8
"""Samples per axis, at least, of the image that tells where samples become finer."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What each stage of a network makes of images, up to where samples would become finer.

    ndim: axes of the images; period: their sides are cropped to multiples of it.
    """

    stages: nn.Sequential
    ndim: int
    period: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """images: (b, c, *spatial), normalised as the network's card says. Raises ModelError if they are too small."""
        sides = [n - n % m for n, m in zip(images.shape[2:], self.period, strict=True)]
        if not all(sides):
            raise ModelError(
                what=f"images of {'x'.join(map(str, images.shape[2:]))} samples are too small for perceptual features",
                why=f"their network takes multiples of {'x'.join(map(str, self.period))}",
                fix="take larger patches",
            )
        self.stages.to(images.device)  # follows the images; no change where it is there already
        x = images.reshape(-1, 1, *images.shape[2:])
        for axis, n in enumerate(sides):
            x = x.narrow(2 + axis, 0, n)
        made = []
        for stage in self.stages:
            x = stage(x)
            made.append(x)
        return made


def features_of(card: ModelCard) -> Features:
    """The stages of a textbook network with its weights, frozen. Raises ModelError for another family."""
    if card.network != "textbook":
        raise ModelError(
            what=f"{card.id} is no textbook network",
            why="features come from the stages of one",
            fix="train one with truescale train and give its card",
        )
    net = read_bundle(card).requires_grad_(False)
    fine = REGISTRY[str(card.options["name"])].lattice == "fine"
    period = tuple(m * s if fine else m for m, s in zip(net.multiple_of, net.scale, strict=True))
    # a network of the fine lattice starts from the cubic estimate: here the image is what it starts from
    stages = [stage for stage in net.net.children() if not isinstance(stage, Cubic)][:-1]
    kept: list[nn.Module] = []
    x = torch.zeros(1, 1, *(m * -(-TRIED // m) for m in period))
    with torch.inference_mode():
        sides = x.shape[2:]
        for stage in stages:
            x = stage(x)
            if any(n > side for n, side in zip(x.shape[2:], sides, strict=True)):
                break
            kept.append(stage)
    return Features(nn.Sequential(*kept), len(net.scale), period)
