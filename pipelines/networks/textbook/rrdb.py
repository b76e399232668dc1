"""RRDB: dense blocks within residual blocks, the generator of ESRGAN. Wang et al., ECCVW 2018."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipelines.networks.textbook import upsampling
from pipelines.networks.textbook.blocks import Skip, convolution
from pipelines.networks.textbook.dense import dense
from pipelines.networks.textbook.network import Textbook

LEAKY = ("LEAKYRELU", {"negative_slope": 0.2})

DENSE_BLOCKS, LAYERS = 3, 4
"""Of each block: dense blocks, and their layers before the one that returns to the width of the trunk."""


def rrdb(
    scale: Sequence[int], *, channels: int, growth: int, blocks: int, residual_scale: float, upsampler: str
) -> Textbook:
    """residual_scale: of a dense block and of a block (the paper's beta)."""
    ndim = len(scale)

    def inner() -> Skip:
        back = convolution(ndim, channels + LAYERS * growth, channels)
        return Skip(dense(ndim, channels, growth, LAYERS, LEAKY), back, weight=residual_scale)

    body = [Skip(*(inner() for _ in range(DENSE_BLOCKS)), weight=residual_scale) for _ in range(blocks)]
    last = convolution(ndim, channels, 1)
    net = nn.Sequential(
        convolution(ndim, 1, channels),
        Skip(*body, convolution(ndim, channels, channels)),
        upsampling.upsampler(upsampler, scale, channels),
        nn.LeakyReLU(0.2),
        convolution(ndim, channels, channels),
        nn.LeakyReLU(0.2),
        last,
    )
    return Textbook(scale, net, [last])
