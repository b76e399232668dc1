"""Residual blocks on the coarse lattice, a long skip, fine samples at the end: SRResNet, EDSR, WDSR."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn
from torch.nn.utils.parametrizations import weight_norm as weight_normed

from pipelines.errors import ModelError
from pipelines.networks.textbook import upsampling
from pipelines.networks.textbook.blocks import Skip, Total, convolution
from pipelines.networks.textbook.network import Textbook

NARROWING = 0.8
"""Channels in the middle of a WDSR block B over those of the trunk: 25 of 32 in the paper."""


def srresnet(scale: Sequence[int], *, channels: int, blocks: int, ends: int, norm: str, upsampler: str) -> Textbook:
    """Ledig et al., CVPR 2017. ends: kernel of the first and last convolution; norm: 'batch' is the paper's."""
    ndim = len(scale)
    body = [
        Skip(
            convolution(ndim, channels, channels, act="PRELU", norm=norm),
            convolution(ndim, channels, channels, norm=norm),
        )
        for _ in range(blocks)
    ]
    last = convolution(ndim, channels, 1, ends)
    net = nn.Sequential(
        convolution(ndim, 1, channels, ends, act="PRELU"),
        Skip(*body, convolution(ndim, channels, channels, norm=norm)),
        upsampling.upsampler(upsampler, scale, channels),
        nn.PReLU(),
        last,
    )
    return Textbook(scale, net, [last])


def edsr(scale: Sequence[int], *, channels: int, blocks: int, residual_scale: float, upsampler: str) -> Textbook:
    """Lim et al., CVPRW 2017. Wide networks (256 channels) need a residual_scale of 0.1."""
    ndim = len(scale)
    body = [
        Skip(
            convolution(ndim, channels, channels, act="RELU"),
            convolution(ndim, channels, channels),
            weight=residual_scale,
        )
        for _ in range(blocks)
    ]
    last = convolution(ndim, channels, 1)
    net = nn.Sequential(
        convolution(ndim, 1, channels),
        Skip(*body, convolution(ndim, channels, channels)),
        upsampling.upsampler(upsampler, scale, channels),
        last,
    )
    return Textbook(scale, net, [last])


def wdsr(scale: Sequence[int], *, channels: int, blocks: int, widening: int, kind: str, weight_norm: bool) -> Textbook:
    """Yu et al., 2018: a pixel shuffle alone for a head, beside one skip convolution.

    widening: channels before the ReLU over those of the trunk; kind: block 'a' (two 3 x 3) or 'b' (1 x 1, 1 x 1,
    3 x 3, for which the paper's widening is 6).
    """
    ndim, wide, count = len(scale), channels * widening, math.prod(scale)

    def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
        made: nn.Module = convolution(ndim, inputs, outputs, kernel)
        if weight_norm:
            weight_normed(made.get_submodule("conv"))
        return made

    def block() -> Skip:
        if kind == "a":
            return Skip(conv(channels, wide), nn.ReLU(), conv(wide, channels))
        narrow = max(1, int(NARROWING * channels))
        return Skip(conv(channels, wide, 1), nn.ReLU(), conv(wide, narrow, 1), conv(narrow, channels))

    if kind not in ("a", "b"):
        raise ModelError(what=f"there is no WDSR block '{kind}'", fix="choose a or b")
    # weight norm divides by the length of the weights: not where they start at zero
    last, skip = convolution(ndim, channels, count), convolution(ndim, 1, count, 5)
    trunk = nn.Sequential(conv(1, channels), *(block() for _ in range(blocks)), last)
    return Textbook(scale, nn.Sequential(Total(trunk, skip), upsampling.Shuffle(scale)), [last, skip])
