"""A network as one module whose inputs and output are plain tensors, for programs that know nothing of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pipelines.card import ModelCard
from pipelines.networks.lattice import LatticeNet, condition_features
from pipelines.networks.shape import LatticeOptions
from pipelines.networks.textbook.bundle import read_bundle
from pipelines.networks.textbook.network import Textbook
from pipelines.networks.weights import fill

EXAMPLE = 6
"""Samples per axis of an example, at least, beyond what valid convolutions consume."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Of an input. length: in the example; step: lengths are multiples of it, 0 if there is no other; least: length."""

    name: str
    length: int
    step: int = 0
    least: int = 1


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that a network is called with."""

    name: str
    axes: tuple[Axis, ...]

    def drawn(self, seed: int, longer: int = 0) -> Tensor:
        """Random values; longer: by so many steps than the example."""
        shape = [axis.length + longer * axis.step for axis in self.axes]
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Portable:
    """module: called with one tensor per row of inputs, of these axes; it makes the residual."""

    module: nn.Module
    inputs: tuple[Input, ...]


class LatticePhases(nn.Module):
    """A lattice network at given phases: its residual at each of them, around every lattice sample.

    scale, blur_fwhm_coarse, noise_over_scale: what the phases and the condition are where they are not given; a whole
    scale per refined axis.
    """

    def __init__(
        self, scale: int = 2, blur_fwhm_coarse: float = 1.0, noise_over_scale: float = 0.0, **options: int
    ) -> None:
        super().__init__()
        self.net = LatticeNet(LatticeOptions.of(dict(options)))
        self.scale = scale
        told = condition_features(scale, blur_fwhm_coarse, noise_over_scale)
        self.register_buffer("condition", torch.tensor(told), persistent=False)
        line = (torch.arange(scale, dtype=torch.float32) + 0.5) / scale - 0.5
        grid = torch.cartesian_prod(*[line] * self.net.options.phases)
        self.register_buffer("phases", grid.reshape(-1, self.net.options.phases), persistent=False)

    def forward(self, samples: Tensor, phases: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """(n, phases, rows - 2 margins, columns - 2 margins) of planes (n, planes, rows, columns).

        phases: (p, 1 or 2 axes), where a fine sample lies between -1/2 and 1/2 of its nearest coarse one, the last axis
        of an image fastest; condition: (3,) from `condition_features`.
        """
        told = cast(Tensor, self.condition) if condition is None else condition
        weights = self.net.basis(cast(Tensor, self.phases) if phases is None else phases, told)
        return torch.einsum("pk,nkrc->nprc", weights, self.net(samples, told))


def portable(card: ModelCard) -> Portable:
    """The network of a card with its verified weights. Raises ModelError."""
    if card.network == "textbook":
        net = read_bundle(card)
        return Portable(net, (Input("samples", _of_textbook(net)),))
    card.verify()
    options = LatticeOptions.of(card.options)
    module = LatticePhases(**options.to_json())
    fill(module.net, card)
    fold, (rows, columns) = options.fold, (2 * margin + 2 for margin in options.margin)
    samples = (
        Axis("planes", 2, 1),
        Axis("neighbours", options.planes),
        Axis("rows", rows + EXAMPLE, 1, rows),
        Axis("columns", fold * (columns + EXAMPLE), fold, fold * columns),
    )
    inputs = (
        Input("samples", samples),
        Input("phases", (Axis("phases", 3, 1), Axis("axes", options.phases))),
        Input("condition", (Axis("told", 3),)),
    )
    return Portable(module.eval(), inputs)


def _of_textbook(net: Textbook) -> tuple[Axis, ...]:
    names = ("z", "y", "x")[-len(net.scale) :]
    own = (Axis(name, m * -(-EXAMPLE // m), m, m) for name, m in zip(names, net.multiple_of, strict=True))
    return (Axis("images", 2, 1), Axis("channel", 1), *own)
