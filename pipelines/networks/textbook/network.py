"""What all networks of the line share: samples in, a residual out, which lattice their steps lie on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipelines.errors import ModelError


class Textbook(nn.Module):
    """Maps samples (b, 1, *coarse) to a residual (b, 1, *fine), fine = coarse * scale, zero until it is trained.

    multiple_of: what the start (on the grid of the image) and the length of the samples must be multiples of, per axis;
    local: whether the residual depends on a bounded number of samples; options: name, scale and what else builds it;
    mixed: compute in bfloat16.
    """

    def __init__(
        self,
        scale: Sequence[int],
        net: nn.Module,
        zeroed: Sequence[nn.Module],
        *,
        multiple_of: Sequence[int] = (),
        local: bool = True,
    ) -> None:
        """net: the map; zeroed: its last convolutions, which start at zero."""
        super().__init__()
        self.scale = tuple(scale)
        self.multiple_of = tuple(multiple_of) or (1,) * len(self.scale)
        self.local = local
        self.options: dict[str, Any] = {}
        self.mixed = False
        self.net = net
        self._lasts = tuple(zeroed)
        for last in zeroed:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def drop(self, share: float) -> None:
        """While it trains, leave out this share of the channels that its last convolutions read.

        There dropout helps super-resolution most (Kong et al., CVPR 2022, "Reflash Dropout in Image Super-Resolution").
        """
        for last in self._lasts if share else ():
            last.register_forward_pre_hook(partial(_dropped, share))

    def forward(self, x: Tensor) -> Tensor:
        """Raises ModelError for lengths that are no multiples of `multiple_of`."""
        if any(n % m for n, m in zip(x.shape[2:], self.multiple_of, strict=True)):
            raise ModelError(
                what=f"{self.options.get('name', 'the network')} got {'x'.join(map(str, x.shape[2:]))} samples",
                why=f"it takes multiples of {'x'.join(map(str, self.multiple_of))}",
                fix="crop or pad them",
            )
        if not self.mixed:
            return cast(Tensor, self.net(x))
        with torch.autocast(x.device.type, torch.bfloat16):
            return cast(Tensor, self.net(x)).float()


def _dropped(share: float, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
    """What a last convolution is given instead; the samples themselves are not features, and stay."""
    (x,) = given
    drop = nn.functional.dropout2d if x.ndim == 4 else nn.functional.dropout3d
    return (drop(x, share, module.training) if x.shape[1] > 1 else x,)


def coarse_period(scale: Sequence[int], fine_period: int) -> tuple[int, ...]:
    """Coarse samples per axis after which a step of so many fine ones starts again."""
    return tuple(fine_period // math.gcd(fine_period, s) for s in scale)
