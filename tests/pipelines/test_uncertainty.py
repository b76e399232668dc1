"""Errors told by a network of their own: a second product on the same grid, which no projection touches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from pipelines import runner, upscale_array
from pipelines.card import find
from pipelines.job import Job
from pipelines.networks.lattice import LatticeNet
from pipelines.networks.shape import LEAST_ERROR
from pipelines.request import Request
from pipelines.training.config import TrainingConfig
from pipelines.training.lattice import write_bundle
from tests.pipelines.files import smooth, write_raster
from tests.pipelines.test_runner import made, raster

Run = Callable[..., tuple[int, str, str]]

NETWORK = {"channels": 16, "blocks": 2, "basis": 4, "phases": 2, "positive": True}
CARD = {
    "domain": "geo",
    "axes": "image",
    "scales": [2.0, 4.0],
    "estimates": "error",
    "interpolation": "none",
    "project": False,
    "bytes_fixed": 1e8,
    "bytes_per_sample": 20,
}


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """A folder with lattice-geo and a network of its errors, untrained but for the last layer."""
    folder = tmp_path / "models"
    values = {"name": "errors", "kind": "rasters", "steps": 1, "network": NETWORK, "card": CARD, "error_of": "x"}
    config = TrainingConfig.of(values)
    torch.manual_seed(3)
    net = LatticeNet(config.options)
    torch.nn.init.normal_(net.last.conv.weight, std=0.1)
    write_bundle(net, config, folder, {})
    shipped = find("lattice-geo")
    assert shipped.weights
    (folder / shipped.weights.name).write_bytes(shipped.weights.read_bytes())
    replace(shipped, name="both", error_model="errors-1.0.json").write(folder / "both-1.0.json")
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    samples = 500 + 200 * smooth((2, 150, 140)) + rng.normal(0, 4, (2, 150, 140))
    samples[:, 40:50, 60:64] = 0
    return write_raster(tmp_path / "scene.tif", samples.astype(np.uint16), nodata=0)


def test_the_deviation_lies_on_the_grid_of_the_product(run: Run, bundles: Path, image: Path, tmp_path: Path) -> None:
    product, told = tmp_path / "fine.tif", tmp_path / "sd.tif"
    code, _, said = run("upscale", image, product, "--model", bundles / "both-1.0.json", "--uncertainty", told)
    assert code == 0, said
    with rasterio.open(product) as one, rasterio.open(told) as other:
        assert (one.shape, one.transform, one.crs, one.count) == (other.shape, other.transform, other.crs, other.count)
        assert other.dtypes == ("float32", "float32")
        assert other.descriptions[0].endswith("standard deviation")
        deviation, valid = other.read(), one.read_masks() > 0
    assert np.array_equal(np.isfinite(deviation), valid)
    assert deviation[valid].min() > 0
    report = json.loads(Path(f"{told}.report.json").read_text())
    assert report["model"] == "errors-1.0"
    assert report["consistency_rmse"] is None


def test_the_deviation_goes_with_the_units_and_not_with_the_offset(bundles: Path) -> None:
    header = replace(raster((90, 80)), dtype="float64", domain="geo")
    samples, model = smooth((90, 80)).astype(float), str(bundles / "errors-1.0.json")
    plain = upscale_array(samples, header, scale="2", model=model, noise=0)
    moved = upscale_array(3 * samples - 1000, header, scale="2", model=model, noise=0)
    assert np.abs(moved / 3 - plain).max() <= 1e-3 * plain.max()
    assert plain.min() >= LEAST_ERROR * np.ptp(samples) / 2


@pytest.mark.parametrize("scale", ["2", "5/2"])
def test_tiles_tell_the_same_deviation(tmp_path: Path, bundles: Path, scale: str) -> None:
    samples, model = smooth((150, 140)).astype(np.float32), str(bundles / "errors-1.0.json")
    told = [
        made(tmp_path / str(n), samples, raster((150, 140)), scale=scale, model=model, shard=(n, n))[0]
        for n in (256, 512)
    ]
    assert np.abs(told[0] - told[1]).max() <= 1e-5 * told[0].max()


def test_a_model_whose_errors_nobody_learned_is_refused_first(run: Run, image: Path, tmp_path: Path) -> None:
    code, _, told = run("upscale", image, tmp_path / "a.tif", "--model", "floor", "--uncertainty", tmp_path / "b.tif")
    assert code == 2
    assert "errors of floor are not known" in told
    assert not (tmp_path / "a.tif").exists()


def test_a_network_of_errors_is_never_chosen_by_itself(bundles: Path, image: Path, tmp_path: Path) -> None:
    job = Job(str(image), str(tmp_path / "a.tif"))
    assert runner.planned(job).card.estimates == "image"
    errors = runner.of_errors(replace(job, request=Request(model=str(bundles / "both-1.0.json"))), "b.tif")
    assert runner.planned(errors).card.id == "errors-1.0"
