from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipelines import runner
from pipelines.card import CONFIGS, ModelCard
from pipelines.errors import BudgetError, InputError, ModelError, StoreError, UsageError
from pipelines.networks.textbook import build
from pipelines.training import fit, memory
from pipelines.training.config import TrainingConfig
from pipelines.training.fit import train
from pipelines.training.patches import Batch
from pipelines.training.task import Step
from pipelines.training.textbook import TextbookTask, built

LATTICE = """
name: tiny
kind: volumes
data: volumes
network: {channels: 8, blocks: 1, basis: 4, planes: 3, fold: 2, thin: true, phases: 1, hidden: 8}
steps: 6
batch: 2
extent: 24
warm_up: 2
checkpoint_every: 2
card: {domain: med, axes: through-plane, scales: [1.5, 8.0]}
"""

Config = Callable[..., Path]


@pytest.fixture
def lattice(tmp_path: Path) -> Path:
    path = tmp_path / "lattice.yaml"
    path.write_text(LATTICE)
    return path


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(next(folder.glob("*.safetensors")))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    assert one.keys() == other.keys()
    return all(np.array_equal(one[k], other[k]) for k in one)


def test_a_resumed_lattice_training_gives_the_same_weights(tmp_path: Path, lattice: Path, data_folder: Path) -> None:
    train(lattice, data_folder, tmp_path / "once", runs=tmp_path / "a")
    train(lattice, data_folder, tmp_path / "early", runs=tmp_path / "b", stop_after=3)
    train(lattice, data_folder, tmp_path / "twice", resume=True, runs=tmp_path / "b")
    assert same(weights(tmp_path / "once"), weights(tmp_path / "twice"))
    assert not same(weights(tmp_path / "once"), weights(tmp_path / "early"))


def test_the_bundle_of_a_lattice_network_says_what_the_training_cost(
    tmp_path: Path, lattice: Path, data_folder: Path
) -> None:
    card = train(lattice, data_folder, tmp_path / "out", runs=tmp_path / "runs", stop_after=2)
    assert card == ModelCard.read(tmp_path / "out" / "tiny-1.0.json")
    card.verify()
    assert (card.training["steps"], card.training["planned_steps"], card.training["pairs"]) == (2, 6, 4)
    assert 0 <= card.training["reached"]["pairs_below_floor"] <= 1
    assert card.halo == (3, 9, 9)


def test_a_training_may_be_lengthened_until_its_rate_falls(tmp_path: Path, config: Config, data_folder: Path) -> None:
    late = ("schedule: late", "warm_up: 2")
    whole = train(config("rasters", "steps: 16", *late), data_folder, runs=tmp_path / "whole")
    shorter = TrainingConfig.read(config("rasters", "steps: 8", "checkpoint_every: 1", *late))
    train(shorter, data_folder, runs=tmp_path / "runs", stop_after=6)
    again = train(config("rasters", "steps: 16", *late), data_folder, runs=tmp_path / "runs", resume=True)
    assert whole.folder
    assert again.folder
    assert same(weights(again.folder), weights(whole.folder))
    train(shorter, data_folder, runs=tmp_path / "other", stop_after=7)
    with pytest.raises(UsageError, match="made with steps 8, the config says 16"):
        train(config("rasters", "steps: 16", *late), data_folder, runs=tmp_path / "other", resume=True)


@pytest.mark.parametrize("readers", [0, 2])
def test_the_weights_do_not_depend_on_who_makes_the_pairs(
    tmp_path: Path, config: Config, data_folder: Path, readers: int
) -> None:
    one = train(config("rasters"), data_folder, runs=tmp_path / "a")
    other = train(config("rasters", f"readers: {readers}"), data_folder, runs=tmp_path / "b")
    assert one.folder
    assert other.folder
    assert same(weights(one.folder), weights(other.folder))
    third = train(config("rasters", "seed: 2"), data_folder, runs=tmp_path / "c")
    assert third.folder
    assert not same(weights(one.folder), weights(third.folder))


KILLED = """
import os, sys
from pathlib import Path
from pipelines.training.fit import train

def progress(stage, done, all):
    if stage == "train" and done == int(sys.argv[4]):
        os.kill(os.getpid(), 9)

train(Path(sys.argv[1]), Path(sys.argv[2]), runs=Path(sys.argv[3]), progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", ["{name: vae, channels: [8, 8], latent: 2}", "{name: srresnet, channels: 8, blocks: 1, norm: batch}"]
)
def test_a_training_killed_at_any_step_goes_on_to_the_same_weights(
    tmp_path: Path, config: Config, data_folder: Path, network: str
) -> None:
    path = config("rasters", f"network: {network}", "steps: 9", "patience: 5", "dropout: 0.5")
    once = train(path, data_folder, runs=tmp_path / "a")
    seed = random.SystemRandom().randrange(1000)
    step = random.Random(seed).randrange(2, 9)
    print(f"seed {seed}: killed after step {step}")  # noqa: T201
    command = [sys.executable, "-c", KILLED, str(path), str(data_folder), str(tmp_path / "b"), str(step)]
    ended = subprocess.run(command, check=False, capture_output=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    kept = torch.load(tmp_path / "b" / "tiny-1.0" / "last.ckpt", weights_only=True)["global_step"]
    assert kept == step - step % 2 - (2 if step % 2 == 0 and kept < step else 0)
    twice = train(path, data_folder, runs=tmp_path / "b", resume=True)
    assert once.folder
    assert twice.folder
    assert same(weights(once.folder), weights(twice.folder))
    assert once.training["reached"] == twice.training["reached"]


def test_dropout_leaves_out_channels_while_a_network_trains_and_none_after() -> None:
    net = build("wdsr", (2, 2), channels=8, blocks=1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.ones(1, 1, 8, 8)
    whole = net.eval()(x)
    net.drop(0.5)
    assert torch.equal(net(x), whole)
    net.train()
    torch.manual_seed(1)
    made = torch.stack([net(x) for _ in range(400)])
    assert not torch.equal(made[0], made[1])
    assert (made.mean(dim=0) - whole).abs().max() < 0.25 * made.std(dim=0).max()  # right in the mean


@pytest.mark.slow
def test_two_processes_share_each_batch(tmp_path: Path, config: Config, data_folder: Path) -> None:
    alone = train(config("rasters"), data_folder, runs=tmp_path / "a")
    both = train(config("rasters"), data_folder, runs=tmp_path / "b", devices=2)
    assert alone.folder
    assert both.folder
    one, two = weights(alone.folder), weights(both.folder)
    assert both.training["steps"] == 6
    assert max(np.abs(one[k] - two[k]).max() for k in one) < 1e-5  # sums in another order
    with pytest.raises(UsageError, match=r"3 processes cannot share a batch of 4.*batch: 6"):
        train(config("rasters"), data_folder, runs=tmp_path / "c", devices=3)


@pytest.mark.parametrize(("kind", "scale"), [("rasters", "2"), ("volumes", "4x1x1")])
def test_upscale_runs_what_was_trained(
    tmp_path: Path, config: Config, data_folder: Path, kind: str, scale: str
) -> None:
    card = train(config(kind), data_folder / kind, runs=tmp_path / "runs")  # a folder of one's own
    assert card.folder
    assert card.training["split"].startswith("2 images for training, 1 held out")
    source = min((data_folder / kind).iterdir())
    product = tmp_path / source.name
    report = runner.upscale(source, product, scale=scale, model=str(card.folder / f"{card.id}.json"))
    assert product.exists()
    assert report.model == card.id
    assert list((card.folder / "log").glob("events*"))


def test_a_short_training_is_above_cubic_without_the_projection(
    tmp_path: Path, config: Config, data_folder: Path
) -> None:
    lines = ("steps: 80", "rate: 0.01", "check_every: 40", "raw_weight: 0.5", "augment: {noise: 0}")
    reached = train(config("rasters", *lines), data_folder, runs=tmp_path).training["reached"]
    assert 0.2 < reached["unprojected_over_cubic_db"] < reached["over_cubic_db"]


def test_patience_ends_a_training_and_keeps_the_best(tmp_path: Path, config: Config, data_folder: Path) -> None:
    lines = ("steps: 60", "check_every: 1", "patience: 3", "rate: 0.5", "schedule: constant", "average: 0.0")
    card = train(config("rasters", *lines), data_folder, runs=tmp_path)
    assert card.training["steps"] < 60
    state = torch.load(tmp_path / "tiny-1.0" / "last.ckpt", weights_only=True)
    assert state["best"]["looks_since"] == 3
    assert state["best"]["step"] == card.training["steps"] - 3
    best = state["best"]["weights"]
    assert same(weights(tmp_path / "tiny-1.0"), {k: v.numpy() for k, v in best.items()})


def test_frozen_parts_stay_and_others_start_from_the_bundle(tmp_path: Path, config: Config, data_folder: Path) -> None:
    first = train(config("rasters"), data_folder, runs=tmp_path / "a")
    assert first.folder
    card = str(first.folder / "tiny-1.0.json")
    names = sorted(weights(first.folder))
    part = names[0].rpartition(".")[0]
    path = config("rasters", f"freeze: [{part}]", "version: '1.1'")
    second = train(path, data_folder, runs=tmp_path / "a", init_from=card)
    assert second.folder
    before, after = weights(first.folder), weights(second.folder)
    assert all(np.array_equal(before[k], after[k]) == k.startswith(part) for k in names)
    with pytest.raises(UsageError, match=r"no part 'net.99'.*Did you mean"):
        train(config("rasters", "freeze: [net.99]"), data_folder, runs=tmp_path / "b")
    other = config("rasters", "network: {name: edsr, channels: 8, blocks: 1}")
    with pytest.raises(ModelError, match=r"holds the weights of espcn.*trains edsr"):
        train(other, data_folder, runs=tmp_path / "b", init_from=card)


@pytest.mark.parametrize("kind", ["relativistic", "hinge"])
def test_adversarial_training_starts_where_it_is_told(
    tmp_path: Path, config: Config, data_folder: Path, kind: str
) -> None:
    plain = train(config("rasters", "extent: 24"), data_folder, runs=tmp_path / "a")
    told = f"adversarial: {{kind: {kind}, start: %d, weight: 0.1, discriminator: {{channels: 8, layers: 1}}}}"
    late = train(config("rasters", "extent: 24", told % 100), data_folder, runs=tmp_path / "b")
    early = train(config("rasters", "extent: 24", told % 2), data_folder, runs=tmp_path / "c")
    assert plain.folder
    assert late.folder
    assert early.folder
    assert early.training["steps"] == 6
    assert not same(weights(plain.folder), weights(early.folder))
    assert all(
        np.allclose(a, b, atol=1e-6)
        for a, b in zip(weights(plain.folder).values(), weights(late.folder).values(), strict=True)
    )
    train(config("rasters", "extent: 24", told % 2), data_folder, runs=tmp_path / "d", stop_after=4)
    resumed = train(config("rasters", "extent: 24", told % 2), data_folder, runs=tmp_path / "d", resume=True)
    assert resumed.folder
    assert same(weights(early.folder), weights(resumed.folder))


def test_resuming_nothing_or_another_training_is_refused(tmp_path: Path, config: Config, data_folder: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        train(config("rasters"), data_folder, resume=True, runs=tmp_path)
    train(config("rasters"), data_folder, runs=tmp_path, stop_after=2)
    with pytest.raises(UsageError, match=r"made with batch 4, the config says 8"):
        train(config("rasters", "batch: 8"), data_folder, resume=True, runs=tmp_path)
    other = config("rasters", "network: {name: edsr, channels: 8, blocks: 1}")
    with pytest.raises(UsageError, match=r"made with network .*espcn"):
        train(other, data_folder, resume=True, runs=tmp_path)


def test_training_without_data_is_refused(tmp_path: Path, lattice: Path, config: Config) -> None:
    (tmp_path / "own" / "volumes").mkdir(parents=True)
    for path in (lattice, config("volumes")):
        with pytest.raises(InputError, match="no training data"):
            train(path, tmp_path / "own", tmp_path, runs=tmp_path / "runs")


def test_a_loss_that_is_not_finite_ends_the_training(
    tmp_path: Path, config: Config, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TextbookTask.step

    def broken(self: TextbookTask, net: torch.nn.Module, batch: Batch) -> Step:
        made = step(self, net, batch)
        return replace(made, loss=made.loss * float("nan"))

    monkeypatch.setattr(TextbookTask, "step", broken)
    with pytest.raises(UsageError, match=r"not finite at step 0.*[Ll]ower rate"):
        train(config("rasters"), data_folder, runs=tmp_path)


def test_what_does_not_fit_into_memory_is_refused_with_what_does(
    tmp_path: Path, config: Config, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed, pair = memory.step_bytes(
        built(TrainingConfig.read(config("rasters"))), TrainingConfig.read(config("rasters"))
    )
    monkeypatch.setattr(memory, "free_bytes", lambda **_: fixed + 2.5 * pair)
    with pytest.raises(BudgetError, match="batch: 2"):
        train(config("rasters"), data_folder, runs=tmp_path)
    monkeypatch.setattr(memory, "free_bytes", lambda **_: fixed + 0.3 * pair)
    with pytest.raises(BudgetError, match=r"batch: 1 and extent: \[6, 6\]"):
        train(config("rasters"), data_folder, runs=tmp_path)


def test_out_of_memory_in_a_step_says_what_fits(
    tmp_path: Path, config: Config, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TextbookTask, "step", fail)
    with pytest.raises(BudgetError, match=r"a training step takes about .* GB"):
        train(config("rasters"), data_folder, runs=tmp_path)


def test_a_full_disk_is_told_before_the_first_step_and_in_it(
    tmp_path: Path, config: Config, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fit, "LEAST_FREE_BYTES", 1e18)
        with pytest.raises(StoreError, match=r"cannot be written.*GB are free"):
            train(config("rasters"), data_folder, runs=tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", full)
    with pytest.raises(StoreError, match="No space left"):
        train(config("rasters"), data_folder, runs=tmp_path)


def small(path: Path) -> TrainingConfig:
    """A shipped config with few and small pairs."""
    plain = TrainingConfig.read(path).to_json()
    least = {2: [16, 16], 3: [8, 8, 8]}[len(plain["scale"])]
    return TrainingConfig.of(
        {**plain, "extent": least, "steps": 2, "batch": 2, "checked": 2, "data": plain["kind"], "margin": 1}
        | {"mixed": False}
    )


def test_a_training_that_is_there_is_not_lost_by_a_second_call(
    tmp_path: Path, config: Config, data_folder: Path
) -> None:
    path = config("rasters")
    first = train(path, data_folder, runs=tmp_path)
    assert first.folder
    before = weights(first.folder)
    with pytest.raises(UsageError, match=r"--resume.*--overwrite"):
        train(path, data_folder, runs=tmp_path)
    assert same(before, weights(first.folder))
    assert train(path, data_folder, runs=tmp_path, overwrite=True).sha256 == first.sha256


def commits() -> int:
    """So many made up what is tested; 0 outside of a repository."""
    found = subprocess.run(["git", "rev-list", "--count", "HEAD"], check=False, capture_output=True, text=True)
    return int(found.stdout or 0)


TEXTBOOK = sorted(p for p in (CONFIGS / "training").glob("*.yaml") if p.stem.endswith(("-2d", "-3d")))


@pytest.mark.slow
@pytest.mark.parametrize("path", TEXTBOOK, ids=lambda p: p.stem)
def test_every_shipped_config_makes_steps_and_a_bundle(path: Path, tmp_path: Path, data_folder: Path) -> None:
    card = train(small(path), data_folder, runs=tmp_path)
    card.verify()
    assert card.training["steps"] == 2
    assert np.isfinite(card.training["reached"]["gain_db"])


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", TEXTBOOK, ids=lambda p: p.stem)
def test_a_shipped_config_trains_to_above_cubic(path: Path, tmp_path: Path, data: Path) -> None:
    """In full, about five minutes each: those that TRUESCALE_TRAIN names ('all', or names with commas).

    With 'next', as in continuous integration, one: another for every commit.
    """
    asked = os.environ.get("TRUESCALE_TRAIN", "")
    names = asked.split(",") if asked != "next" else [TEXTBOOK[commits() % len(TEXTBOOK)].stem]
    if asked != "all" and path.stem not in names:
        pytest.skip("TRUESCALE_TRAIN does not name it")
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    reached = train(path, data, runs=tmp_path / "runs").training["reached"]
    assert reached["unprojected_over_cubic_db"] > 0
    assert reached["gain_db"] >= 0
