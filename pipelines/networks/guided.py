"""A residual network on the fine grid that sees an image's interpolation and the detail of its guides.

Any number of guides in any order: each goes through the same first layer, and the sum of what that gives is one of its
inputs to the body. Valid, bias-free convolutions with zero-sum first layers, so that r(a x + c) = a r(x) for a > 0, and
any c for each map. The last convolution starts at zero: an untrained network adds the detail of `pipelines.injection`
and nothing else.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.networks.guided_shape import FOLD, OF_GUIDE, SHARED, GuidedOptions

LEAK = 0.1
"""Slope of the activation below zero."""

GATHERED = 0.5
"""Of the sum over guides: about one over the root of their usual number."""


class _Block(nn.Module):
    """x + B(leaky(A x)), the skip cropped to what the valid convolutions leave."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, bias=False)
        self.b = nn.Conv2d(channels, channels, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x[..., 2:-2, 2:-2] + self.b(functional.leaky_relu(self.a(x), LEAK)))


class GuidedNet(nn.Module):
    """The residual (b, 1, y - 2 margin, x - 2 margin) of maps on the fine grid."""

    def __init__(self, options: GuidedOptions, *, mixed: bool = False) -> None:
        """mixed: run the body in bfloat16."""
        super().__init__()
        self.options, self.mixed = options, mixed
        c, folded = options.channels, FOLD * FOLD
        self.shared = nn.Conv2d(folded * SHARED, c, 3, bias=False)
        self.guide = nn.Conv2d(folded * (SHARED + OF_GUIDE), c, 3, bias=False)
        self.gathered = nn.Conv2d(c, c, 1, bias=False)
        self.body = nn.ModuleList(_Block(c) for _ in range(options.blocks))
        self.last = nn.Conv2d(c, folded, 3, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, shared: Tensor, of_guides: Tensor, weights: Tensor) -> Tensor:
        """shared: (b, SHARED, y, x); of_guides: (b, g, OF_GUIDE, y, x); weights: (b, g), 0 for a guide that is none.

        y and x are even.
        """
        b, g = of_guides.shape[:2]
        own = functional.pixel_unshuffle(shared, FOLD)
        each = functional.pixel_unshuffle(of_guides.flatten(0, 1), FOLD)
        beside = own[:, None].expand(b, g, *own.shape[1:]).flatten(0, 1)
        seen = functional.leaky_relu(_zero_sum(self.guide, torch.cat([each, beside], dim=1)), LEAK)
        together = torch.einsum("bgcyx,bg->bcyx", seen.reshape(b, g, *seen.shape[1:]), GATHERED * weights)
        x = functional.leaky_relu(self.gathered(together) + _zero_sum(self.shared, own), LEAK)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            for block in self.body:
                x = block(x)
        return functional.pixel_shuffle(self.last(x.float() if self.mixed else x), FOLD)


def _zero_sum(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution with weights that sum to zero over each map: a constant added to any one of them is not seen."""
    weight = layer.weight.unflatten(1, (-1, FOLD * FOLD))  # type: ignore[no-untyped-call]  # torch's
    return functional.conv2d(x, (weight - weight.mean(dim=(2, 3, 4), keepdim=True)).flatten(1, 2))
