"""Training a network of the textbook line: patches of any folder, any loss, judged on images held out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipelines import card as cards
from pipelines.card import ModelCard
from pipelines.errors import ModelError, UsageError
from pipelines.networks.textbook import build
from pipelines.networks.textbook.bundle import read_bundle, write_bundle
from pipelines.networks.textbook.network import Textbook
from pipelines.training import losses
from pipelines.training.config import TrainingConfig
from pipelines.training.patches import Batch, batch, judging
from pipelines.training.scenes import Scenes
from pipelines.training.task import Judgement, Step

JUDGED = 2**40
"""Number of the first pair that a training is judged by: no training gets there."""

LEAST_MIXED = 3
"""Samples per axis at the bottom of a strided 3-D network trained in bfloat16: with fewer, torch 2.13's gradients on
the CPU read memory that nothing has written (measured: other ones each time, some not finite)."""

PANELS = 2
"""Pairs that are shown."""

DOMAINS = {"volumes": "med", "rasters": "geo"}


@dataclass(frozen=True, slots=True, eq=False)
class TextbookTask:
    """See `Task`. difference: the loss of a config; kl: the weight of a variational network's divergence."""

    config: TrainingConfig
    scenes: Scenes
    difference: losses.Loss
    kl: float

    @classmethod
    def of(cls, config: TrainingConfig, scenes: Scenes) -> TextbookTask:
        """Raises UsageError for a loss that cannot be."""
        terms, kl = _terms(config)
        return cls(config, scenes, losses.build(terms, len(config.scale), data_range=1.0), kl)

    def network(self) -> Textbook:
        """Untrained, or with the weights that the config starts from; its frozen parts do not learn."""
        net = built(self.config)
        if self.config.init_from:
            start(net, cards.find(self.config.init_from))
        freeze(net, self.config.freeze)
        net.mixed = self.config.mixed
        net.drop(self.config.dropout)
        return net

    def batch(self, numbers: Sequence[int]) -> Batch:
        return batch(self.scenes.train, self.config, numbers)

    def step(self, net: nn.Module, batch: Batch) -> Step:
        config = self.config
        raw, projected = estimates(net, batch)
        truth = self._inner(batch.truth)
        loss = self.difference(self._inner(projected if config.project else raw), truth)
        if config.project and config.raw_weight:
            loss = loss + config.raw_weight * self.difference(self._inner(raw), truth)
        for part in net.modules() if self.kl else ():
            if hasattr(part, "divergence"):
                loss = loss + self.kl * cast(Tensor, part.divergence)
        shown = self._inner(projected if config.project else raw)
        gain = float((psnr(shown.detach(), truth) - psnr(self._inner(batch.floor), truth)).mean())
        return Step(loss, {"gain_db": gain}, shown, truth)

    def judged(self, net: nn.Module) -> Judgement | None:
        device = next(net.parameters()).device
        found: dict[str, list[Tensor]] = {"gain_db": [], "over_cubic_db": [], "unprojected_over_cubic_db": []}
        panels: list[Tensor] = []
        training = net.training
        net.eval()
        with torch.no_grad():
            for pairs in judging(self.scenes.held_out or self.scenes.train, self.config, JUDGED):
                on_device = pairs.to(device)
                raw, projected = estimates(net, on_device)
                best = projected if self.config.project else raw
                truth = self._inner(on_device.truth)
                reached, cubic, floor, alone = (
                    psnr(self._inner(x), truth) for x in (best, on_device.cubic, on_device.floor, raw)
                )
                for name, gain in zip(found, (reached - floor, reached - cubic, alone - cubic), strict=True):
                    found[name].append(gain.cpu())
                while len(panels) < min(PANELS, len(best)):
                    panels.append(panel(pairs, best.cpu(), len(panels)))
        net.train(training)
        means = {name: float(torch.cat(gains).mean()) for name, gains in found.items() if gains}
        return Judgement(means, tuple(panels)) if means else None

    def bundle(self, net: nn.Module, folder: Path, training: dict[str, Any]) -> ModelCard:
        config = self.config
        judged = self.judged(net)
        facts = {
            **training,
            "split": self.scenes.told,
            "config": config.to_json(),
            "reached": {k: round(v, 2) for k, v in judged.gains.items()} if judged else {},
        }
        own: dict[str, Any] = {
            "domain": DOMAINS[config.kind],
            "trained_on": self.scenes.told,
            "noise_over_scale": config.augment.noise_most if config.augment.noise else None,
        }
        return write_bundle(
            cast(Textbook, net), folder, name=config.name, version=config.version, training=facts, **own | config.card
        )

    def _inner(self, image: Tensor) -> Tensor:
        """Without the margin, along the axes that have one."""
        margin = self.config.margin
        for axis, (n, s) in enumerate(zip(self.config.patch, self.config.scale, strict=True)):
            image = image.narrow(2 + axis, margin * s, (n - 2 * margin) * s)
        return image


def estimates(net: nn.Module, pairs: Batch) -> tuple[Tensor, Tensor]:
    """What a network makes of the pairs, unprojected and projected (b, 1, *fine)."""
    r = net(pairs.coarse)
    return pairs.cubic + r, pairs.floor + pairs.twin.unseen(r)


def psnr(image: Tensor, truth: Tensor) -> Tensor:
    """Decibels (b,), over a range of 1."""
    error = (image - truth).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp_min(1e-12))


def panel(pairs: Batch, estimate: Tensor, number: int) -> Tensor:
    """Input, floor, estimate and truth of a pair side by side, 0..1: the middle plane of a volume."""
    fine = pairs.truth[number, 0]
    coarse = pairs.coarse[number, 0]
    for axis, n in enumerate(fine.shape):
        coarse = coarse.repeat_interleave(n // coarse.shape[axis], dim=axis)
    images = [coarse, pairs.floor[number, 0], estimate[number, 0], fine]
    if fine.ndim == 3:  # the refined axis and the last
        images = [image[:, image.shape[1] // 2] for image in images]
    low, high = torch.quantile(images[-1].flatten(), torch.tensor([0.005, 0.995]))
    shown = [((image - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) for image in images]
    return torch.cat([torch.nn.functional.pad(image, (0, 2)) for image in shown], dim=1)


def built(config: TrainingConfig) -> Textbook:
    """The untrained network of a config. Raises ModelError or UsageError for one that cannot be trained so."""
    options = dict(config.network)
    net = build(str(options.pop("name")), config.scale, **options)
    if any(n % m for n, m in zip(config.patch, net.multiple_of, strict=True)):
        near = [max(m, round(n / m) * m) for n, m in zip(config.patch, net.multiple_of, strict=True)]
        raise UsageError(
            what=f"patches of {list(config.patch)} coarse samples do not suit {config.network['name']}",
            why=f"its strides or windows take multiples of {list(net.multiple_of)}",
            fix=f"give extent: {near}",
        )
    enough = [max(n, LEAST_MIXED * m if m > 1 else n) for n, m in zip(config.patch, net.multiple_of, strict=True)]
    if config.mixed and len(config.patch) == 3 and list(config.patch) != enough:
        raise UsageError(
            what=f"bfloat16 needs patches larger than {list(config.patch)} in {config.network['name']}",
            why="where its strides leave two samples, torch's gradients of 3-D convolutions are not determined",
            fix=f"give extent: {enough}, or mixed: false",
        )
    return net


def start(net: Textbook, card: ModelCard) -> int:
    """Copy the weights of a bundle that the network has, by name and shape; returns how many tensors it left.

    Raises ModelError if the bundle is of another network, or shares nothing with it.
    """
    if card.network != "textbook":
        raise ModelError(
            what=f"{card.id} is no textbook network", why="its weights have no place here", fix="give another bundle"
        )
    name, own = card.options.get("name"), net.options["name"]
    if name != own:
        raise ModelError(
            what=f"{card.id} holds the weights of {name}, and the config trains {own}",
            why="they have no layer in common",
            fix=f"give a bundle of {own}, or train {name}",
        )
    given, wanted = read_bundle(card).state_dict(), net.state_dict()
    shared = {k: v for k, v in given.items() if k in wanted and v.shape == wanted[k].shape}
    if not shared:
        raise ModelError(
            what=f"no tensor of {card.id} fits the network of the config",
            why=f"it was built with {card.options}",
            fix="give the network the same options",
        )
    net.load_state_dict({**wanted, **shared})
    return len(wanted) - len(shared)


def freeze(net: nn.Module, parts: Sequence[str]) -> None:
    """Let the parts of a network stay as they are. Raises UsageError for an unknown one, or if nothing is left."""
    names = [name for name, _ in net.named_parameters()]
    for part in parts:
        if not any(_within(name, part) for name in names):
            known = sorted({name.rpartition(".")[0] for name in names})
            close = difflib.get_close_matches(part, known, n=1, cutoff=0.0)
            raise UsageError(
                what=f"the network has no part '{part}' to freeze",
                why=f"its parts are {', '.join(known[:6])}{' ...' if len(known) > 6 else ''}",
                fix=f"did you mean '{close[0]}'?",
            )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not any(_within(name, part) for part in parts))
    if not any(p.requires_grad for p in net.parameters()):
        raise UsageError(what="all parts of the network are frozen", why="nothing would learn", fix="freeze fewer")


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _terms(config: TrainingConfig) -> tuple[Mapping[str, Any], float]:
    """Terms of the difference, and the weight of the divergence of a variational network."""
    terms = dict(config.loss)
    kl = terms.pop("kl", 0.0)
    if type(kl) not in (int, float) or not 0 <= kl < math.inf:
        raise UsageError(what=f"the loss kl has the weight {kl!r}", fix="give a number, like 0.001")
    if kl and config.network["name"] != "vae":
        raise UsageError(what=f"{config.network['name']} has no divergence", fix="leave kl out of the loss")
    return terms, float(kl)
