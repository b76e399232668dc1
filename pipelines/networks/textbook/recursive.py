"""Networks that use the same weights again and again, on the cubic estimate: DRRN, MemNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pipelines.networks.textbook.blocks import Skip, convolution, preactivated
from pipelines.networks.textbook.network import Textbook
from pipelines.networks.textbook.upsampling import Cubic


class _Recursive(nn.Module):
    """x = h + unit(x), so many times, from h = first(samples): one unit's weights for all of them."""

    def __init__(self, first: nn.Module, unit: nn.Module, times: int) -> None:
        super().__init__()
        self.first, self.unit, self.times = first, unit, times

    def forward(self, samples: Tensor) -> Tensor:
        h = cast(Tensor, self.first(samples))
        x = h
        for _ in range(self.times):
            x = h + self.unit(x)
        return x


def drrn(scale: Sequence[int], *, channels: int, blocks: int, units: int, norm: str) -> Textbook:
    """Tai, Yang and Liu, CVPR 2017. units: times that each block applies its residual unit. Clip gradients."""
    ndim = len(scale)

    def block(inputs: int) -> _Recursive:
        unit = nn.Sequential(*(preactivated(ndim, channels, channels, norm) for _ in range(2)))
        return _Recursive(convolution(ndim, inputs, channels), unit, units)

    last = convolution(ndim, channels, 1)
    body = [block(1 if n == 0 else channels) for n in range(blocks)]
    return Textbook(scale, nn.Sequential(Cubic(scale), *body, nn.ReLU(), last), [last])


class _Memories(nn.Module):
    """Blocks of a shared residual unit; a gate (1 x 1) weighs the states of its block and all memories before it."""

    def __init__(self, ndim: int, channels: int, memories: int, units: int, norm: str) -> None:
        super().__init__()
        self.times = units
        self.units = nn.ModuleList(
            Skip(*(preactivated(ndim, channels, channels, norm) for _ in range(2))) for _ in range(memories)
        )
        self.gates = nn.ModuleList(convolution(ndim, channels * (units + 1 + m), channels, 1) for m in range(memories))

    def forward(self, x: Tensor) -> Tensor:
        long = [x]
        for unit, gate in zip(self.units, self.gates, strict=True):
            short, x = [], long[-1]
            for _ in range(self.times):
                x = unit(x)
                short.append(x)
            long.append(gate(torch.cat([*short, *long], dim=1)))
        return long[-1]


def memnet(scale: Sequence[int], *, channels: int, memories: int, units: int, norm: str) -> Textbook:
    """Tai et al., ICCV 2017, with the last memory's output alone. units: recursions in each of the memory blocks."""
    ndim = len(scale)
    last = convolution(ndim, channels, 1)
    body = _Memories(ndim, channels, memories, units, norm)
    net = nn.Sequential(Cubic(scale), convolution(ndim, 1, channels), body, nn.ReLU(), last)
    return Textbook(scale, net, [last])
