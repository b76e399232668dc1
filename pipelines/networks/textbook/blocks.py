"""Parts that several networks are made of. No normalisation over space: a sample must not depend on its tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

from pipelines.errors import ModelError

NORMS = {"none": None, "batch": "BATCH"}
"""Batch norm is a factor and an offset per channel once trained, hence local; in training it shifts the range."""


def convolution(
    ndim: int,
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    act: str | None = None,
    norm: str = "none",
    transposed: bool = False,
) -> Convolution:
    """Zero padded; with a stride as many samples as it divides, with a transposed one as many as it multiplies.

    Kernels of a stride are even, so that both ways a sample stays in the middle of those that it stands for.
    """
    if norm not in NORMS:
        raise ModelError(what=f"there is no norm '{norm}'", fix=f"choose one of {', '.join(NORMS)}")
    if kernel % 2 != stride % 2:
        raise ModelError(
            what=f"a kernel of {kernel} with a stride of {stride} has no middle sample",
            why="what it makes would be shifted",
            fix="give an odd kernel",
        )
    return Convolution(
        ndim,
        inputs,
        outputs,
        strides=stride,
        kernel_size=kernel,
        padding=(kernel - 1) // 2,
        output_padding=0 if transposed else None,
        is_transposed=transposed,
        adn_ordering="NA",
        act=act,
        norm=NORMS[norm],
    )


def he_initialised(module: nn.Module) -> nn.Module:
    """The module with weights that keep the size of features through layers without skips (He et al. 2015).

    Torch's own shrink them by 1.7 and more a layer, so that the biases decide what a deep chain makes.
    """
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            fan = part.weight[0].numel() if not part.transposed else part.weight[:, 0].numel() // math.prod(part.stride)
            nn.init.normal_(part.weight, std=(2 / fan) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module


def chain(ndim: int, channels: Sequence[int], kernels: Sequence[int], act: str) -> nn.Sequential:
    """Plain layers of so many output channels, from one channel."""
    layers = zip(pairwise([1, *channels]), kernels, strict=True)
    return nn.Sequential(
        *(he_initialised(convolution(ndim, inputs, outputs, kernel, act=act)) for (inputs, outputs), kernel in layers)
    )


def one_more_kernel(channels: Sequence[int], kernels: Sequence[int]) -> None:
    """Raise ModelError unless there is a kernel per hidden layer and one of the last."""
    if len(kernels) != len(channels) + 1:
        raise ModelError(
            what=f"{len(kernels)} kernels do not fit {len(channels)} hidden layers",
            why="each has one kernel per layer, and the last layer has one too",
            fix=f"give {len(channels) + 1}",
        )


def preactivated(ndim: int, inputs: int, outputs: int, norm: str) -> nn.Sequential:
    """Norm, ReLU, convolution: the order of the recursive networks."""
    parts: list[nn.Module] = [nn.ReLU(), convolution(ndim, inputs, outputs)]
    if norm == "batch":
        parts.insert(0, (nn.BatchNorm2d if ndim == 2 else nn.BatchNorm3d)(inputs))
    elif norm != "none":
        raise ModelError(what=f"there is no norm '{norm}'", fix=f"choose one of {', '.join(NORMS)}")
    return nn.Sequential(*parts)


class Skip(nn.Module):
    """x + weight * inner(x)."""

    def __init__(self, *inner: nn.Module, weight: float = 1.0) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        inner = cast(Tensor, self.inner(x))
        return x + (inner if self.weight == 1 else self.weight * inner)


class Total(nn.Module):
    """The sum of what several branches make of the same samples."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        total = cast(Tensor, first(x))
        for branch in others:
            total = total + branch(x)
        return total


class Collected(nn.Module):
    """What each of a chain of blocks makes, side by side as channels."""

    def __init__(self, blocks: Sequence[nn.Module], *, with_input: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.with_input = with_input

    def forward(self, x: Tensor) -> Tensor:
        kept = [x] if self.with_input else []
        for block in self.blocks:
            x = block(x)
            kept.append(x)
        return torch.cat(kept, dim=1)
