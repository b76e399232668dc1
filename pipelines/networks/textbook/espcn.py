"""ESPCN: three layers on the coarse lattice, the last one makes every phase of the fine one. Shi et al., CVPR 2016."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from pipelines.networks.textbook.blocks import chain, convolution, one_more_kernel
from pipelines.networks.textbook.network import Textbook
from pipelines.networks.textbook.upsampling import Shuffle


def espcn(scale: Sequence[int], *, channels: list[int], kernels: list[int], act: str) -> Textbook:
    """channels: of the hidden layers; kernels: of all layers, one more. All phases start alike: at zero."""
    one_more_kernel(channels, kernels)
    ndim = len(scale)
    last = convolution(ndim, channels[-1], math.prod(scale), kernels[-1])
    return Textbook(scale, nn.Sequential(chain(ndim, channels, kernels[:-1], act), last, Shuffle(scale)), [last])
