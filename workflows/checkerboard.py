"""Draw docs/checkerboard.png: what upsamplers that are not trained make of a constant and of a ramp.

python workflows/checkerboard.py [docs/checkerboard.png]    needs the extra 'demo'
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from monai.networks.blocks.convolutions import Convolution
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.networks.textbook.blocks import convolution
from pipelines.networks.textbook.upsampling import Shuffle, upsampler

CHANNELS = 16
COARSE = 18
SHOWN = slice(6, -6)
"""Fine samples of a side: not the edges, where convolutions meet zeros."""

REPEATS = 200
"""Draws of weights behind the numbers under the pictures."""


def transposed_by_three() -> nn.Module:
    """A kernel that is no multiple of the stride: every second fine sample has more weights (Odena et al. 2016)."""
    conv: nn.Module = Convolution(
        2, CHANNELS, CHANNELS, strides=2, kernel_size=3, padding=1, output_padding=1, is_transposed=True, conv_only=True
    )
    return conv


def subpixel_as_drawn() -> nn.Module:
    """Each phase with weights of its own."""
    return nn.Sequential(convolution(2, CHANNELS, 4 * CHANNELS), Shuffle((2, 2)))


WAYS: dict[str, Callable[[], nn.Module]] = {
    "sub-pixel,\nphases drawn apart": subpixel_as_drawn,
    "subpixel\n(phases start alike)": lambda: upsampler("subpixel", (2, 2), CHANNELS),
    "transposed,\nkernel 3, stride 2": transposed_by_three,
    "transposed\n(kernel 4, stride 2)": lambda: upsampler("transposed", (2, 2), CHANNELS),
    "interpolate\n(repeat, convolve)": lambda: upsampler("interpolate", (2, 2), CHANNELS),
}
"""The first and the third are what the others avoid."""


@dataclass(frozen=True)
class Row:
    """image: features (1, CHANNELS, COARSE, COARSE) without any detail; equal: all weights alike, as none is drawn."""

    name: str
    image: Tensor
    equal: bool = False


def rows() -> list[Row]:
    """What is upsampled."""
    constant = torch.ones(1, CHANNELS, COARSE, COARSE)
    ramp = torch.linspace(-1, 1, COARSE) * constant
    return [
        Row("constant, random weights", constant),
        Row("ramp, random weights", ramp),
        Row("constant, equal weights", constant, equal=True),
    ]


def made(way: Callable[[], nn.Module], row: Row, seed: int) -> NDArray[np.float32]:
    """The first feature that it makes, (fine, fine)."""
    torch.manual_seed(seed)
    net = way()
    with torch.inference_mode():
        for parameter in net.parameters() if row.equal else ():
            parameter.fill_(1.0 if parameter.ndim > 1 else 0.0)
        fine: NDArray[np.float32] = net(row.image)[0, 0].numpy()
    return fine[SHOWN, SHOWN]


def pattern(image: NDArray[np.float32]) -> float:
    """Standard deviation between the four phases of a fine sample, over the root mean square of the image."""
    phases = [float(image[a::2, b::2].mean()) for a in (0, 1) for b in (0, 1)]
    return float(np.std(phases) / np.sqrt(np.mean(image.astype(np.float64) ** 2)))


def draw(path: Path) -> None:
    """Write the figure."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    wanted = rows()
    figure, axes = plt.subplots(len(wanted), len(WAYS), figsize=(12.5, 8.4), constrained_layout=True)
    for line, row in zip(axes, wanted, strict=True):
        for axis, (name, way) in zip(line, WAYS.items(), strict=True):
            shown = made(way, row, seed=1)
            middle = float(shown.max() + shown.min()) / 2
            spread = max(float(np.ptp(shown)) / 2, 1e-3 * abs(middle))  # what is flat is grey
            axis.imshow(shown, cmap="gray", vmin=middle - spread, vmax=middle + spread, interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=name if row is wanted[0] else "")
            if "constant" in row.name:
                share = np.median([pattern(made(way, row, seed)) for seed in range(1 if row.equal else REPEATS)])
                axis.set_xlabel(f"pattern {share:.0%} of the rms")
        line[0].set_ylabel(row.name)
    figure.suptitle("Upsampling by 2 before any training: grey from the least to the largest value of each picture")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/checkerboard.png"))
