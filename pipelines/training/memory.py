"""What a training step takes, before it is tried, and what would fit where it does not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.errors import BudgetError
from pipelines.training.config import TrainingConfig

COPIES = 5
"""Of the weights: themselves, gradients, two of the optimizer, average."""

OVERHEAD = 1.5
"""Bytes of a step over those of its features: their gradients, and orders that libraries copy them into."""

FIXED_BYTES = 600e6
"""Of torch, its kernels and what makes pairs."""


def step_bytes(net: nn.Module, config: TrainingConfig) -> tuple[float, float]:
    """(bytes whatever the batch, bytes per pair) of a training step. Computes nothing."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[id(storage)] = storage.nbytes()
        held.append(storage)
        return tensor

    held: list[object] = []
    twin = copy.deepcopy(net).to("meta")
    twin.mixed = False  # type: ignore[assignment]  # torch types attributes as modules
    own = {id(p.untyped_storage()) for p in twin.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = twin(torch.zeros(1, 1, *config.patch, device="meta"))
    pair = OVERHEAD * (sum(n for k, n in saved.items() if k not in own) + 12 * made.numel() * made.element_size())
    return FIXED_BYTES + COPIES * sum(4.0 * p.numel() for p in net.parameters()), pair


def free_bytes(*, cuda: bool) -> float:
    """Of the device; infinite where it cannot be told."""
    if cuda:
        return float(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), float("inf"))


def check(net: nn.Module, config: TrainingConfig, *, cuda: bool, devices: int) -> None:
    """Raise BudgetError if a step of all processes does not fit into what is free, and say what does."""
    fixed, pair = step_bytes(net, config)
    free = free_bytes(cuda=cuda)
    processes = 1 if cuda else devices
    needed = processes * fixed + pair * config.batch / (devices if cuda else 1)
    if needed > free:
        raise _too_large(config, fixed * processes, pair / (devices if cuda else 1), needed, free)


@contextmanager
def told(net: nn.Module, config: TrainingConfig, *, cuda: bool) -> Iterator[None]:
    """Out of memory as a BudgetError that says what would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in text:
            raise
        if isinstance(error, BudgetError):
            raise
        fixed, pair = step_bytes(net, config)
        free = free_bytes(cuda=cuda)
        raise _too_large(config, fixed, pair, fixed + pair * config.batch, min(free, fixed + pair)) from error


def _too_large(config: TrainingConfig, fixed: float, pair: float, needed: float, free: float) -> BudgetError:
    fits = int((free - fixed) // pair) if free > fixed else 0
    if fits >= 1:
        fix = f"give batch: {min(fits, config.batch)}"
    else:
        shrink = max(free - fixed, 0.0) / pair
        side = shrink ** (1 / len(config.patch))
        smaller = [max(2, int(n * side)) for n in config.patch]
        fix = f"give batch: 1 and extent: {smaller}, or a smaller network"
    return BudgetError(what=f"a training step takes about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", fix=fix)
