"""Lattice body + phase head: a residual network on the coarse lattice, exact for any rational scale.

Valid, bias-free convolutions with a zero-sum first layer, so that r(a x + c) = a r(x) for a > 0: units, offsets and
constants do not matter (Mohan et al. 2020; Herbreteau et al. 2023). The head places K basis maps at the exact phase of
each fine sample (Hu et al. 2019, Meta-SR, restricted to separable phases). The last convolution starts at zero, so an
untrained network is the floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn
from torch.nn import functional

from pipelines.networks.shape import LatticeOptions

LEAK = 0.1
"""Slope of the activation below zero: scale-equivariant like ReLU, and no unit dies in a short training."""

HEAD_GAIN = 0.1
"""Keeps the first steps of K added maps as small as those of one."""


def condition_features(scale: float, blur_fwhm_coarse: float, noise_over_scale: float) -> tuple[float, float, float]:
    """What the network is told, spread to about one unit each."""
    return math.log2(scale) - 2.0, blur_fwhm_coarse - 1.0, math.log2(1.0 + 200.0 * noise_over_scale)


def locate(coordinates: Sequence[Fraction]) -> tuple[list[int], list[Fraction]]:
    """Nearest lattice index and phase in [-1/2, 1/2) of exact coarse coordinates."""
    index = [math.floor(u + Fraction(1, 2)) for u in coordinates]
    return index, [u - i for u, i in zip(coordinates, index, strict=True)]


def _convolution(inputs: int, outputs: int, kernel: tuple[int, int]) -> Convolution:
    return Convolution(2, inputs, outputs, kernel_size=kernel, padding=0, bias=False, norm=None, act=None)


class _Block(nn.Module):
    """x + B(leaky(gamma A x)), the skip cropped to what the valid convolutions leave."""

    def __init__(self, channels: int, thin: bool) -> None:
        super().__init__()
        self.rows = 1 if thin else 2
        self.a = _convolution(channels, channels, (3, 3))
        self.b = _convolution(channels, channels, (1, 3) if thin else (3, 3))

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        inner = functional.leaky_relu(self.a(x) * gamma, LEAK)
        r = self.rows
        return cast(Tensor, x[:, :, r : x.shape[2] - r, 2 : x.shape[3] - 2] + self.b(inner))


class _PhaseBasis(nn.Module):
    """B_k(phase; condition): one row of K weights per distinct phase."""

    def __init__(self, options: LatticeOptions) -> None:
        super().__init__()
        raw = (7 if options.phases == 1 else 15) + 3
        self.phases = options.phases
        self.one = nn.Linear(raw, options.hidden)
        self.two = nn.Linear(options.hidden, options.hidden)
        self.out = nn.Linear(raw + options.hidden, options.basis)
        nn.init.normal_(self.out.weight, std=(raw + options.hidden) ** -0.5)

    def forward(self, phase: Tensor, condition: Tensor) -> Tensor:
        """phase: (n, phases) in [-1/2, 1/2); condition: (3,). Returns (n, K)."""
        t = 2 * phase
        if self.phases == 1:
            waves = [f(math.pi * k * t) for k in (1, 2) for f in (torch.sin, torch.cos)]
            raw = torch.cat([t, t * t, t * t * t, *waves], dim=1)
        else:
            powers = [torch.stack([t[:, a] ** p for p in range(4)], dim=1) for a in (0, 1)]
            raw = torch.einsum("ni,nj->nij", *powers).flatten(1)[:, 1:]
        raw = torch.cat([raw, condition.expand(raw.shape[0], -1)], dim=1)
        hidden = functional.silu(self.two(functional.silu(self.one(raw))))
        return cast(Tensor, self.out(torch.cat([raw, hidden], dim=1)))


class LatticeNet(nn.Module):
    """Basis maps on the lattice (`forward`) and their weights at a phase (`basis`)."""

    def __init__(self, options: LatticeOptions, *, mixed: bool = False) -> None:
        """mixed: run the body in bfloat16 (training only)."""
        super().__init__()
        self.options, self.mixed = options, mixed
        c, fold = options.channels, options.fold
        self.first = _convolution(options.planes * fold, c, (3, 3))
        self.body = nn.ModuleList(_Block(c, options.thin) for _ in range(options.blocks))
        self.last = _convolution(c, options.basis * fold, (3, 3))
        self.film = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, c * options.blocks))
        self.basis = _PhaseBasis(options)
        for parameter in self.film[2].parameters():
            nn.init.zeros_(parameter)
        if not options.positive:  # a magnitude learns nothing at zero
            nn.init.zeros_(self.last.conv.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Maps (b, K, rows - 2 margin, columns - 2 fold margin) of planes (b, planes, rows, columns).

        columns: a multiple of the fold. condition: (3,) from `condition_features`.
        """
        o = self.options
        x = fold_columns(x, o.fold).contiguous(memory_format=torch.channels_last)
        weight = self.first.conv.weight
        zero_sum = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        x = functional.leaky_relu(functional.conv2d(x, zero_sum), LEAK)
        gamma = 1.0 + self.film(condition).view(o.blocks, 1, o.channels, 1, 1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            for block, g in zip(self.body, gamma, strict=True):
                x = block(x, g)
        x = self.last(x.float() if self.mixed else x)
        return HEAD_GAIN * unfold_columns(x, o.fold)


def fold_columns(x: Tensor, fold: int) -> Tensor:
    """(b, c, rows, columns) -> (b, c * fold, rows, columns / fold)."""
    b, c, rows, columns = x.shape
    return x.reshape(b, c, rows, columns // fold, fold).permute(0, 1, 4, 2, 3).reshape(b, c * fold, rows, -1)


def unfold_columns(x: Tensor, fold: int) -> Tensor:
    """The inverse of `fold_columns`."""
    b, c, rows, columns = x.shape
    return x.reshape(b, c // fold, fold, rows, columns).permute(0, 1, 3, 4, 2).reshape(b, c // fold, rows, -1)


def place_rows(maps: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The sum (b, n, columns) over k of weights[n, k] maps[b, k, rows[n]].

    One map at a time, so that a row never depends on which others are asked for; unbound, for each index into a tensor
    has a gradient as large as all of it.
    """
    result = torch.zeros(maps.shape[0], len(rows), maps.shape[3], dtype=maps.dtype, device=maps.device)
    for own, weight in zip(maps.unbind(1), weights.unbind(1), strict=True):
        result = result + own.index_select(1, rows) * weight[:, None]
    return result


def place_pixels(maps: Tensor, rows: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """The sum (b, ny, nx) over k of weights[k, ny, nx] maps[b, k, rows[ny], columns[nx]]."""
    result = torch.zeros(maps.shape[0], len(rows), len(columns), dtype=maps.dtype, device=maps.device)
    for own, weight in zip(maps.unbind(1), weights, strict=True):
        result = result + own.index_select(1, rows).index_select(2, columns) * weight
    return result
