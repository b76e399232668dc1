from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipelines.card import CONFIGS, ModelCard
from pipelines.errors import InputError, UsageError
from pipelines.training.fit import TrainingConfig, train

TINY = """
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


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """Two small volumes of blobs."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "volumes"
    folder.mkdir(parents=True)
    z, y, x = np.meshgrid(*[np.arange(n) for n in (30, 26, 28)], indexing="ij")
    for n in range(2):
        image = sum(
            np.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 12) for a, b, c in rng.uniform(4, 22, (40, 3))
        )
        nibabel.save(nibabel.Nifti1Image((1000 * image).astype(np.int16), np.eye(4)), folder / f"v{n}.nii.gz")
    return folder.parent


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and few pairs to say what was reached: everything here is tiny."""
    monkeypatch.setattr("pipelines.training.fit.CHECKED", 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def test_a_resumed_training_gives_the_same_weights(tmp_path: Path, config: Path, data_folder: Path) -> None:
    train(config, data_folder, tmp_path / "once", runs=tmp_path / "runs-a")
    train(config, data_folder, tmp_path / "twice", runs=tmp_path / "runs-b", stop_after=3)
    early = load_file(tmp_path / "twice" / "tiny-1.0.safetensors")
    train(config, data_folder, tmp_path / "twice", resume=True, runs=tmp_path / "runs-b")
    once, twice = (load_file(tmp_path / f / "tiny-1.0.safetensors") for f in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(np.array_equal(once[k], twice[k]) for k in once)
    assert any(not np.array_equal(once[k], early[k]) for k in once)


def test_the_bundle_says_what_the_training_cost(tmp_path: Path, config: Path, data_folder: Path) -> None:
    card = train(config, data_folder, tmp_path / "out", runs=tmp_path / "runs", stop_after=2)
    assert card == ModelCard.read(tmp_path / "out" / "tiny-1.0.json")
    card.verify()
    assert (card.training["steps"], card.training["planned_steps"], card.training["pairs"]) == (2, 6, 4)
    assert card.training["seconds"] >= 0
    assert 0 <= card.training["reached"]["pairs_below_floor"] <= 1
    assert card.halo == (3, 9, 9)
    assert list((tmp_path / "runs" / "tiny-1.0" / "log").glob("events*"))


def test_resuming_nothing_is_refused(tmp_path: Path, config: Path, data_folder: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        train(config, data_folder, tmp_path, resume=True, runs=tmp_path / "runs")


def test_training_without_data_is_refused(tmp_path: Path, config: Path) -> None:
    (tmp_path / "volumes").mkdir()
    with pytest.raises(InputError, match="no training data"):
        train(config, tmp_path, tmp_path, runs=tmp_path / "runs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("setps: 6", "unknown key 'setps'.*Did you mean 'steps'"),
        ("kind: videos", "trains on 'videos'.*volumes, rasters"),
        ("network: {chanels: 8}", "chanels"),
        ("[", "cannot be read"),
    ],
)
def test_a_config_that_is_wrong_is_refused(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    key = change.partition(":")[0]
    path.write_text("\n".join([line for line in TINY.splitlines() if not line.startswith(f"{key}:")] + [change]))
    with pytest.raises(UsageError, match=message):
        TrainingConfig.read(path)


def test_a_config_that_lacks_a_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("name: a\nkind: volumes\n")
    with pytest.raises(UsageError, match="lacks data, steps"):
        TrainingConfig.read(path)


def test_the_shipped_configs_fit_their_bundles() -> None:
    for path in sorted((CONFIGS / "training").glob("*.yaml")):
        config = TrainingConfig.read(path)
        card = ModelCard.read(CONFIGS / "models" / f"{config.name}-{config.version}.json")
        assert config.options.to_json() == card.options
        assert card.training["seed"] == config.seed
