"""The training loop: a YAML in, a bundle out. One loop for every network: deterministic, resumable, logged.

The loss sees the projected output, so the network learns what the measurement does not say. Needs the extra `train`.
"""

from __future__ import annotations

import copy
import ctypes
import errno
import json
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipelines.card import ModelCard
from pipelines.errors import StoppedError, UsageError
from pipelines.networks import has_cuda, monai_bundle
from pipelines.training import adversarial, memory
from pipelines.training.config import LATE, TrainingConfig
from pipelines.training.fusion import FusionTask
from pipelines.training.lattice import LatticeTask
from pipelines.training.scenes import plain, scenes_of
from pipelines.training.task import Step, Task
from pipelines.training.textbook import TextbookTask
from pipelines.workspace import disk_failed

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent ends."""

LOGGED_EVERY = 10
"""Steps between points of a curve."""

LEAST_FREE_BYTES = 200e6
"""On the disk of checkpoints and logs, beside the checkpoints themselves."""

CHECKPOINT_COPIES = 6
"""Of the weights in a checkpoint, and in the one that replaces it: learning, averaged, best, two of the optimizer."""


class Pairs(IterableDataset[Any]):
    """Batches from number `first` on: batch k holds pairs k b .. (k + 1) b - 1, whoever makes it.

    Of `count` processes that train together the one with this `rank` gets every `count`-th pair of each batch.
    """

    def __init__(self, task: Task, config: TrainingConfig, first: int, rank: int = 0, count: int = 1) -> None:
        self.task, self.config, self.first, self.rank, self.count = task, config, first, rank, count

    def __iter__(self) -> Iterator[Any]:
        c, reader = self.config, get_worker_info()
        # the loader takes from its readers in turn, so that steps keep their order
        start, stride = (self.first, 1) if reader is None else (self.first + reader.id, reader.num_workers)
        for step in range(start, c.steps, stride):
            yield self.task.batch(range(step * c.batch, (step + 1) * c.batch)[self.rank :: self.count])


class Waited:
    """An iterable, and the seconds that its reader waited for it."""

    def __init__(self, inner: DataLoader[Any]) -> None:
        self.inner, self.seconds = inner, 0.0

    def __iter__(self) -> Iterator[Any]:
        each = iter(self.inner)
        while True:
            since = time.monotonic()
            try:
                item = next(each)
            except StopIteration:
                return
            finally:
                self.seconds += time.monotonic() - since
            yield item


class Training(lightning.LightningModule):  # type: ignore[misc]  # Lightning is not typed for us
    """The network, its running average, a discriminator if there is one, the loss and the schedule."""

    def __init__(self, config: TrainingConfig, task: Task) -> None:
        super().__init__()
        self.config, self.task = config, task
        self.net = task.network()
        self.averaged = copy.deepcopy(self.net)
        self.averaged.mixed = False  # type: ignore[assignment]  # torch types attributes as modules
        self.averaged.requires_grad_(False)
        self.judge: nn.Module | None = None
        if config.adversarial is not None:
            self.judge = adversarial.discriminator(config.adversarial.discriminator, len(config.scale), 1)
            self._losses = adversarial.losses(config.adversarial.kind)
            self.automatic_optimization = False
        self.seconds = self.waited = 0.0  # of training so far, over all runs
        self.best: dict[str, Any] = {"gain_db": -math.inf, "step": 0, "looks_since": 0, "weights": {}}
        self._since = time.monotonic()
        self._loader: Waited | None = None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, *_: object) -> Any:
        """Lattice pairs stay on the CPU, where the network is."""
        return batch.to(device) if hasattr(batch, "to") else batch

    def training_step(self, batch: Any, *_: object) -> Tensor | None:
        # what a network draws at random depends on the step alone, so that a resumed training draws the same
        torch.manual_seed((self.config.seed << 32) + self.global_step)
        made = self.task.step(self.net, batch)
        self.log("loss", made.loss.detach(), prog_bar=True)
        for name, value in made.logged.items():
            self.log(name, value, prog_bar=True)
        if not bool(torch.isfinite(made.loss)):
            raise UsageError(
                what=f"the loss is not finite at step {self.global_step}",
                why="weights made of it would be worth nothing",
                fix="lower rate or clip, or choose mixed: false",
            )
        if self.judge is None:
            return made.loss
        self._adversarial_step(made)
        return None

    def _adversarial_step(self, made: Step) -> None:
        """One step of the network, and one of the discriminator once it has started."""
        c, judge = self.config.adversarial, self.judge
        assert c is not None
        assert judge is not None
        assert made.estimate is not None
        assert made.truth is not None
        ours = cast(Any, self.optimizers(use_pl_optimizer=True))[0]  # counts the steps: not the discriminator's
        theirs = cast(Any, self.optimizers(use_pl_optimizer=False))[1]
        started = self.global_step >= c.start
        of_judge, of_net = self._losses
        loss = made.loss
        if started:
            judge.requires_grad_(False)
            fooled = of_net(judge(made.truth), judge(made.estimate))
            judge.requires_grad_(True)
            loss = loss + c.weight * fooled
            self.log("fooled", fooled.detach())
        ours.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(ours, self.config.clip, "norm")
        ours.step()
        cast(Any, self.lr_schedulers()).step()
        if started:
            theirs.zero_grad()
            told = of_judge(judge(made.truth), judge(made.estimate.detach()))
            self.manual_backward(told)
            theirs.step()
            self.log("judge", told.detach())

    def look(self, progress: Progress) -> bool:
        """Judge the averaged network on held-out pairs; whether the training should end."""
        found = self.task.judged(self.averaged)
        if found is None:
            return False
        progress("judge", 1, 1)
        board = getattr(self.logger, "experiment", None)
        if board is not None and self.global_rank == 0:
            for name, value in found.gains.items():
                board.add_scalar(f"held out/{name}", value, self.global_step)
            for number, image in enumerate(found.panels):
                title = f"held out/{number}: input, floor, estimate, truth"
                board.add_image(title, image, self.global_step, dataformats="HW")
        gain = found.gains["gain_db"]
        if gain > self.best["gain_db"]:
            weights = {k: v.detach().cpu().clone() for k, v in self.averaged.state_dict().items()}
            self.best = {"gain_db": gain, "step": self.global_step, "looks_since": 0, "weights": weights}
        else:
            self.best["looks_since"] += 1
        return 0 < self.config.patience <= int(self.best["looks_since"])

    def average(self) -> None:
        """Take the weights of this step into the running average."""
        decay = min(self.config.average, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            for mean, now in zip(self.averaged.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
            for kept, new in zip(self.averaged.buffers(), self.net.buffers(), strict=True):
                kept.copy_(new)

    @property
    def waiting_share(self) -> float:
        """Of all time so far, that was spent waiting for pairs."""
        passed = self.seconds + time.monotonic() - self._since
        return (self.waited + (self._loader.seconds if self._loader else 0.0)) / max(passed, 1e-9)

    def configure_optimizers(self) -> Any:
        c = self.config
        learning = [p for p in self.net.parameters() if p.requires_grad]
        kind = torch.optim.AdamW if c.weight_decay else torch.optim.Adam
        optimizer = kind(learning, lr=c.rate, betas=(0.9, 0.99), weight_decay=c.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        if c.adversarial is None or self.judge is None:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        judging = torch.optim.Adam(self.judge.parameters(), lr=c.adversarial.rate, betas=(0.5, 0.99))
        return [optimizer, judging], [{"scheduler": schedule, "interval": "step"}]

    def _rate(self, step: int) -> float:
        c = self.config
        done = min(1.0, step / c.steps)
        falling = {
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "constant": 1.0,
            "step": 0.1 ** int(3 * done),
            "late": min(1.0, (1 - done) / (1 - LATE)),
        }
        return min(1.0, (step + 1) / c.warm_up) * falling[c.schedule]

    def train_dataloader(self) -> Waited:
        c = self.config
        pairs = Pairs(self.task, c, self.global_step, self.global_rank, self.trainer.world_size)
        self._loader = Waited(
            DataLoader(
                pairs,
                batch_size=None,
                num_workers=c.readers,
                prefetch_factor=4 if c.readers else None,
                worker_init_fn=_end_with_the_trainer,
            )
        )
        return self._loader

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        if self._loader is not None:
            self.waited, self._loader.seconds = self.waited + self._loader.seconds, 0.0
        checkpoint.update(seconds=self.seconds, waited=self.waited, best=self.best, config=self.config.to_json())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds = float(checkpoint["seconds"])
        self.waited = float(checkpoint.get("waited", 0.0))
        self.best = checkpoint.get("best", self.best)


class _Steps(Callback):  # type: ignore[misc]  # Lightning ships no types
    """After every step, in this order: average, look, checkpoint, report. So a checkpoint lacks nothing of its step.

    Lightning's own checkpoints are written before the module hears of the end of a step, and would lack its average.
    """

    def __init__(self, last: Path, progress: Progress, on_look: Callable[[int, float], bool] | None) -> None:
        self._last, self._progress, self._on_look = last, progress, on_look

    def on_train_start(self, trainer: lightning.Trainer, module: Training) -> None:
        torch.set_num_threads(module.config.threads)
        self._progress("train", trainer.global_step, int(trainer.max_steps))

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Training, *_: Any) -> None:
        step, c = trainer.global_step, module.config
        module.average()
        ends = step >= int(trainer.max_steps)
        if step % c.check_every == 0 or ends:
            ends = module.look(self._progress) or ends
            if self._on_look is not None and module.best["weights"]:
                ends = self._on_look(step, module.best["gain_db"]) or ends
        if step % LOGGED_EVERY == 0 and module.logger is not None:
            module.logger.log_metrics({"waiting share": module.waiting_share}, step)
        if ends:
            trainer.should_stop = True
        if ends or step % c.checkpoint_every == 0:
            trainer.save_checkpoint(self._last, weights_only=False)
        if trainer.is_global_zero:
            self._progress("train", step, int(trainer.max_steps))


def task_of(
    settings: TrainingConfig, data: Path, copies: Path, folder: Path, progress: Progress, say: Callable[[str], None]
) -> Task:
    """The family of the network with its data. Raises InputError and UsageError."""
    if settings.kind == "fusion":
        return FusionTask.of(settings, data)
    if not settings.textbook:
        return LatticeTask.of(settings, data)
    scenes = scenes_of(settings, data, copies, progress)
    say(f"data     {scenes.told}: see {folder / 'split.json'}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "split.json").write_text(json.dumps(plain(scenes), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return TextbookTask.of(settings, scenes)


def train(
    config: Path | TrainingConfig,
    data: Path,
    out: Path | None = None,
    resume: bool = False,
    *,
    overwrite: bool = False,
    runs: Path | None = None,
    copies: Path | None = None,
    stop_after: int | None = None,
    init_from: str = "",
    device: str = "cpu",
    devices: int = 1,
    progress: Progress = lambda _stage, _done, _all: None,
    say: Callable[[str], None] = log.info,
    on_look: Callable[[int, float], bool] | None = None,
) -> ModelCard:
    """Train what a YAML describes and write its bundle.

    data: the folder that TRUESCALE_DATA names, or one of one's own images; out: folder of the bundle (default: that
    of the checkpoints); resume: go on from the last checkpoint; overwrite: begin anew where one is; runs: folder of
    logs and checkpoints (default: runs); copies: of the images, shared by all trainings with them (default: copies in
    runs); stop_after: steps in all after which to stop early, to be resumed; init_from: as in the config; device:
    auto, cpu or cuda; devices: processes that share each batch; progress: called with (stage, done, all); say: with
    lines for people; on_look: called with (step, best gain so far in dB) after each look at the held-out images, ends
    the training with True. The same config and data give the same weights on the CPU, resumed or not, whatever the
    number of readers.
    Raises UsageError, InputError, BudgetError and StoppedError.
    """
    settings = config if isinstance(config, TrainingConfig) else TrainingConfig.read(config)
    if init_from and not settings.textbook:
        raise UsageError(what="a lattice network starts untrained", fix="leave --init-from out")
    if init_from:
        settings = TrainingConfig.of({**settings.to_json(), "init_from": init_from})
    runs = runs or Path("runs")
    folder = runs / f"{settings.name}-{settings.version}"
    last = folder / "last.ckpt"
    cuda = device == "cuda" or (device == "auto" and has_cuda() and settings.textbook)
    _check_request(settings, last, resume=resume, overwrite=overwrite, devices=devices, cuda=cuda)
    lightning.seed_everything(settings.seed, verbose=False)
    torch.set_num_threads(1 if devices > 1 else settings.threads)  # forked processes set their own
    with _disk(runs):
        task = task_of(settings, data, copies or runs / "copies", folder, progress, say)
    module = Training(settings, task)
    if settings.textbook:
        memory.check(module.net, settings, cuda=cuda, devices=devices)
    _check_disk(runs, module)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it advertises
    trainer = _trainer(settings, folder, min(settings.steps, stop_after or settings.steps), devices, cuda=cuda)
    trainer.callbacks.append(_Steps(last, progress, on_look))
    fits = memory.told(module.net, settings, cuda=cuda) if settings.textbook else nullcontext()
    with warnings.catch_warnings(), _disk(runs), fits:
        # Lightning's use of torch, and its advice on workers: here a pair is a pure function of its number
        warnings.simplefilter("ignore")
        trainer.fit(module, ckpt_path=str(last) if resume else None, weights_only=True if resume else None)
    torch.use_deterministic_algorithms(False)  # the trainer leaves it on for the whole process
    return _product(last, task, settings, out or folder)


def _trainer(settings: TrainingConfig, folder: Path, steps: int, devices: int, *, cuda: bool) -> lightning.Trainer:
    start = "fork" if not cuda else "spawn"  # forked processes share the images and what shows the progress
    strategy = DDPStrategy(start_method=start, process_group_backend="nccl" if cuda else "gloo")
    return lightning.Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=devices,
        strategy="auto" if devices == 1 else strategy,
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=None if settings.adversarial else settings.clip,
        deterministic=not cuda,
        logger=TensorBoardLogger(folder, name="", version="log"),
        log_every_n_steps=LOGGED_EVERY,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[LightningEnvironment()],  # one machine: one with Slurm installed is not one job of it
    )


def _check_request(
    settings: TrainingConfig, last: Path, *, resume: bool, overwrite: bool, devices: int, cuda: bool
) -> None:
    """Raise UsageError for what cannot be done, before anything is read."""
    if cuda and not (has_cuda() and settings.textbook):
        what = "torch sees no CUDA device" if settings.textbook else "a lattice network trains on the CPU"
        raise UsageError(what=what, fix="leave --device out")
    if devices > 1 and settings.adversarial:
        raise UsageError(what="adversarial training runs in one process", fix="leave --devices out")
    if settings.batch % devices:
        raise UsageError(
            what=f"{devices} processes cannot share a batch of {settings.batch}",
            why="each takes as many pairs of it as the others",
            fix=f"give batch: {-(-settings.batch // devices) * devices}",
        )
    if not resume and not overwrite and last.is_file():
        raise UsageError(
            what=f"a training of {settings.name} {settings.version} is there already",
            why=f"{last} holds its weights",
            fix="go on with --resume, begin anew with --overwrite, or give the config another version",
        )
    if not resume:
        return
    if not last.is_file():
        raise UsageError(what="there is no checkpoint to resume from", why=f"{last} is missing", fix="train without it")
    checkpoint = torch.load(last, map_location="cpu", weights_only=True)
    before = checkpoint.get("config")
    longer = before and checkpoint["global_step"] <= settings.same_until(before["steps"])
    usual = TrainingConfig(name="", kind="", steps=1).to_json()  # of keys that came after the checkpoint
    for key, now in settings.to_json().items() if before else ():
        free = key in ("readers", "checkpoint_every", "card", "search", "error_scale") or (key == "steps" and longer)
        if not free and before.get(key, usual.get(key)) != now:
            raise UsageError(
                what=f"the checkpoint was made with {key} {before.get(key)!r}, the config says {now!r}",
                why="what goes on would be another training",
                fix="train without --resume, or give the config another version",
            )


def _check_disk(runs: Path, module: Training) -> None:
    """Raise StoreError if checkpoints will not fit."""
    weights = sum(4 * t.numel() for t in module.net.state_dict().values())
    needed = LEAST_FREE_BYTES + 2 * CHECKPOINT_COPIES * weights
    runs.mkdir(parents=True, exist_ok=True)
    found = os.statvfs(runs)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise disk_failed(
            f"the folder '{runs.name}'",
            OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB are free, checkpoints and logs need {needed / 1e9:.1f} GB"),
        )


@contextmanager
def _disk(runs: Path) -> Iterator[None]:
    """A full disk, or a folder that one may not write to, as errors that say so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        raise disk_failed(f"the folder '{runs.name}'", error) from error


def _end_with_the_trainer(_reader: int) -> None:
    """Where the system can: a reader whose trainer was killed would wait for ever for room in its queue."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _product(last: Path, task: Task, settings: TrainingConfig, out: Path) -> ModelCard:
    """The bundle of a checkpoint: its averaged weights, or the best of them if it may have ended early."""
    if not last.is_file():
        raise StoppedError(what="the training ended before its first checkpoint", fix="run it again")
    state = torch.load(last, map_location="cpu", weights_only=True)
    prefix = "averaged."
    weights = {k.removeprefix(prefix): v for k, v in state["state_dict"].items() if k.startswith(prefix)}
    if settings.patience and state["best"]["weights"]:
        weights = state["best"]["weights"]
    net = _bare(task, settings)
    net.load_state_dict(weights)
    training = {
        "steps": state["global_step"],
        "planned_steps": settings.steps,
        "pairs": state["global_step"] * settings.batch,
        "seconds": round(state["seconds"]),
        "waiting_share": round(state["waited"] / max(state["seconds"], 1e-9), 3),
        "seed": settings.seed,
        "parameters": sum(v.numel() for v in weights.values()),
        "torch": torch.__version__.split("+")[0],
        "lightning": lightning.__version__,
    }
    card = task.bundle(net.eval(), out, training)
    if not card.guided:  # what monai runs has no guide
        monai_bundle.add(card)
    return card


def _bare(task: Task, settings: TrainingConfig) -> nn.Module:
    """The network for the weights of a checkpoint, in full precision."""
    bare = replace(settings, init_from="", freeze=(), mixed=False, dropout=0.0)
    return cast(Task, replace(cast(Any, task), config=bare)).network()
