"""Training the shipped family: pairs of any scale, a Charbonnier loss of the projected estimate, its card.

A network of errors learns the scale b of a Laplace distribution of what another one leaves (Kendall and Gal 2017,
https://arxiv.org/abs/1703.04977, in a network of its own, so that the estimate is not traded for its likelihood).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines import card as cards
from pipelines.card import ModelCard
from pipelines.errors import UsageError
from pipelines.likeness import ranges, statistics
from pipelines.networks.lattice import LatticeNet, place_pixels, place_rows
from pipelines.networks.shape import LEAST_ERROR, LatticeOptions
from pipelines.networks.weights import fill
from pipelines.training.config import TrainingConfig
from pipelines.training.pairs import MAKERS, Pair, Scene, generator, load_rasters, load_volumes
from pipelines.training.task import Judgement, Step

CHARBONNIER = 0.1
"""Where the loss turns from quadratic to linear, in units of the floor's mean error."""

CHECKED = 100
"""Pairs that say what a training reached."""

FRESH = 2**40
"""Number of the first of them: no training gets there."""


WITHIN = 1.645
"""Standard deviations on each side of a normal distribution's mean that hold nine tenths of it."""


@dataclass(frozen=True, slots=True, eq=False)
class LatticeTask:
    """See `Task`. judged_net: the network whose errors are learned, None where images are."""

    config: TrainingConfig
    scenes: list[Scene]
    judged_net: LatticeNet | None = None

    @classmethod
    def of(cls, config: TrainingConfig, data: Path) -> LatticeTask:
        """With the training scenes in memory."""
        loader = load_volumes if config.kind == "volumes" else load_rasters
        net = None
        if config.error_of:
            card = cards.find(config.error_of)
            card.verify()
            net = LatticeNet(LatticeOptions.of(card.options)).eval().requires_grad_(False)
            fill(net, card)
            if net.options.margin != config.options.margin or net.options.planes != config.options.planes:
                raise UsageError(
                    what=f"{config.name} and {card.id} see other samples",
                    why="they learn from the same pairs",
                    fix="give both the same blocks, planes, fold and thin",
                )
        return cls(config, loader(data / config.data, config.hold_out), net)

    def network(self) -> nn.Module:
        return LatticeNet(self.config.options, mixed=self.config.mixed)

    def batch(self, numbers: Sequence[int]) -> list[Pair]:
        c = self.config
        extent = cast(int, c.extent)
        return [MAKERS[c.kind](generator(c.seed, n), self.scenes, c.options, extent) for n in numbers]

    def step(self, net: nn.Module, batch: list[Pair]) -> Step:
        if self.judged_net is not None:
            return Step(torch.stack([self._likelihood(cast(LatticeNet, net), pair) for pair in batch]).mean())
        losses, gains = [], []
        for pair in batch:
            r = residual(cast(LatticeNet, net), pair)
            error = pair.floor + pair.twin.unseen(r) - pair.truth
            raw = pair.cubic + r - pair.truth
            losses.append(_charbonnier(error / pair.unit) + self.config.raw_weight * _charbonnier(raw / pair.unit))
            before = float(torch.mean((pair.floor - pair.truth) ** 2))
            if pair.clean and before > 0:
                gains.append(10 * math.log10(before / max(float(torch.mean(error.detach() ** 2)), 1e-20)))
        return Step(torch.stack(losses).mean(), {"gain_db_clean": sum(gains) / len(gains)} if gains else {})

    def _likelihood(self, net: LatticeNet, pair: Pair) -> Tensor:
        """Mean negative log-likelihood of the error under a Laplace distribution, up to a constant."""
        assert self.judged_net is not None
        with torch.no_grad():
            error = error_of(self.judged_net, pair).abs()
        b = residual(net, pair)
        return torch.mean(torch.log(b) + error / b)

    def judged(self, net: nn.Module) -> Judgement | None:
        del net
        return None

    def bundle(self, net: nn.Module, folder: Path, training: dict[str, Any]) -> ModelCard:
        trained, told = cast(LatticeNet, net), {}
        if self.judged_net is None:
            training["reached"] = reached(trained, self.config, self.scenes)
            told = met(trained, self.config, self.scenes)
        else:
            with torch.no_grad():  # of a Laplace distribution the standard deviation is sqrt(2) b
                trained.last.conv.weight.mul_(math.sqrt(2) * self.config.error_scale)
            training["reached"] = covered(trained, self.judged_net, self.config, self.scenes)
        return write_bundle(trained, self.config, folder, training, told)


def residual(net: LatticeNet, pair: Pair) -> Tensor:
    """The residual (fine image) of one pair."""
    maps = net(pair.coarse[None], pair.condition)
    weights = net.basis(pair.phases, pair.condition)
    if pair.columns is None:
        made = place_rows(maps, pair.rows, weights)[0]
    else:
        made = place_pixels(maps, pair.rows, pair.columns, weights[pair.phase_map].permute(2, 0, 1))[0]
    return made.abs() + LEAST_ERROR if net.options.positive else made


def error_of(net: LatticeNet, pair: Pair) -> Tensor:
    """What a network's projected estimate is off."""
    return pair.floor + pair.twin.unseen(residual(net, pair)) - pair.truth


def _charbonnier(error: Tensor) -> Tensor:
    return torch.mean(torch.sqrt(error * error + CHARBONNIER**2) - CHARBONNIER)


def reached(net: LatticeNet, config: TrainingConfig, scenes: list[Scene]) -> dict[str, float]:
    """Mean gain over the floor [dB] on CHECKED fresh pairs of the training scenes, and the share that lost."""
    gains: dict[bool, list[float]] = {True: [], False: []}
    extent = cast(int, config.extent)
    with torch.inference_mode():
        for number in range(CHECKED):
            pair = MAKERS[config.kind](generator(config.seed, FRESH + number), scenes, config.options, extent)
            error = error_of(net, pair)
            before, after = (float(torch.mean(e**2)) for e in (pair.floor - pair.truth, error))
            if min(before, after) > 0:
                gains[pair.clean].append(10 * math.log10(before / after))
    both = gains[True] + gains[False]
    result = {"pairs_below_floor": round(sum(g < 0 for g in both) / max(1, len(both)), 3)}
    for name, clean in (("gain_db_clean", True), ("gain_db_noisy", False)):
        if gains[clean]:
            result[name] = round(sum(gains[clean]) / len(gains[clean]), 2)
    return result


def covered(net: LatticeNet, judged_net: LatticeNet, config: TrainingConfig, scenes: list[Scene]) -> dict[str, float]:
    """Share of the truth of CHECKED fresh pairs of the training scenes that lies in the interval of 90 %."""
    within = []
    with torch.inference_mode():
        for number in range(CHECKED):
            pair = MAKERS[config.kind](
                generator(config.seed, FRESH + number), scenes, config.options, cast(int, config.extent)
            )
            within.append(float((error_of(judged_net, pair).abs() <= WITHIN * residual(net, pair)).float().mean()))
    return {"coverage_90": round(sum(within) / len(within), 3)}


def met(net: LatticeNet, config: TrainingConfig, scenes: list[Scene]) -> dict[str, Any]:
    """What CHECKED fresh pairs of the training scenes are like, for the card: `likeness.statistics`, contradiction."""
    found, contradictions = [], []
    with torch.inference_mode():
        for number in range(CHECKED):
            pair = MAKERS[config.kind](
                generator(config.seed, FRESH + number), scenes, config.options, cast(int, config.extent)
            )
            seen = pair.coarse[len(pair.coarse) // 2].numpy()
            found.append(statistics(seen, np.ones(seen.shape, bool), 1.0))
            if pair.clean:  # with noise an estimate must not agree with it
                raw = pair.cubic + residual(net, pair)
                off = pair.twin.forward(raw - pair.floor)
                contradictions.append(float(torch.sqrt(torch.mean(off**2))))
    most = float(np.quantile(contradictions, 0.99)) if contradictions else 0.0
    return {"typical": ranges(found), "contradiction": round(most, 5)}


def write_bundle(
    net: LatticeNet, config: TrainingConfig, out: Path, training: dict[str, Any], told: Mapping[str, Any] | None = None
) -> ModelCard:
    """The weights and their card in `out`; the first layer is made zero-sum. told: more of its fields."""
    first: nn.Parameter = net.first.conv.weight
    with torch.no_grad():
        first.sub_(first.mean(dim=(1, 2, 3), keepdim=True))
    options = config.options
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{config.name}-{config.version}"
    tensors = {k: v.detach().contiguous().clone() for k, v in sorted(net.state_dict().items())}
    save_file(tensors, out / f"{stem}.safetensors")
    along, across = options.halo
    card = ModelCard.from_json(
        {
            "name": config.name,
            "version": config.version,
            "network": "lattice",
            "options": options.to_json(),
            "halo": [along, across, across] if options.phases == 1 else [along, across],
            "multiple_of": [1] * (3 if options.phases == 1 else 2),
            "normalisation": "(x - median) / (99th - 1st percentile); only the noise's share depends on it",
            "sha256": hashlib.sha256((out / f"{stem}.safetensors").read_bytes()).hexdigest(),
            "weights_file": f"{stem}.safetensors",
            "training": training,
            **config.card,
            **(told or {}),
        },
        out,
    )
    card.write(out / f"{stem}.json")
    return card
