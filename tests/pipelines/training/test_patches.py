from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.training import contrasts
from pipelines.training.config import NOISES, NOTHING, Augmentation, TrainingConfig
from pipelines.training.pairs import generator
from pipelines.training.patches import Batch, batch, judging, pair
from pipelines.training.scenes import Scene, scenes_of

KINDS = ("volumes", "rasters")
ALL = Augmentation(contrast=0.4, bias=0.5, synthetic=0.3, noise=0.6, noises=NOISES, nominal=0.3, blur=0.5)


@pytest.fixture
def made(
    config: Callable[..., Path], data_folder: Path, tmp_path: Path
) -> Callable[..., tuple[TrainingConfig, list[Scene]]]:
    def make(kind: str, *lines: str) -> tuple[TrainingConfig, list[Scene]]:
        settings = TrainingConfig.read(config(kind, *lines))
        return settings, list(scenes_of(settings, data_folder, tmp_path / "copies").train)

    return make


Made = Callable[..., tuple[TrainingConfig, list[Scene]]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_a_function_of_seed_and_number(made: Made, kind: str) -> None:
    settings, scenes = made(kind)
    settings = replace(settings, augment=ALL)
    one, same, shifted = (batch(scenes, settings, range(a, a + 3)) for a in (4, 4, 5))
    assert torch.equal(one.coarse, same.coarse)
    assert torch.equal(one.truth, same.truth)
    assert torch.equal(one.truth[1:], shifted.truth[:2])
    other = batch(scenes, replace(settings, seed=2), range(4, 7))
    assert not torch.equal(one.coarse, other.coarse)


@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_of_a_clean_pair_explains_its_measurement(made: Made, kind: str) -> None:
    settings, scenes = made(kind)
    for pairs in judging(scenes, settings, first=0):
        assert bool(pairs.clean.all())
        assert float((pairs.twin.forward(pairs.floor) - pairs.coarse).abs().max()) <= 1e-4
        nothing_new = pairs.twin.unseen(pairs.twin.correction(pairs.coarse))
        assert float(nothing_new.abs().max()) <= 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_finite_whatever_is_drawn(made: Made, kind: str) -> None:
    settings, scenes = made(kind)
    pairs = batch(scenes, replace(settings, augment=ALL), range(60))
    for name in ("coarse", "cubic", "floor", "truth"):
        assert bool(torch.isfinite(getattr(pairs, name)).all())
        assert float(getattr(pairs, name).abs().max()) < 100
    assert 10 < int(pairs.clean.sum()) < 40
    assert pairs.truth.shape == (60, 1, *settings.fine_patch)
    assert pairs.coarse.shape == (60, 1, *settings.patch)


def test_a_stack_of_pairs_projects_each_as_its_own_twin_does(made: Made) -> None:
    settings, scenes = made("rasters")
    pairs = [pair(generator(1, n), scenes, settings, ALL) for n in range(3)]
    change = torch.randn(3, 1, *settings.fine_patch, generator=torch.Generator().manual_seed(0))
    together = Batch.of(pairs).twin.unseen(change)
    for n, single in enumerate(pairs):
        assert torch.allclose(together[n], single.twin.unseen(change[n]), atol=1e-5)


def test_a_batch_reaches_another_process_as_it_is(made: Made) -> None:
    settings, scenes = made("volumes")
    sent = batch(scenes, settings, range(3))
    got = pickle.loads(pickle.dumps(sent))
    assert torch.equal(sent.truth, got.truth)
    assert torch.equal(sent.clean, got.clean)
    assert torch.equal(sent.twin.unseen(sent.truth), got.twin.unseen(got.truth))


def test_noise_has_the_size_that_is_asked_for(made: Made) -> None:
    settings, scenes = made("rasters")
    for kind in NOISES:
        noisy = replace(NOTHING, noise=1.0, noise_most=0.05, noises=(kind,))
        shares = []
        for n in range(20):
            clean, other = (pair(generator(1, n), scenes, settings, a) for a in (NOTHING, noisy))
            assert torch.equal(clean.truth, other.truth)
            shares.append(float((clean.coarse - other.coarse).std()))
        assert 0.001 < np.mean(shares) < 0.05
        assert max(shares) > 3 * min(shares)


def test_a_scene_with_holes_gives_pairs_from_where_it_has_none(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, scenes = made("rasters")
    scene, read = scenes[0], Scene.read

    def holey(self: Scene, channel: int, start: list[int], shape: list[int]) -> np.ndarray:
        found = read(self, channel, start, shape)
        return np.where(np.arange(start[1], start[1] + shape[1]) < 5, np.nan, found).astype(np.float32)

    monkeypatch.setattr(Scene, "read", holey)
    pairs = [pair(generator(1, n), [scene], settings, NOTHING) for n in range(30)]
    assert all(bool(torch.isfinite(p.truth).all()) for p in pairs)


def test_turns_keep_the_scale_of_each_axis(made: Made) -> None:
    settings, scenes = made("volumes", "extent: [6, 24, 12]", "margin: 1")
    turned = replace(NOTHING, flips=True, turns=True)
    assert all(pair(generator(1, n), scenes, settings, turned).truth.shape[2:] == (24, 24, 12) for n in range(20))


def test_contrasts_keep_places_and_change_values() -> None:
    rng = np.random.default_rng(0)
    image = np.linspace(-0.1, 1.2, 400).reshape(20, 20)
    for _ in range(30):
        for curve in (contrasts.curve(rng), contrasts.regions(rng, np.linspace(0, 1, 50).tolist())):
            changed = curve(image)
            assert np.isfinite(changed).all()
            assert not np.array_equal(changed, image)
            assert np.array_equal(curve(image[:3]), changed[:3])
    classes = np.zeros((12, 12))
    classes[4:8, 4:8] = 3
    image = contrasts.of_labels(rng, classes)
    assert image.shape == classes.shape
    assert np.isfinite(image).all()
    field = contrasts.bias_field(rng, (9, 10, 11))
    assert field.min() > 0
    assert np.abs(np.diff(field, axis=0)).max() < 0.3
