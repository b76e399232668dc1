"""Networks that are not local, run on windows that the grid of the image fixes and blended where these overlap.

A fine sample is the mean of what all windows that hold it make of it, weighed by sin^2 from their edges. Windows start
at multiples of half their length, so the weights of the two on an axis add up to 1. Every window has the same samples
and the same shape whatever tile asks for it: tiles agree to the last bit, in any order, though windows do not. What the
network would make of the whole image is another matter: `seam_share` measures how far off it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.networks.textbook.field import Field
from pipelines.networks.textbook.network import Textbook

LENGTH = {2: 64, 3: 32}
"""Coarse samples per axis of a window, at least, by the number of axes: about the patches of a training."""


def windows(net: Textbook) -> Field:
    """Half a window as halo and as multiple: a read box is then whole windows that hold each of its middle samples."""
    least = LENGTH[len(net.scale)] // 2
    half = tuple(m * -(-least // m) for m in net.multiple_of)
    return Field(half, half)


def blended(net: Textbook, samples: Tensor, half: Sequence[int]) -> Tensor:
    """The residual (1, 1, *fine) of samples (1, 1, *coarse), from windows of twice `half` coarse samples.

    samples: their lengths and their start on the grid of the image are multiples of `half`. Within half a window of
    their edges the weights do not add up to 1: the caller crops that.
    """
    fine = [n * s for n, s in zip(samples.shape[2:], net.scale, strict=True)]
    result = torch.zeros(1, 1, *fine, device=samples.device)
    weight = _weight(net.scale, half).to(samples.device)
    for starts in product(*(range(0, n - h, h) for n, h in zip(samples.shape[2:], half, strict=True))):
        window, made = samples, result
        for axis, (start, h, s) in enumerate(zip(starts, half, net.scale, strict=True)):
            window = window.narrow(2 + axis, start, 2 * h)
            made = made.narrow(2 + axis, start * s, 2 * h * s)
        made += weight * net(window.contiguous())
    return result


def seam_share(net: Textbook, samples: Tensor, half: Sequence[int]) -> float:
    """Root mean square of what blending changes, over that of what the network makes of all samples at once.

    samples: (1, 1, *coarse), normalised; of each axis as many halves of a window as fit are used, four or more. Raises
    ModelError for fewer.
    """
    kept = samples
    for axis, h in enumerate(half):
        kept = kept.narrow(2 + axis, 0, samples.shape[2 + axis] // h * h)
    if any(n < 4 * h for n, h in zip(kept.shape[2:], half, strict=True)):
        raise ModelError(
            what=f"{'x'.join(map(str, samples.shape[2:]))} samples are too few to measure seams on",
            why="two windows need neighbours",
            fix=f"give {'x'.join(str(4 * h) for h in half)} or more",
        )
    training = net.training
    net.eval()
    with torch.inference_mode():
        whole, made = net(kept), blended(net, kept, half)
    net.train(training)
    for axis, (h, s) in enumerate(zip(half, net.scale, strict=True)):
        whole, made = (x.narrow(2 + axis, h * s, x.shape[2 + axis] - 2 * h * s) for x in (whole, made))
    largest = float(whole.square().mean())
    return math.sqrt(float((made - whole).square().mean()) / largest) if largest else 0.0


def _weight(scale: Sequence[int], half: Sequence[int]) -> Tensor:
    """Of the fine samples of a window."""
    weight = torch.ones(())
    for h, s in zip(half, scale, strict=True):
        length = 2 * h * s
        line = torch.sin(math.pi * (torch.arange(length, dtype=torch.float64) + 0.5) / length) ** 2
        weight = weight[..., None] * line.float()
    return weight
