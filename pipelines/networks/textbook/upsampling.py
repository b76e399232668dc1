"""From the coarse lattice to the fine one, by whole factors per axis, without a shift of the field of view.

Coarse sample j stands for fine samples j s to j s + s - 1 in every way below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import ModelError
from pipelines.networks.textbook.blocks import convolution

KEYS = -0.5
"""The parameter a of cubic convolution (Keys 1981), at which it reproduces quadratics."""


def upsampler(kind: str, scale: Sequence[int], channels: int) -> nn.Module:
    """(b, channels, *coarse) -> (b, channels, *fine): a row of UPSAMPLERS."""
    if kind not in UPSAMPLERS:
        raise ModelError(what=f"there is no upsampler '{kind}'", fix=f"choose one of {', '.join(UPSAMPLERS)}")
    return UPSAMPLERS[kind](tuple(scale), channels)


def shuffled(x: Tensor, scale: Sequence[int]) -> Tensor:
    """(b, c * prod(scale), *coarse) -> (b, c, *fine): a pixel shuffle with a factor per axis.

    The order of the channels is that of torch.nn.PixelShuffle.
    """
    d = len(scale)
    batch, _, *coarse = x.shape
    x = x.reshape(batch, -1, *scale, *coarse)
    x = x.permute(0, 1, *(n for a in range(d) for n in (2 + d + a, 2 + a)))
    return x.reshape(batch, -1, *(n * s for n, s in zip(coarse, scale, strict=True)))


class Shuffle(nn.Module):
    """`shuffled` as a module."""

    def __init__(self, scale: Sequence[int]) -> None:
        super().__init__()
        self.scale = tuple(scale)

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(x, self.scale)


class Repeat(nn.Module):
    """Every sample repeated: nearest neighbours, exact for any length."""

    def __init__(self, scale: Sequence[int]) -> None:
        super().__init__()
        self.scale = tuple(scale)

    def forward(self, x: Tensor) -> Tensor:
        for axis, s in enumerate(self.scale):
            x = x.repeat_interleave(s, dim=2 + axis) if s > 1 else x
        return x


class Cubic(nn.Module):
    """Cubic convolution (b, 1, *coarse) -> (b, 1, *fine), the start of networks that compute on the fine lattice."""

    def __init__(self, scale: Sequence[int]) -> None:
        super().__init__()
        self.scale = tuple(scale)

    def forward(self, x: Tensor) -> Tensor:
        d = len(self.scale)
        for axis, s in enumerate(self.scale):
            if s == 1:
                continue
            kernel = torch.tensor(keys_weights(s), dtype=x.dtype, device=x.device)
            shape = [s, 1] + [1] * d
            shape[2 + axis] = -1
            around = [0, 0] * d
            around[2 * (d - 1 - axis)] = around[2 * (d - 1 - axis) + 1] = 2
            x = functional.pad(x, around, mode="replicate")
            x = (functional.conv2d if d == 2 else functional.conv3d)(x, kernel.reshape(shape))
            x = shuffled(x, [s if a == axis else 1 for a in range(d)])
        return x


def keys_weights(scale: int) -> list[list[float]]:
    """Weights of the five nearest coarse samples, a row per fine sample of a coarse one; each row adds up to 1."""

    def weight(distance: float) -> float:
        t = abs(distance)
        if t <= 1:
            return (KEYS + 2) * t**3 - (KEYS + 3) * t**2 + 1
        return KEYS * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    return [[weight((k + 0.5) / scale - 0.5 - j) for j in range(-2, 3)] for k in range(scale)]


def equal_phases(conv: Convolution, count: int) -> None:
    """Let each group of `count` channels start alike (ICNR, Aitken et al. 2017): no checkerboard to unlearn."""
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(parameter[::count].repeat_interleave(count, dim=0))


def _subpixel(scale: tuple[int, ...], channels: int) -> nn.Module:
    """Convolution and pixel shuffle (Shi et al. 2016)."""
    count = math.prod(scale)
    conv = convolution(len(scale), channels, channels * count)
    equal_phases(conv, count)
    return nn.Sequential(conv, Shuffle(scale))


def _transposed(scale: tuple[int, ...], channels: int) -> nn.Module:
    """Transposed convolution; kernels are multiples of the stride, so that every fine sample has as many weights."""
    # a kernel k with padding p has its middle on that of the s fine samples, and their length, if k = s + 2 p
    kernel = [2 * s if s % 2 == 0 else 3 * s for s in scale]
    conv: nn.Module = Convolution(
        len(scale),
        channels,
        channels,
        strides=scale,
        kernel_size=kernel,
        padding=[(k - s) // 2 for k, s in zip(kernel, scale, strict=True)],
        output_padding=0,
        is_transposed=True,
        conv_only=True,
    )
    return conv


def _interpolate(scale: tuple[int, ...], channels: int) -> nn.Module:
    """Repetition and convolution (Odena et al. 2016): no checkerboard, and the convolution works on fine samples."""
    return nn.Sequential(Repeat(scale), convolution(len(scale), channels, channels))


UPSAMPLERS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "subpixel": _subpixel,
    "transposed": _transposed,
    "interpolate": _interpolate,
}
"""Ways to make fine samples of features."""
