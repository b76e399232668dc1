"""SwinIR: attention within windows, every second layer's shifted by half a window. Liang et al., ICCVW 2021.

Windows lie on the grid of the image, so read boxes start at multiples of them. Instead of a cyclic shift and its mask
the edges of a box are padded by half a window: they belong to the halo, and no sample meets the opposite edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from monai.networks.blocks.mlp import MLPBlock
from monai.networks.nets.swin_unetr import WindowAttention, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import ModelError
from pipelines.networks.textbook import upsampling
from pipelines.networks.textbook.blocks import Skip, convolution
from pipelines.networks.textbook.network import Textbook


class _SwinLayer(nn.Module):
    """Window attention and a perceptron on each sample, both after a layer norm of its channels."""

    def __init__(self, ndim: int, channels: int, heads: int, window: int, mlp_ratio: float, *, shifted: bool) -> None:
        super().__init__()
        self.window = (window,) * ndim
        self.shift = window // 2 if shifted else 0
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, self.window, qkv_bias=True)
        self.mlp = MLPBlock(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, *n) -> the same, n multiples of the window."""
        x = x.movedim(1, -1)
        x = x + self._attended(self.norm1(x))
        x = x + cast(Tensor, self.mlp(self.norm2(x)))
        return x.movedim(-1, 1)

    def _attended(self, x: Tensor) -> Tensor:
        d, shift = len(self.window), self.shift
        if shift:
            x = functional.pad(x, [0, 0] + [shift, self.window[0] - shift] * d)
        dims = list(x.shape[:-1])
        windows = self.attention(window_partition(x.contiguous(), self.window), None)
        x = cast(Tensor, window_reverse(windows, self.window, dims))
        for axis in range(1, d + 1):
            x = x.narrow(axis, shift, x.shape[axis] - (self.window[0] if shift else 0))
        return x


def swinir(
    scale: Sequence[int],
    *,
    channels: int,
    groups: int,
    layers: int,
    heads: int,
    window: int,
    mlp_ratio: float,
    upsampler: str,
) -> Textbook:
    """layers: of each group; heads: a divisor of channels; window: coarse samples per axis (in 3-D 4 is plenty)."""
    if window < 2 or channels % heads:
        raise ModelError(
            what=f"SwinIR cannot have windows of {window} and {heads} heads of {channels} channels",
            fix="give a window of 2 or more, and a number of heads that divides the channels",
        )
    ndim = len(scale)

    def layer(number: int) -> _SwinLayer:
        return _SwinLayer(ndim, channels, heads, window, mlp_ratio, shifted=number % 2 == 1)

    body = [Skip(*(layer(n) for n in range(layers)), convolution(ndim, channels, channels)) for _ in range(groups)]
    last = convolution(ndim, channels, 1)
    net = nn.Sequential(
        convolution(ndim, 1, channels),
        Skip(*body, convolution(ndim, channels, channels)),
        upsampling.upsampler(upsampler, scale, channels),
        last,
    )
    return Textbook(scale, net, [last], multiple_of=(window,) * ndim)
