"""SRCNN: patches, a mapping, a reconstruction, on the cubic estimate. Dong et al., ECCV 2014; TPAMI 2016."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipelines.networks.textbook.blocks import chain, convolution, one_more_kernel
from pipelines.networks.textbook.network import Textbook
from pipelines.networks.textbook.upsampling import Cubic


def srcnn(scale: Sequence[int], *, channels: list[int], kernels: list[int]) -> Textbook:
    """channels: of the hidden layers; kernels: of all layers, one more."""
    one_more_kernel(channels, kernels)
    ndim = len(scale)
    last = convolution(ndim, channels[-1], 1, kernels[-1])
    return Textbook(scale, nn.Sequential(Cubic(scale), chain(ndim, channels, kernels[:-1], "RELU"), last), [last])
