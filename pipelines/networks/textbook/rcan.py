"""RCAN: residual groups whose channels are weighed by their means. Zhang et al., ECCV 2018.

The paper's means are those of the whole image, so that no tile could agree with it. Here they are those of a window
around each sample, which is local; window 0 gives the paper's network, which is not. Each attention adds half a window
to the halo: 2 groups of 4 blocks need 54 coarse samples, the paper's 10 of 20 need 1214.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import ModelError
from pipelines.networks.textbook import upsampling
from pipelines.networks.textbook.blocks import Skip, convolution
from pipelines.networks.textbook.network import Textbook


class _ChannelAttention(nn.Module):
    """x * sigmoid(W ReLU(V mean(x))), the mean over a window around each sample, or over all (window 0)."""

    def __init__(self, ndim: int, channels: int, reduction: int, window: int) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.window = window
        self.weigh = nn.Sequential(
            convolution(ndim, channels, narrow, 1, act="RELU"), convolution(ndim, narrow, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * cast(Tensor, self.weigh(self._mean(x)))

    def _mean(self, x: Tensor) -> Tensor:
        d = x.ndim - 2
        if not self.window:
            return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        pool = functional.avg_pool2d if d == 2 else functional.avg_pool3d
        for axis in range(d):  # a box is the product of its sides
            around = [0] * 2 * d
            around[2 * (d - 1 - axis)] = around[2 * (d - 1 - axis) + 1] = self.window // 2
            kernel = [self.window if a == axis else 1 for a in range(d)]
            x = pool(functional.pad(x, around), kernel, stride=1)
        return x


def rcan(
    scale: Sequence[int], *, channels: int, groups: int, blocks: int, reduction: int, window: int, upsampler: str
) -> Textbook:
    """blocks: of each group; reduction: of channels within the attention; window: odd, samples per axis, or 0."""
    if window and window % 2 == 0:
        raise ModelError(
            what=f"a window of {window} has no middle sample", fix="give an odd one, or 0 for the whole image"
        )
    ndim = len(scale)

    def block() -> Skip:
        attention = _ChannelAttention(ndim, channels, reduction, window)
        convs = convolution(ndim, channels, channels, act="RELU"), convolution(ndim, channels, channels)
        return Skip(*convs, attention)

    body = [Skip(*(block() for _ in range(blocks)), convolution(ndim, channels, channels)) for _ in range(groups)]
    last = convolution(ndim, channels, 1)
    net = nn.Sequential(
        convolution(ndim, 1, channels),
        Skip(*body, convolution(ndim, channels, channels)),
        upsampling.upsampler(upsampler, scale, channels),
        last,
    )
    return Textbook(scale, net, [last], local=window > 0)
