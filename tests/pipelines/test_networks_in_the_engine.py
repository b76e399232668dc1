"""The shipped networks through the whole engine: tiles, workers, consistency, what they must not touch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.card import available
from pipelines.errors import ModelError
from pipelines.image import Header
from pipelines.store import Ledger
from tests.pipelines.test_runner import _scene, made, raster, volume

CASES = [
    ("lattice-mri", volume((14, 70, 66), 4.0, 4.0), "4x1x1", [(256, 64, 64), (64, 32, 64), (32, 96, 32)]),
    ("lattice-mri", volume((14, 40, 36), 5.0, 4.0), "25/6x1x1", [(64, 64, 64), (32, 32, 64), (64, 32, 32)]),
    ("lattice-geo", raster((150, 140), bands=2), "2", [(512, 512), (256, 256), (256, 512)]),
    ("lattice-geo", raster((80, 70)), "4", [(512, 512), (256, 256), (512, 256)]),
]


def _samples(header: Header) -> np.ndarray:
    return np.stack([_scene(header.grid.shape, k) for k in range(len(header.channels))])


@pytest.mark.parametrize(("model", "header", "scale", "shards"), CASES)
def test_tiles_change_nothing(
    tmp_path: Path, model: str, header: Header, scale: str, shards: list[tuple[int, ...]]
) -> None:
    samples = _samples(header)
    products = [
        made(tmp_path / str(n), samples, header, scale=scale, model=model, shard=shard)[0]
        for n, shard in enumerate(shards)
    ]
    floor, _, _ = made(tmp_path / "floor", samples, header, scale=scale)
    assert np.abs(products[0] - floor).max() > 1e-3 * np.ptp(samples)  # the network does something
    for product in products[1:]:
        assert np.abs(product - products[0]).max() <= 1e-5 * np.ptp(samples)


@pytest.mark.parametrize(("model", "header", "scale", "shards"), CASES)
def test_the_product_explains_a_clean_input(
    tmp_path: Path, model: str, header: Header, scale: str, shards: list[tuple[int, ...]]
) -> None:
    del shards
    samples = _samples(header)
    product, plan, _ = made(tmp_path, samples, header, scale=scale, model=model)
    for c in range(len(samples)):
        residual = plan.degradation(c).forward(product[c]) - samples[c]
        assert np.sqrt(np.mean(residual**2)) <= 1e-5 * np.ptp(samples)


@pytest.mark.parametrize(
    ("model", "header", "scale", "shard"),
    [
        ("lattice-geo", raster((300, 280)), "2", (256, 256)),
        ("lattice-mri", volume((20, 40, 60), 4.0, 4.0), "4x1x1", (96, 32, 32)),
    ],
)
def test_any_number_of_workers_makes_the_same_bytes(
    tmp_path: Path, model: str, header: Header, scale: str, shard: tuple[int, ...]
) -> None:
    digests = set()
    for workers in (1, 2, 3, 4):
        _, plan, store = made(
            tmp_path / str(workers), _samples(header), header, scale=scale, model=model, shard=shard, workers=workers
        )
        records = Ledger(store, plan.run_hash).records()
        assert len(records) == plan.tile_count >= 4
        digests.add(tuple(r.checksum for _, r in sorted(records.items())))
    assert len(digests) == 1


def test_an_offset_and_a_gain_of_the_units_change_nothing_else(tmp_path: Path) -> None:
    header = replace(raster((64, 60)), dtype="float64")
    samples = _scene((64, 60)).astype(float)
    plain, _, _ = made(tmp_path / "a", samples, header, scale=2, model="lattice-geo")
    moved, _, _ = made(tmp_path / "b", 0.37 * samples - 1000, header, scale=2, model="lattice-geo")
    assert np.abs((moved + 1000) / 0.37 - plain).max() <= 1e-4 * np.ptp(samples)


def test_a_band_of_one_value_stays_as_it_is(tmp_path: Path) -> None:
    samples = np.stack([np.full((60, 50), 17.0), _scene((60, 50))])
    product, _, _ = made(tmp_path, samples, raster((60, 50), bands=2), scale=2, model="lattice-geo")
    assert np.abs(product[0] - 17).max() <= 1e-4


def test_the_default_model_fits_domain_scale_and_axes(tmp_path: Path) -> None:
    names = {card.name for card in available() if card.network}
    assert names == {"lattice-mri", "lattice-geo", "guided-geo"}
    _, plan, _ = made(tmp_path / "a", _samples(CASES[0][1]), CASES[0][1], scale="4x1x1", model=None)
    assert plan.model.startswith("lattice-mri")
    _, plan, _ = made(tmp_path / "b", _samples(CASES[3][1]), CASES[3][1], scale="2", model=None)
    assert plan.model.startswith("lattice-geo")
    _, plan, _ = made(tmp_path / "c", _samples(CASES[0][1]), CASES[0][1], scale="2x2x2", model=None)
    assert plan.model == "floor"
    assert any("floor" in w for w in plan.warnings)


def test_a_network_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trained for domain"):
        made(tmp_path, _samples(CASES[3][1]), CASES[3][1], scale="2", model="lattice-mri")
