from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.networks.shape import LatticeOptions
from pipelines.training.pairs import (
    MAKERS,
    Pair,
    Scene,
    distinct_phases,
    generator,
    load_rasters,
    load_volumes,
)

VOLUME = LatticeOptions(channels=8, blocks=1, basis=4, planes=3, fold=2, thin=True, phases=1)
IMAGE = LatticeOptions(channels=8, blocks=1, basis=4)


def scenes(kind: str) -> list[Scene]:
    """One smooth scene."""
    shape = (1, 40, 36, 44) if kind == "volumes" else (3, 90, 100)
    noise = np.random.default_rng(0).random(shape)
    for axis in range(1, len(shape)):
        noise = noise + np.roll(noise, 1, axis)
    axes = (0, 2) if kind == "volumes" else (1, 2)
    return [Scene("noise", (noise / noise.max()).astype(np.float32), axes, 1.0)]


def make(kind: str, number: int, seed: int = 1) -> Pair:
    """Pair `number` of a kind."""
    options = VOLUME if kind == "volumes" else IMAGE
    return MAKERS[kind](generator(seed, number), scenes(kind), options, 32 if kind == "volumes" else 24)


@pytest.mark.parametrize("kind", ["volumes", "rasters"])
def test_a_pair_is_a_function_of_seed_and_number(kind: str) -> None:
    one, same, other = make(kind, 4), make(kind, 4), make(kind, 5)
    assert torch.equal(one.coarse, same.coarse)
    assert torch.equal(one.truth, same.truth)
    assert one.truth.shape != other.truth.shape or not torch.equal(one.truth, other.truth)
    assert not torch.equal(one.coarse[:, :3, :3], make(kind, 4, seed=2).coarse[:, :3, :3])


@pytest.mark.parametrize("kind", ["volumes", "rasters"])
def test_what_a_pair_holds_fits_together(kind: str) -> None:
    options = VOLUME if kind == "volumes" else IMAGE
    rows_margin, columns_margin = options.margin
    for number in range(30):
        pair = make(kind, number)
        assert pair.floor.shape == pair.cubic.shape == pair.truth.shape
        assert len(pair.rows) == pair.truth.shape[0]
        # every nearest lattice row of a fine sample survives the valid convolutions
        assert int(pair.rows.min()) >= 0
        assert int(pair.rows.max()) < pair.coarse.shape[1] - 2 * rows_margin
        columns = pair.coarse.shape[2] - 2 * columns_margin * options.fold
        assert columns == pair.truth.shape[1] if pair.columns is None else int(pair.columns.max()) < columns
        assert float(pair.phases.abs().max()) <= 0.5
        assert all(bool(torch.isfinite(t).all()) for t in (pair.coarse, pair.floor, pair.truth, pair.condition))
        assert pair.unit > 0


@pytest.mark.parametrize("kind", ["volumes", "rasters"])
def test_the_floor_of_a_clean_pair_explains_its_measurement(kind: str) -> None:
    margin, columns = (VOLUME if kind == "volumes" else IMAGE).margin
    columns *= 2 if kind == "volumes" else 1
    seen = 0
    for number in range(20):
        pair = make(kind, number)
        middle = pair.coarse[pair.coarse.shape[0] // 2, margin:-margin, columns:-columns]
        difference = (pair.twin.forward(pair.floor) - middle).abs().max()
        if pair.clean and float(pair.twin.inverse.max()) < 100:
            assert float(difference) <= 1e-3
            seen += 1
    assert seen >= 3


def test_distinct_phases_name_every_pixel() -> None:
    a, b = Fraction(-1, 4), Fraction(1, 4)
    table, number = distinct_phases([a, b, a], [b, a])
    assert table.shape == (4, 2)
    assert table[number].tolist() == [[[y, x] for x in (0.25, -0.25)] for y in (-0.25, 0.25, -0.25)]


@pytest.mark.data
def test_the_real_data_loads_without_what_must_not_be_used(data: Path) -> None:
    volumes = load_volumes(data / "med/volumes/train")
    assert len(volumes) == 11
    assert {s.name: s.thick_axes for s in volumes}["t2_head_1x1x2mm"] == (0, 1)
    rasters = load_rasters(data / "geo/scenes/train", hold_out=("wv3_rotterdam",))
    assert not any("29rkh" in s.name or "wv3" in s.name for s in rasters)
    for scene in [*volumes, *rasters]:
        assert np.isfinite(scene.samples).all()
        assert np.percentile(scene.samples[0], 50) <= 1.0
