"""Training of the guided family: pairs that resume, and a bundle that the engine takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rasterio.transform import Affine

from pipelines.card import ModelCard
from pipelines.errors import UsageError
from pipelines.networks import load_guided
from pipelines.training.config import TrainingConfig
from pipelines.training.fit import train
from pipelines.training.fusion import FusionTask, left, load_stacks
from tests.pipelines.files import write_raster
from tests.pipelines.test_runner import _scene

CONFIG = {
    "name": "tiny",
    "kind": "fusion",
    "data": "scenes",
    "network": {"channels": 4, "blocks": 1},
    "steps": 3,
    "batch": 2,
    "extent": 32,
    "readers": 0,
    "mixed": False,
    "checkpoint_every": 1,
    "card": {"domain": "geo", "axes": "image", "scales": [1.5, 8.0]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with bands of 20 m and of 10 m, and one with bands of 10 m alone."""
    root = tmp_path_factory.mktemp("data")
    for name in ("hill", "lake"):
        (root / "scenes" / name).mkdir(parents=True)
    fine = np.stack([_scene((200, 208), k) for k in range(3)])
    coarse = fine.reshape(3, 100, 2, 104, 2).mean(axis=(2, 4)) ** 2
    at = {s: Affine(s, 0, 500000, 0, -s, 5100000) for s in (10, 20)}
    write_raster(root / "scenes/hill/ten.tif", fine, transform=at[10])
    write_raster(root / "scenes/hill/twenty.tif", coarse.astype(np.float32), transform=at[20])
    write_raster(root / "scenes/lake/ten.tif", fine[::-1].copy(), transform=at[10])
    return root


def test_coarse_bands_stand_beside_the_finer_ones_of_their_place(data: Path) -> None:
    stacks = {s.name: s for s in load_stacks(data / "scenes")}
    assert stacks["twenty"].samples.shape == (6, 100, 104)
    assert (stacks["twenty"].aimed, stacks["twenty"].guided_by) == ((0, 1, 2), (3, 4, 5))
    assert stacks["ten"].guided_by == ()


def test_a_pair_is_a_function_of_its_number(data: Path) -> None:
    task = FusionTask.of(TrainingConfig.of(CONFIG), data)
    one, again, other = task.pair(5), task.pair(5), task.pair(6)
    assert torch.equal(one.shared, again.shared)
    assert torch.equal(one.truth, again.truth)
    assert one.truth.shape != other.truth.shape or not torch.equal(one.truth, other.truth)


def test_an_untrained_network_leaves_what_the_detail_leaves(data: Path) -> None:
    task = FusionTask.of(TrainingConfig.of(CONFIG), data)
    net = task.network()
    for number in range(4):
        pair = task.pair(number)
        expected = pair.floor + pair.twin.unseen(pair.added) - pair.truth
        assert torch.allclose(left(net, pair), expected, rtol=0, atol=1e-6)


def test_a_training_resumes_to_the_same_bytes_and_its_bundle_loads(data: Path, tmp_path: Path) -> None:
    config = TrainingConfig.of(CONFIG)
    whole = train(config, data, tmp_path / "a", runs=tmp_path / "ra")
    train(config, data, tmp_path / "b", runs=tmp_path / "rb", stop_after=2)
    parts = train(config, data, tmp_path / "b", runs=tmp_path / "rb", resume=True)
    assert whole.sha256 == parts.sha256
    card = ModelCard.read(tmp_path / "a" / "tiny-1.0.json")
    assert card.guided
    load_guided(card)


def test_a_textbook_network_takes_no_guides() -> None:
    with pytest.raises(UsageError, match="guides"):
        TrainingConfig.of({**CONFIG, "network": {"name": "edsr"}, "scale": [2, 2]})
