"""Encoders and decoders on the coarse lattice whose output is finer than their input: U-Net, encoder-decoder.

Strides of 2: read boxes must start at multiples of their product, or the same sample would meet another phase.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.autoencoder import AutoEncoder
from monai.networks.nets.unet import UNet
from torch import nn

from pipelines.networks.textbook import upsampling
from pipelines.networks.textbook.blocks import convolution
from pipelines.networks.textbook.network import Textbook


def unet(scale: Sequence[int], *, channels: list[int], units: int, upsampler: str) -> Textbook:
    """Ronneberger et al. 2015, 3-D as Çiçek et al. 2016, residual units as MONAI's UNet.

    channels: of each level, every one of half the samples of the one before; units: convolutions of a residual unit.
    """
    body = UNet(
        spatial_dims=len(scale),
        in_channels=1,
        out_channels=channels[0],
        channels=channels,
        strides=[2] * (len(channels) - 1),
        num_res_units=units,
        norm=None,
    )
    return _finished(scale, body, channels[0], 2 ** (len(channels) - 1), upsampler)


def encoder_decoder(scale: Sequence[int], *, channels: list[int], units: int, upsampler: str) -> Textbook:
    """Noh et al. 2015, as MONAI's AutoEncoder: no skips, so what the strides lose is lost.

    channels: of each level, the first with half the samples of the input already.
    """
    body = AutoEncoder(
        spatial_dims=len(scale),
        in_channels=1,
        out_channels=channels[0],
        channels=channels,
        strides=[2] * len(channels),
        num_res_units=units,
        norm=None,
    )
    return _finished(scale, body, channels[0], 2 ** len(channels), upsampler)


def _finished(scale: Sequence[int], body: nn.Module, features: int, period: int, upsampler: str) -> Textbook:
    ndim = len(scale)
    last = convolution(ndim, features, 1)
    up = upsampling.upsampler(upsampler, scale, features)
    net = nn.Sequential(body, nn.PReLU(), up, nn.PReLU(), last)
    return Textbook(scale, net, [last], multiple_of=(period,) * ndim)
