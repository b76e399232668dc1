"""Autoencoders on the fine lattice, from the cubic estimate: plain, residual, attention, multi-scale, variational.

The bottleneck loses detail, so they make what is added to the floor, not the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pipelines.errors import ModelError
from pipelines.networks.textbook.blocks import convolution, he_initialised
from pipelines.networks.textbook.network import Textbook, coarse_period
from pipelines.networks.textbook.upsampling import Cubic, Repeat

KINDS = ("plain", "residual", "attention", "multiscale")


class _Gate(nn.Module):
    """A skip weighed by what the decoder is looking for: x * sigmoid(psi(ReLU(W x + V g))) (Oktay et al. 2018)."""

    def __init__(self, ndim: int, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // 2)
        self.of_skip = convolution(ndim, channels, narrow, 1)
        self.of_decoder = convolution(ndim, channels, narrow, 1)
        self.psi = nn.Sequential(nn.ReLU(), convolution(ndim, narrow, 1, 1), nn.Sigmoid())

    def forward(self, skip: Tensor, decoded: Tensor) -> Tensor:
        return skip * cast(Tensor, self.psi(self.of_skip(skip) + self.of_decoder(decoded)))


class _AutoEncoder(nn.Module):
    """(b, 1, *n) -> (b, features, *n). Each level has half the samples of the one above."""

    def __init__(self, ndim: int, channels: Sequence[int], kind: str) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ModelError(what=f"there is no autoencoder '{kind}'", fix=f"choose one of {', '.join(KINDS)}")
        self.kind = kind
        self.first = convolution(ndim, 1, channels[0], act="PRELU")
        self.down = encoder(ndim, channels)
        self.up = decoder(ndim, channels)
        skips = channels[-2::-1]
        self.gates = nn.ModuleList(_Gate(ndim, c) for c in (skips if kind == "attention" else ()))
        levels = range(len(channels) - 1, -1, -1)
        self.repeats = nn.ModuleList(Repeat((2**n,) * ndim) for n in (levels if kind == "multiscale" else ()))
        self.features = sum(channels) if kind == "multiscale" else channels[0]

    def forward(self, x: Tensor) -> Tensor:
        kept = [cast(Tensor, self.first(x))]
        for down in self.down:
            kept.append(down(kept[-1]))
        x = kept.pop()
        made = [x]
        for n, up in enumerate(self.up):
            x, skip = up(x), kept.pop()
            if self.kind == "attention":
                x = x + self.gates[n](skip, x)
            elif self.kind != "plain":
                x = x + skip
            made.append(x)
        if self.kind == "multiscale":
            return torch.cat([repeat(level) for repeat, level in zip(self.repeats, made, strict=True)], dim=1)
        return x


def encoder(ndim: int, channels: Sequence[int]) -> nn.ModuleList:
    """One module per halving of the samples."""
    return nn.ModuleList(
        he_initialised(
            nn.Sequential(
                convolution(ndim, inputs, outputs, 4, stride=2, act="PRELU"),
                convolution(ndim, outputs, outputs, act="PRELU"),
            )
        )
        for inputs, outputs in pairwise(channels)
    )


def decoder(ndim: int, channels: Sequence[int]) -> nn.ModuleList:
    """One module per doubling of the samples, from the deepest level."""
    return nn.ModuleList(
        he_initialised(
            nn.Sequential(
                convolution(ndim, inputs, outputs, 4, stride=2, act="PRELU", transposed=True),
                convolution(ndim, outputs, outputs, act="PRELU"),
            )
        )
        for inputs, outputs in pairwise(channels[::-1])
    )


def autoencoder(scale: Sequence[int], *, channels: list[int], kind: str) -> Textbook:
    """channels: of each level, the first that of the fine lattice.

    kind: 'plain' (no skips; Hinton and Salakhutdinov 2006), 'residual' (skips added; Mao et al. 2016), 'attention'
    (skips gated; Oktay et al. 2018) or 'multiscale' (skips added, and every level of the decoder has its say in the
    residual, as in Lai et al. 2017).
    """
    ndim = len(scale)
    body = _AutoEncoder(ndim, channels, kind)
    last = convolution(ndim, body.features, 1)
    period = coarse_period(scale, 2 ** (len(channels) - 1))
    return Textbook(scale, nn.Sequential(Cubic(scale), body, last), [last], multiple_of=period)


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Mean divergence of independent normal variables from the standard normal [nats a variable]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


class Latent(nn.Module):
    """A map of independent normal variables: drawn from while training, their mean otherwise.

    divergence: of the last draw from the standard normal, mean over the variables [nats]: the loss adds it, weighed.
    """

    divergence: Tensor

    def __init__(self, ndim: int, channels: int, latent: int) -> None:
        super().__init__()
        self.mean = convolution(ndim, channels, latent, 1)
        self.log_variance = convolution(ndim, channels, latent, 1)
        self.back = convolution(ndim, latent, channels, 1, act="PRELU")

    def forward(self, x: Tensor) -> Tensor:
        mean = cast(Tensor, self.mean(x))
        if self.training:
            log_variance = cast(Tensor, self.log_variance(x)).clamp(-20, 20)
            self.divergence = kl(mean, log_variance)
            mean = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return cast(Tensor, self.back(mean))


def vae(scale: Sequence[int], *, channels: list[int], latent: int) -> Textbook:
    """Kingma and Welling, ICLR 2014, with convolutions all the way: any size, and tiles agree. latent: variables."""
    ndim = len(scale)
    last = convolution(ndim, channels[0], 1)
    net = nn.Sequential(
        Cubic(scale),
        convolution(ndim, 1, channels[0], act="PRELU"),
        *encoder(ndim, channels),
        Latent(ndim, channels[-1], latent),
        *decoder(ndim, channels),
        last,
    )
    return Textbook(scale, net, [last], multiple_of=coarse_period(scale, 2 ** (len(channels) - 1)))
