"""The shipped networks as plain modules over a whole image: the limit that tiles are compared with, and what peers run.

Weights of the head are those of whole scales and one condition, so that it is one 1 x 1 convolution.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from pipelines import card as cards
from pipelines.card import ModelCard
from pipelines.networks import Condition
from pipelines.networks.lattice import HEAD_GAIN, LEAK, LatticeNet, condition_features, fold_columns
from pipelines.networks.lattice import unfold_columns as unfold
from pipelines.networks.shape import LatticeOptions

CONDITION = Condition(blur_fwhm_coarse=(1.0,), noise_over_scale=(0.0,))
"""What every case tells the network, so that all compute the same."""

BATCH = 32
"""Planes of a volume that are computed at once."""


def shipped(name: str) -> tuple[ModelCard, LatticeNet]:
    """A shipped network and its card."""
    card = cards.find(name)
    assert card.weights is not None
    net = LatticeNet(LatticeOptions.of(card.options))
    net.load_state_dict(load_file(card.weights))
    return card, net.eval()


class WholeNet(nn.Module):
    """Body and head of a lattice network for one condition and whole scale: planes (b, planes, rows, columns).

    Valid convolutions: every side shrinks by the margin before it is enlarged. channels_last: else as torch lays out
    by default.
    """

    first: Tensor
    gamma: Tensor
    head: Tensor

    def __init__(self, name: str, scale: int, *, channels_last: bool = True) -> None:
        super().__init__()
        _, net = shipped(name)
        self.options, self.scale = net.options, scale
        told = torch.tensor(condition_features(scale, CONDITION.blur_fwhm_coarse[0], 0.0))
        phases = torch.tensor([(k + 0.5) / scale - 0.5 for k in range(scale)], dtype=torch.float64)
        pairs = phases[:, None] if self.options.phases == 1 else torch.cartesian_prod(phases, phases)
        with torch.inference_mode():
            weight = net.first.conv.weight
            first = (weight - weight.mean(dim=(1, 2, 3), keepdim=True)).clone()
            gamma = 1 + net.film(told).view(self.options.blocks, self.options.channels)
            head = HEAD_GAIN * net.basis.double()(pairs, told.double()).float()[:, :, None, None]
        for name, tensor in (("first", first), ("gamma", gamma), ("head", head)):
            self.register_buffer(name, tensor.clone())
        self.blocks, self.last = net.body, net.last
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.format)  # type: ignore[call-overload]  # torch's stub lacks this signature
        self.reach = net.options.halo

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, h, w) -> (b, 1, scale h', scale w') of an image, (b, planes, z, w) -> (b, 1, scale z', w')."""
        x = fold_columns(x, self.options.fold).contiguous(memory_format=self.format)
        x = functional.leaky_relu(functional.conv2d(x, self.first), LEAK)
        for block, g in zip(self.blocks, self.gamma, strict=True):
            x = block(x, g[:, None, None])
        maps = functional.conv2d(unfold(self.last(x), self.options.fold), self.head)
        if self.options.phases == 2:
            return functional.pixel_shuffle(maps, self.scale)
        b, s, rows, columns = maps.shape
        return maps.permute(0, 2, 1, 3).reshape(b, 1, rows * s, columns)


class Doubler(nn.Module):
    """A 2x upsampler of images (b, bands, h, w), each band alone, its own border reflected: what peers are given."""

    def __init__(self, *, channels_last: bool = True) -> None:
        super().__init__()
        self.net = WholeNet("lattice-geo", 2, channels_last=channels_last)
        self.halo = self.net.reach[0]

    def forward(self, x: Tensor) -> Tensor:
        """The same fine samples that the network gives for the patch alone."""
        return self.valid(functional.pad(x, (self.halo,) * 4, mode="reflect"))

    def valid(self, x: Tensor) -> Tensor:
        """Without the border: what reaches beyond the patch must be in it."""
        b, bands, *_ = x.shape
        fine: Tensor = self.net(x.reshape(b * bands, 1, *x.shape[2:]))
        return fine.reshape(b, bands, *fine.shape[2:])


def whole_volume(net: WholeNet, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of both views of a volume (z, y, x), everything beyond it reflected."""
    margin_rows, margin_columns = net.options.margin
    columns, half = margin_columns * net.options.fold, net.options.planes // 2
    depth, *plane = volume.shape
    result = np.zeros((depth * net.scale, *plane), np.float32)
    for order in ((1, 2), (2, 1)):  # planes, columns
        turned = volume.transpose(order[0], 0, order[1])
        padded = np.pad(turned, ((half,) * 2, (margin_rows,) * 2, (columns,) * 2), mode="reflect")
        fold = padded.shape[2] % net.options.fold
        padded = np.pad(padded, ((0, 0), (0, 0), (0, fold)), mode="edge")
        target = result.transpose(order[0], 0, order[1])
        for n in range(0, turned.shape[0], BATCH):
            count = min(BATCH, turned.shape[0] - n)
            chosen = np.arange(n, n + count)[:, None] + np.arange(net.options.planes)
            planes = torch.from_numpy(np.ascontiguousarray(padded[chosen])).to(net.head.device)
            target[n : n + count] += 0.5 * net(planes)[:, 0, :, : turned.shape[2]].cpu().numpy()
    return result
