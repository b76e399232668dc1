"""VDSR: twenty plain layers on the cubic estimate, which learn what it lacks. Kim, Lee and Lee, CVPR 2016."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipelines.networks.textbook.blocks import chain, convolution
from pipelines.networks.textbook.network import Textbook
from pipelines.networks.textbook.upsampling import Cubic


def vdsr(scale: Sequence[int], *, channels: int, layers: int) -> Textbook:
    """layers: all convolutions, two or more; the last makes the residual. The caller's floor is the global skip."""
    ndim, hidden = len(scale), max(1, layers - 1)
    last = convolution(ndim, channels, 1)
    body = chain(ndim, [channels] * hidden, [3] * hidden, "RELU")
    return Textbook(scale, nn.Sequential(Cubic(scale), body, last), [last])
