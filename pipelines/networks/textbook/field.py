"""The receptive field of a network: traced with NaN, confirmed with other samples.

A NaN goes through every convolution, pool and softmax that sees it, whatever the weights. Axes are traced one at a
time, with as few samples as possible along the others, and with one NaN for every phase of the strides or windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.card import ModelCard
from pipelines.errors import ModelError
from pipelines.networks.textbook.network import Textbook

LONGEST = 4096
"""Coarse samples along an axis within which a network must be local."""

_CERTIFIED: set[str] = set()
"""Cards that this process has certified, by all of them that may change a product."""


@dataclass(frozen=True, slots=True)
class Field:
    """halo: coarse samples per axis on each side of the nearest one that a fine sample depends on.

    multiple_of: what starts and lengths of read boxes must be multiples of, per axis.
    """

    halo: tuple[int, ...]
    multiple_of: tuple[int, ...]


def traced(net: Textbook) -> Field:
    """The receptive field of a network. Raises ModelError if it is not local."""
    if not net.local:
        raise _not_local(net)
    training = net.training
    net.eval()
    try:
        with torch.inference_mode():
            return Field(tuple(_halo(net, axis) for axis in range(len(net.scale))), net.multiple_of)
    finally:
        net.train(training)


def certify(net: Textbook, card: ModelCard) -> None:
    """Raise ModelError unless a card states what its network needs: no less, and no more.

    A network whose card says that it is not local is not certified.
    """
    if card.digest in _CERTIFIED:
        return
    if not card.local:  # nothing to trace: its windows must only lie on the grid of its strides
        if card.halo != card.multiple_of or any(h % m for h, m in zip(card.halo, net.multiple_of, strict=True)):
            raise ModelError(
                what=f"the card of {card.id} states windows of twice {_text(card.halo)} samples",
                why=f"half of one is the halo, and a multiple of its network's {_text(net.multiple_of)}",
                fix="correct the card",
            )
        return
    found = traced(net)
    for what, stated, needed in (
        ("a halo", card.halo, found.halo),
        ("multiples", card.multiple_of, found.multiple_of),
    ):
        if stated != needed:
            raise ModelError(
                what=f"the card of {card.id} states {what} of {_text(stated)} samples, its network has {_text(needed)}",
                why="tiles would not agree with the whole, or be computed too large",
                fix="correct the card",
            )
    _CERTIFIED.add(card.digest)


def _halo(net: Textbook, axis: int) -> int:
    """Along one axis. Longer and longer images, until what a NaN reaches ends before their edges."""
    period = net.multiple_of[axis]
    length = 2 * period * max(1, 16 // period)
    while length <= LONGEST:
        base = length // 2 // period * period
        samples = _random(net, axis, length)
        reaches = []
        for n in range(base, base + period):
            reached = _reached(net, axis, samples, n)
            if reached[0] == 0 or reached[-1] == length - 1:
                break
            reaches.append(max(n - reached[0], reached[-1] - n))
        else:
            if not _confirmed(net, axis, samples, base, max(reaches)):
                raise _not_local(net)
            return max(reaches)
        length *= 2
    raise _not_local(net)


def _reached(net: Textbook, axis: int, samples: Tensor, n: int) -> list[int]:
    """Coarse samples along an axis whose fine ones depend on sample n."""
    marked = samples.clone()
    marked.select(axis + 2, n).fill_(torch.nan)
    seen = torch.isnan(net(marked)).movedim(axis + 2, -1).flatten(0, -2).any(dim=0)
    return [int(k) for k in seen.reshape(-1, net.scale[axis]).any(dim=1).nonzero().flatten()]


def _confirmed(net: Textbook, axis: int, samples: Tensor, base: int, halo: int) -> bool:
    """Whether samples beyond the halo of one period of samples change nothing there."""
    period, scale = net.multiple_of[axis], net.scale[axis]
    other = _random(net, axis, samples.shape[axis + 2], seed=1)
    low, high = max(0, base - halo), base + period + halo
    other.narrow(axis + 2, low, high - low).copy_(samples.narrow(axis + 2, low, high - low))
    a, b = (net(x).narrow(axis + 2, base * scale, period * scale) for x in (samples, other))
    return bool(torch.equal(a, b))


def _random(net: Textbook, axis: int, length: int, seed: int = 0) -> Tensor:
    shape = [length if a == axis else m for a, m in enumerate(net.multiple_of)]
    weight = next(net.parameters())
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(weight.device, weight.dtype)


def _not_local(net: Textbook) -> ModelError:
    return ModelError(
        what=f"the network {net.options.get('name', '')} is not local",
        why="its residual depends on the whole image, so tiles would not agree with it",
        fix="choose a local variant, or build it with local = False: then windows of it are blended",
    )


def _text(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values)) or "no"
