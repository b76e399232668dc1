"""Putting verified weights into a network, and torch into the state that the same bytes need."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import nn

from pipelines.card import ModelCard
from pipelines.errors import ModelError


def prepare(device: str, precision: str, threads: int | None) -> None:
    """Set the threads of a CPU; on a GPU the same bytes each time, and float32 unless something else is asked for.

    precision: 'tf32' lets CUDA round the factors of products to 10 bits.
    """
    if threads is not None and device == "cpu":
        torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


def fill(net: nn.Module, card: ModelCard) -> None:
    """Load the weights of a card. Raises ModelError if they do not fit the network or are not finite."""
    assert card.weights is not None
    try:
        net.load_state_dict(load_file(card.weights))
    except RuntimeError as error:
        raise misfit(card, error) from error
    if not all(bool(torch.isfinite(v).all()) for v in net.state_dict().values()):
        raise ModelError(what=f"the weights of {card.id} are not finite", fix="choose another model")


def misfit(card: ModelCard, error: Exception) -> ModelError:
    """Of weights or options that are not those of the network."""
    return ModelError(
        what=f"the weights of {card.id} do not fit its card",
        why=str(error).splitlines()[0],
        fix="update truescale or choose another model",
    )
