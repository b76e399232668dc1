"""The training loop: a YAML in, a bundle out. Deterministic, resumable, logged to TensorBoard.

The loss sees the projected output, so the network learns what the measurement does not say. Needs the extra `train`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pipelines.card import ModelCard
from pipelines.errors import UsageError
from pipelines.networks.lattice import LatticeNet, place_pixels, place_rows
from pipelines.networks.shape import LatticeOptions
from pipelines.training.pairs import MAKERS, Pair, Scene, generator, load_rasters, load_volumes

CHARBONNIER = 0.1
"""Where the loss turns from quadratic to linear, in units of the floor's mean error."""

CHECKED = 100
"""Pairs that say what a training reached."""

FRESH = 2**40
"""Number of the first of them: no training gets there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """A training, as its YAML says it. Unknown keys are refused.

    kind: 'volumes' or 'rasters'; data: folder under the data folder; extent: side of a patch at most (fine samples of a
    volume, coarse ones of a raster); batch: pairs a step; raw_weight: share of the loss on the unprojected estimate;
    average: decay of the averaged weights; mixed: body in bfloat16; threads: of torch,
    part of what makes the bytes; hold_out: scenes left out.
    """

    name: str
    kind: str
    data: str
    steps: int
    version: str = "1.0"
    network: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    batch: int = 8
    extent: int = 128
    rate: float = 1e-3
    warm_up: int = 200
    clip: float = 1.0
    average: float = 0.999
    raw_weight: float = 0.05
    mixed: bool = True
    threads: int = 1
    checkpoint_every: int = 250
    hold_out: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> TrainingConfig:
        """From a YAML file. Raises UsageError, naming the nearest known key."""
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(what=f"{path.name} cannot be read as a training config", why=str(error)) from error
        known = {f.name: f for f in dataclasses.fields(cls)}
        if not isinstance(data, dict):
            raise UsageError(what=f"{path.name} holds no keys", fix=f"known are {', '.join(known)}")
        for key in data:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
                raise UsageError(what=f"{path.name} has the unknown key '{key}'", fix=f"did you mean '{close[0]}'?")
        missing = [
            n for n, f in known.items() if n not in data and f.default is f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise UsageError(what=f"{path.name} lacks {', '.join(missing)}", why="a training needs it")
        if data["kind"] not in MAKERS:
            raise UsageError(what=f"{path.name} trains on '{data['kind']}'", fix=f"choose one of {', '.join(MAKERS)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        settings = cls(**values)
        try:
            _ = settings.options
        except TypeError as error:
            raise UsageError(what=f"{path.name} describes an unknown network", why=str(error)) from error
        return settings

    @property
    def options(self) -> LatticeOptions:
        """Shape of the network."""
        return LatticeOptions.of(self.network)

    def scenes(self, data: Path) -> list[Scene]:
        """The training scenes in memory."""
        loader = load_volumes if self.kind == "volumes" else load_rasters
        return loader(data / self.data, self.hold_out)


class Pairs(IterableDataset[list[Pair]]):
    """Batches from number `first` on: batch k holds pairs k b .. (k + 1) b - 1."""

    def __init__(self, config: TrainingConfig, scenes: list[Scene], first: int) -> None:
        self.config, self.scenes, self.first = config, scenes, first

    def __iter__(self) -> Iterator[list[Pair]]:
        c = self.config
        make, options = MAKERS[c.kind], c.options
        for step in range(self.first, c.steps):
            numbers = range(step * c.batch, (step + 1) * c.batch)
            yield [make(generator(c.seed, n), self.scenes, options, c.extent) for n in numbers]


def residual(net: LatticeNet, pair: Pair) -> Tensor:
    """The residual (fine image) of one pair."""
    maps = net(pair.coarse[None], pair.condition)
    weights = net.basis(pair.phases, pair.condition)
    if pair.columns is None:
        return place_rows(maps, pair.rows, weights)[0]
    return place_pixels(maps, pair.rows, pair.columns, weights[pair.phase_map].permute(2, 0, 1))[0]


class Training(lightning.LightningModule):  # type: ignore[misc]  # Lightning is not typed for us
    """The network, its running average, the loss and the schedule."""

    def __init__(self, config: TrainingConfig, scenes: list[Scene]) -> None:
        super().__init__()
        self.config, self.scenes = config, scenes
        self.net = LatticeNet(config.options, mixed=config.mixed)
        self.averaged = LatticeNet(config.options)
        self.averaged.load_state_dict(self.net.state_dict())
        self.averaged.requires_grad_(False)
        self.seconds = 0.0  # of training so far, over all runs
        self._since = time.monotonic()

    def transfer_batch_to_device(self, batch: list[Pair], *_: object) -> list[Pair]:
        """Pairs are made on the CPU, where the network is."""
        return batch

    def training_step(self, batch: list[Pair], *_: object) -> Tensor:
        losses, gains = [], []
        for pair in batch:
            r = residual(self.net, pair)
            error = pair.floor + pair.twin.unseen(r) - pair.truth
            raw = pair.cubic + r - pair.truth
            losses.append(_charbonnier(error / pair.unit) + self.config.raw_weight * _charbonnier(raw / pair.unit))
            before = float(torch.mean((pair.floor - pair.truth) ** 2))
            if pair.clean and before > 0:
                gains.append(10 * math.log10(before / max(float(torch.mean(error.detach() ** 2)), 1e-20)))
        loss = torch.stack(losses).mean()
        self.log("loss", loss.detach(), prog_bar=True)
        if gains:
            self.log("gain_db_clean", sum(gains) / len(gains), prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        decay = min(self.config.average, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            for mean, now in zip(self.averaged.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.config.rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        c = self.config
        return min(1.0, (step + 1) / c.warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / c.steps)))

    def train_dataloader(self) -> DataLoader[list[Pair]]:
        return DataLoader(Pairs(self.config, self.scenes, self.global_step), batch_size=None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds = float(checkpoint["seconds"])


def _charbonnier(error: Tensor) -> Tensor:
    return torch.mean(torch.sqrt(error * error + CHARBONNIER**2) - CHARBONNIER)


class _Steps(Callback):  # type: ignore[misc]  # Lightning ships no types
    """Reports every optimizer step."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        self._progress = progress

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._progress("train", trainer.global_step, int(trainer.max_steps))


def train(
    config: Path,
    data: Path,
    out: Path | None = None,
    resume: bool = False,
    *,
    runs: Path | None = None,
    stop_after: int | None = None,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _all: None,
) -> ModelCard:
    """Train what a YAML describes and write its bundle.

    data: the folder that TRUESCALE_DATA names; out: folder of the bundle (default: that of the checkpoints); resume: go
    on from the last checkpoint; runs: folder of logs and checkpoints (default: runs); stop_after: steps in all after
    which to stop early, to be resumed; progress: called with ("train", step, steps). The same config and data give the
    same weights, resumed or not. Raises UsageError, InputError.
    """
    settings = TrainingConfig.read(config)
    folder = (runs or Path("runs")) / f"{settings.name}-{settings.version}"
    last = folder / "last.ckpt"
    if resume and not last.is_file():
        raise UsageError(what="there is no checkpoint to resume from", why=f"{last} is missing", fix="train without it")
    lightning.seed_everything(settings.seed, verbose=False)
    torch.set_num_threads(settings.threads)
    module = Training(settings, settings.scenes(data))
    checkpoints = ModelCheckpoint(
        folder, filename="step", every_n_train_steps=settings.checkpoint_every, save_last=True, save_top_k=0
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=min(settings.steps, stop_after or settings.steps),
        max_epochs=-1,
        gradient_clip_val=settings.clip,
        deterministic=True,
        logger=TensorBoardLogger(folder, name="", version="log"),
        callbacks=[checkpoints, _Steps(progress)],
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],  # one process: a machine with Slurm installed is not one job of it
    )
    with warnings.catch_warnings():
        # Lightning's use of torch, and its advice on workers: here a pair is a pure function of its number
        warnings.simplefilter("ignore")
        trainer.fit(module, ckpt_path=str(last) if resume else None, weights_only=True if resume else None)
    torch.use_deterministic_algorithms(False)  # the trainer leaves it on for the whole process
    trainer.save_checkpoint(last)
    return write_bundle(last, settings, module.scenes, out or folder)


def averaged_network(checkpoint: dict[str, Any], options: LatticeOptions) -> LatticeNet:
    """The network with the averaged weights of a checkpoint, its first layer made zero-sum."""
    prefix = "averaged."
    net = LatticeNet(options)
    net.load_state_dict(
        {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    )
    first: nn.Parameter = net.first.conv.weight
    with torch.no_grad():
        first.sub_(first.mean(dim=(1, 2, 3), keepdim=True))
    return net.eval()


def reached(net: LatticeNet, config: TrainingConfig, scenes: list[Scene]) -> dict[str, float]:
    """Mean gain over the floor [dB] on CHECKED fresh pairs of the training scenes, and the share that lost."""
    gains: dict[bool, list[float]] = {True: [], False: []}
    with torch.inference_mode():
        for number in range(CHECKED):
            pair = MAKERS[config.kind](generator(config.seed, FRESH + number), scenes, config.options, config.extent)
            error = pair.floor + pair.twin.unseen(residual(net, pair)) - pair.truth
            before, after = (float(torch.mean(e**2)) for e in (pair.floor - pair.truth, error))
            if min(before, after) > 0:
                gains[pair.clean].append(10 * math.log10(before / after))
    both = gains[True] + gains[False]
    result = {"pairs_below_floor": round(sum(g < 0 for g in both) / max(1, len(both)), 3)}
    for name, clean in (("gain_db_clean", True), ("gain_db_noisy", False)):
        if gains[clean]:
            result[name] = round(sum(gains[clean]) / len(gains[clean]), 2)
    return result


def write_bundle(checkpoint: Path, config: TrainingConfig, scenes: list[Scene], out: Path) -> ModelCard:
    """The averaged weights of a checkpoint and their card, in `out`."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    options = config.options
    net = averaged_network(state, options)
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
            "training": {
                "steps": state["global_step"],
                "planned_steps": config.steps,
                "pairs": state["global_step"] * config.batch,
                "seconds": round(state["seconds"]),
                "seed": config.seed,
                "parameters": sum(v.numel() for v in tensors.values()),
                "torch": torch.__version__.split("+")[0],
                "lightning": lightning.__version__,
                "reached": reached(net, config, scenes),
            },
            **config.card,
        },
        out,
    )
    card.write(out / f"{stem}.json")
    return card
