"""What the loop asks of a family of networks: pairs, the loss of a step, and a bundle at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from pipelines.card import ModelCard


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a network made of one batch. loss: what becomes small; logged: beside it.

    estimate, truth: (b, 1, *fine) of what a discriminator would judge, None for a family without one.
    """

    loss: Tensor
    logged: dict[str, float] = field(default_factory=dict)
    estimate: Tensor | None = None
    truth: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """Of held-out pairs. gains: mean decibels by name, 'gain_db' over the floor; panels: images (rows, columns)."""

    gains: dict[str, float]
    panels: tuple[Tensor, ...] = ()


class Task(Protocol):
    """One family of networks with its data. It goes to other processes with what it was made of."""

    def network(self) -> nn.Module:
        """The network at the start of a training."""
        ...

    def batch(self, numbers: Sequence[int]) -> Any:
        """The pairs of these numbers, and nothing but these numbers and the config decide them."""
        ...

    def step(self, net: nn.Module, batch: Any) -> Step:
        """The network's loss."""
        ...

    def judged(self, net: nn.Module) -> Judgement | None:
        """How good it is on what it has not seen; None for a family that is judged at the end."""
        ...

    def bundle(self, net: nn.Module, folder: Path, training: dict[str, Any]) -> ModelCard:
        """Write the network and its card. training: what it cost."""
        ...
