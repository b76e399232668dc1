"""Dense blocks on the coarse lattice: every layer sees what all before it made. SRDenseNet, RDN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from monai.networks.blocks.denseblock import ConvDenseBlock
from torch import Tensor, nn

from pipelines.networks.textbook import upsampling
from pipelines.networks.textbook.blocks import Collected, Skip, convolution
from pipelines.networks.textbook.network import Textbook


def dense(ndim: int, inputs: int, growth: int, layers: int, act: str | tuple[str, dict[str, float]]) -> ConvDenseBlock:
    """(b, inputs, ...) -> (b, inputs + layers * growth, ...): the input and what each layer adds."""
    return ConvDenseBlock(ndim, inputs, [growth] * layers, act=act, norm=None)


class _Added(nn.Module):
    """What the layers of a dense block add, without its input."""

    def __init__(self, ndim: int, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.block = dense(ndim, inputs, growth, layers, "RELU")
        self.inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.block(x))[:, self.inputs :]


def srdensenet(
    scale: Sequence[int], *, growth: int, layers: int, blocks: int, channels: int, upsampler: str
) -> Textbook:
    """Tong et al., ICCV 2017: the variant that collects all levels. channels: of the bottleneck before upsampling."""
    ndim, level = len(scale), growth * layers
    last = convolution(ndim, channels, 1)
    net = nn.Sequential(
        convolution(ndim, 1, level, act="RELU"),
        Collected([_Added(ndim, level, growth, layers) for _ in range(blocks)], with_input=True),
        convolution(ndim, level * (blocks + 1), channels, 1, act="RELU"),
        upsampling.upsampler(upsampler, scale, channels),
        nn.ReLU(),
        last,
    )
    return Textbook(scale, net, [last])


def rdn(scale: Sequence[int], *, channels: int, growth: int, layers: int, blocks: int, upsampler: str) -> Textbook:
    """Zhang et al., CVPR 2018: each dense block fused and added to its input, then all of them."""
    ndim = len(scale)

    def block() -> Skip:
        fused = convolution(ndim, channels + layers * growth, channels, 1)
        return Skip(dense(ndim, channels, growth, layers, "RELU"), fused)

    last = convolution(ndim, channels, 1)
    net = nn.Sequential(
        convolution(ndim, 1, channels),
        Skip(
            convolution(ndim, channels, channels),
            Collected([block() for _ in range(blocks)]),
            convolution(ndim, channels * blocks, channels, 1),
            convolution(ndim, channels, channels),
        ),
        upsampling.upsampler(upsampler, scale, channels),
        last,
    )
    return Textbook(scale, net, [last])
