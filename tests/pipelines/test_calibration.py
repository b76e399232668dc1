"""The noise estimate on known noise, and what follows from too much of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pipelines import runner
from pipelines.calibration import ROUNDING, noise_sigma, windows
from pipelines.degradation import Profile
from pipelines.grid import Orientation
from pipelines.image import ArraySource
from pipelines.planning import Calibration
from pipelines.store import Store
from tests.pipelines.test_runner import _scene, made, raster, volume

RNG = np.random.default_rng(11)


def _estimate(values: np.ndarray, *, rician: bool = False) -> tuple[float, str]:
    return noise_sigma(values, np.ones(values.shape, bool), rician=rician)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 40.0])
def test_white_noise_is_estimated_to_five_percent(sigma: float) -> None:
    found, method = _estimate(100 + RNG.normal(0, sigma, (12, 96, 96)))
    assert method.startswith("least principal")
    assert found == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("side", [24, 40, 96])
def test_small_images_are_estimated_without_bias(side: int) -> None:
    found = [_estimate(RNG.normal(size=(1, side, side)))[0] for _ in range(12)]
    assert np.mean(found) == pytest.approx(1.0, abs=0.08)


def test_whole_numbers_have_at_least_the_noise_of_rounding() -> None:
    scene = 100 + 40 * ndimage.gaussian_filter(RNG.normal(size=(4, 96, 96)), (0, 4, 4)) * 14
    found, method = _estimate(np.rint(scene))
    assert found >= ROUNDING
    assert found <= 1.5 * ROUNDING
    assert _estimate(np.rint(scene + RNG.normal(0, 3.0, scene.shape)))[0] == pytest.approx(3.0, rel=0.06), method


@pytest.mark.parametrize("share", [0.008, 0.015, 0.03])
def test_noise_over_a_scene_as_a_sensor_blurs_it(share: float) -> None:
    scene = ndimage.gaussian_filter(RNG.normal(size=(12, 96, 96)), (0, 1.0, 1.0))
    sigma = share * np.ptp(scene)
    # what is left of the texture adds to the noise: most where there is little of it
    assert 0.9 <= _estimate(scene + sigma * RNG.normal(size=scene.shape))[0] / sigma <= 1.15


def test_noise_between_holes_is_estimated_from_what_they_leave() -> None:
    values = 100 + RNG.normal(0, 5.0, (12, 96, 96))
    valid = np.ones(values.shape, bool)
    valid[:, ::8] = valid[:, :, ::8] = False
    values[~valid] = 0
    found, method = noise_sigma(values, valid, rician=False)
    assert method == "wavelet (diagonal band)"
    assert found == pytest.approx(5.0, rel=0.05)
    valid[:, ::3] = False
    assert noise_sigma(values, valid, rician=False) == (0.0, "none")


@pytest.mark.parametrize("seed", range(5))
def test_the_noise_of_an_image_of_ten_by_ten_is_found_within_a_factor_of_two(seed: int) -> None:
    values = 100 + 5 * np.random.default_rng(seed).normal(size=(1, 10, 10))
    sigma, _ = noise_sigma(values, np.ones(values.shape, bool), rician=False)
    assert 2.5 < sigma < 10


def _head(sigma: float) -> np.ndarray:
    tissue = np.zeros((16, 20, 48, 48))
    tissue[5:11, :, 8:40, 8:40] = 300 + 60 * ndimage.gaussian_filter(RNG.normal(size=(6, 20, 32, 32)), 1) * 8
    return np.hypot(tissue + RNG.normal(0, sigma, tissue.shape), RNG.normal(0, sigma, tissue.shape))


@pytest.mark.parametrize("sigma", [2.0, 6.0])
def test_the_background_of_a_magnitude_image_tells_its_noise(sigma: float) -> None:
    found, method = _estimate(_head(sigma), rician=True)
    assert method.startswith("background")
    assert found == pytest.approx(sigma, rel=0.05)


def test_a_zeroed_background_is_not_believed() -> None:
    head = _head(4.0)
    head[head < 40] = 0
    assert not _estimate(head, rician=True)[1].startswith("background")


def test_windows_lie_in_the_image_and_reach_its_corners() -> None:
    for shape in ((30, 200, 180), (400, 90), (3, 5, 4), (1, 1)):
        boxes = list(windows(shape))
        assert all(b.clip(shape) == b for b in boxes)
        assert boxes[0].start[-1] == 0
        assert max(b.stop[-1] for b in boxes) == shape[-1]


def test_the_residual_over_the_noise_weighs_every_band_by_its_own_noise(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(size=(2, 96, 96)) * np.array([3.0, 90.0])[:, None, None]
    samples = np.stack([_scene((96, 96)), 30 * _scene((96, 96), 1)]) + noise
    source = ArraySource(samples, raster((96, 96), bands=2))
    report = runner.upscale(source, tmp_path / "o.zarr", scale=2, model="floor")
    ratios = [c.over_noise for c in report.channels]
    assert None not in ratios
    assert report.channels[1].noise_sigma > 10 * report.channels[0].noise_sigma
    assert report.consistency_over_noise == pytest.approx(np.sqrt(np.mean(np.square(ratios))), rel=1e-6)


def test_bands_of_different_blur_do_not_share_their_matrices(tmp_path: Path) -> None:
    header = raster((64, 64), bands=3)
    sharp = (Profile("mtf", 0.4),) * 2
    header = replace(
        header, channels=(header.channels[0], replace(header.channels[1], profiles=sharp), header.channels[2])
    )
    samples = np.stack([_scene((64, 64), k) for k in range(3)])
    together, _, _ = made(tmp_path / "all", samples, header, scale=2)
    for k, channel in enumerate(header.channels):
        alone, _, _ = made(tmp_path / str(k), samples[k : k + 1], replace(header, channels=(channel,)), scale=2)
        assert np.array_equal(together[k], alone[0])


def test_more_noise_than_the_network_knows_gives_the_floor_and_says_so(tmp_path: Path) -> None:
    scene = np.stack([_scene((64, 64)), _scene((64, 64), 1)])
    noise = 0.3 * np.ptp(scene)
    product, _, store = made(
        tmp_path / "a", scene, raster((64, 64), bands=2), scale=2, model="lattice-geo", noise=noise
    )
    floor, _, _ = made(tmp_path / "b", scene, raster((64, 64), bands=2), scale=2, noise=noise)
    assert np.array_equal(product, floor)
    assert not any(c.refined for c in Calibration.from_json(store.read_json("calibration.json") or {}).channels)
    report = runner.upscale(
        ArraySource(scene, raster((64, 64), bands=2)), tmp_path / "o.zarr", scale=2, model="lattice-geo", noise=noise
    )
    assert any("more noise" in w for w in report.warnings)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("back", [(), (0, 2), (0, 1, 2)])
def test_the_order_in_which_a_volume_is_stored_changes_nothing(
    tmp_path: Path, order: tuple[int, ...], back: tuple[int, ...]
) -> None:
    header = volume((14, 60, 50), 4.0, 4.0)
    truth = _scene(header.grid.shape) + np.random.default_rng(2).normal(0, 9, header.grid.shape)
    orientation = Orientation(order, tuple(a in back for a in range(3)))
    plain, plan, _ = made(tmp_path / "a", truth, header, scale="4x1x1", noise="auto")
    stored = header.turned(orientation)
    scale = "x".join("4" if axis == 0 else "1" for axis in order)
    other, turned_plan, _ = made(tmp_path / "b", orientation.array(truth), stored, scale=scale, noise="auto")
    first, second = (Calibration.from_json(Store(tmp_path / name).read_json("calibration.json") or {}) for name in "ab")
    assert second.channels[0].noise_sigma == pytest.approx(first.channels[0].noise_sigma, rel=1e-9)
    assert second.channels[0].weight == pytest.approx(first.channels[0].weight, rel=1e-9)
    assert plan.model == turned_plan.model
    assert np.abs(orientation.array(plain[0]) - other[0]).max() <= 1e-5 * np.ptp(truth)
