from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.evaluation import metrics
from pipelines.evaluation.metrics import Comparison

torch = pytest.importorskip("torch")


def pair(shape=(4, 40, 44), noise=0.05, seed=3):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.2, 1.0, shape)
    for axis in range(1, len(shape)):  # some structure: pure noise has none to be similar in
        truth = (truth + np.roll(truth, 1, axis)) / 2
    product = truth + noise * rng.normal(size=shape)
    return Comparison(
        truth=truth,
        product=product,
        mask=np.ones(shape, bool),
        peaks=np.ones(shape[0]),
        scale=2.0,
        residual=np.full((shape[0], 3, 3), 0.5),
    )


def tensor(a):
    return torch.from_numpy(a[None])


def interior(c):
    """The samples whose whole window lies inside."""
    mask = np.zeros_like(c.mask)
    mask[(slice(None), *(slice(5, -5) for _ in c.mask.shape[1:]))] = True
    return replace(c, mask=mask)


@pytest.mark.parametrize("shape", [(1, 40, 44), (1, 24, 26, 22)])
def test_structural_similarity_is_that_of_monai(shape):
    from monai.metrics import SSIMMetric

    c = interior(pair(shape))
    other = SSIMMetric(spatial_dims=len(shape) - 1, data_range=1.0, win_size=11, kernel_sigma=1.5)
    assert metrics.ssim(c) == pytest.approx(float(other(tensor(c.product), tensor(c.truth))), abs=1e-5)


def test_signal_to_noise_is_that_of_torchmetrics():
    from torchmetrics.functional.image import peak_signal_noise_ratio

    c = pair((1, 40, 44))
    other = peak_signal_noise_ratio(tensor(c.product), tensor(c.truth), data_range=1.0)
    assert metrics.psnr(c) == pytest.approx(float(other), abs=1e-5)  # torchmetrics holds the range in float32


def test_signal_to_noise_is_that_of_monai():
    from monai.metrics import PSNRMetric

    c = pair((1, 20, 22, 24))
    other = PSNRMetric(max_val=1.0)(tensor(c.product), tensor(c.truth))
    assert metrics.psnr(c) == pytest.approx(float(other), abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 40, 44), (1, 24, 26, 22)])
def test_structural_similarity_is_that_of_torchmetrics_in_the_interior(shape):
    """The one with a Gaussian window of sigma 1.5 in double precision; at borders the libraries pad differently."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    c = interior(pair(shape))
    inner = tuple(slice(5, -5) for _ in shape[1:])
    _, other = structural_similarity_index_measure(
        tensor(c.product), tensor(c.truth), sigma=1.5, data_range=1.0, return_full_image=True
    )
    assert metrics.ssim(c) == pytest.approx(float(other[(0, 0, *inner)].mean()), abs=1e-5)


def test_an_offset_of_thousands_and_a_range_of_another_unit_change_no_similarity():
    c = pair((1, 40, 44))
    scaled = replace(c, truth=4000 * c.truth, product=4000 * c.product, peaks=np.full(1, 4000.0))
    assert metrics.ssim(scaled) == pytest.approx(metrics.ssim(c), abs=1e-12)
    assert metrics.psnr(scaled) == pytest.approx(metrics.psnr(c), abs=1e-9)


def test_detail_is_measured_over_the_peak_of_each_band_and_within_the_mask():
    c = pair((2, 30, 30))
    c = replace(c, lifted=c.truth - 0.2, product=c.truth, peaks=np.array([1.0, 100.0]))
    c = replace(c, **{name: getattr(c, name) * c.peaks[:, None, None] for name in ("truth", "product", "lifted")})
    spoiled = c.product.copy()
    spoiled[:, :5] = 1e6
    mask = c.mask.copy()
    mask[:, :5] = False
    assert metrics.detail(replace(c, product=spoiled, mask=mask)) == {
        "improvement": 100,
        "omission": 0,
        "hallucination": 0,
    }
    assert all(np.isnan(v) for v in metrics.detail(replace(c, lifted=None)).values())


def test_relative_global_error_is_that_of_torchmetrics():
    from torchmetrics.functional.image import error_relative_global_dimensionless_synthesis

    c = pair()
    other = error_relative_global_dimensionless_synthesis(tensor(c.product), tensor(c.truth), ratio=2)
    assert metrics.ergas(c) == pytest.approx(float(other), rel=1e-6)


def test_spectral_angle_is_that_of_torchmetrics():
    from torchmetrics.functional.image import spectral_angle_mapper

    c = pair()
    other = spectral_angle_mapper(tensor(c.product), tensor(c.truth))
    assert metrics.sam(c) == pytest.approx(float(torch.rad2deg(other)), rel=1e-6)


def test_a_brighter_product_has_the_same_spectral_angle_and_a_single_band_has_none():
    c = pair()
    assert metrics.sam(replace(c, product=1.3 * c.truth)) == pytest.approx(0, abs=1e-5)
    assert np.isnan(metrics.sam(pair((1, 40, 44))))


def test_an_error_of_a_tenth_everywhere_is_20_db_of_peak_and_relative_to_the_mean():
    truth = np.stack([np.full((20, 20), 2.0), np.full((20, 20), 4.0)])
    truth[:, ::2] *= 0.5  # mean 1.5 and 3
    c = replace(pair((2, 20, 20)), truth=truth, product=truth + 0.1)
    assert metrics.psnr(c) == pytest.approx(20.0)
    assert metrics.rmse(c) == pytest.approx(0.1)
    assert metrics.sre(c) == pytest.approx((20 * np.log10(15) + 20 * np.log10(30)) / 2)
    assert metrics.ergas(c) == pytest.approx(50 * np.sqrt(((0.1 / 1.5) ** 2 + (0.1 / 3) ** 2) / 2))
    assert metrics.hfen(c) < 1e-3  # the cut kernel of SciPy does not quite sum to zero


def test_peaks_of_bands_are_their_own():
    c = pair((2, 30, 30))
    scaled = replace(
        c,
        truth=c.truth * np.array([1.0, 100.0])[:, None, None],
        product=c.product * np.array([1.0, 100.0])[:, None, None],
        peaks=np.array([1.0, 100.0]),
    )
    assert metrics.psnr_of_bands(scaled) == pytest.approx(metrics.psnr_of_bands(c))
    assert metrics.ssim(scaled) == pytest.approx(metrics.ssim(c))


@pytest.mark.parametrize("name", metrics.TABLE)
def test_a_perfect_product_has_the_best_value(name):
    c = pair()
    best = {"psnr": np.inf, "sre": np.inf, "ssim": 1.0, "consistency": 0.5}.get(name, 0.0)
    assert metrics.TABLE[name](replace(c, product=c.truth)) == pytest.approx(best, abs=2e-5)


@pytest.mark.parametrize("name", [n for n in metrics.TABLE if n != "consistency"])
def test_more_noise_is_worse(name):
    better, worse = metrics.TABLE[name](pair(noise=0.02)), metrics.TABLE[name](pair(noise=0.1))
    assert (worse < better) == (name in ("psnr", "ssim", "sre"))


@pytest.mark.parametrize("name", ["psnr", "rmse", "sre", "sam", "ergas"])
def test_what_lies_outside_the_mask_does_not_count(name):
    c = pair()
    mask = c.mask.copy()
    mask[:, :10] = False
    spoiled = c.product.copy()
    spoiled[:, :10] = np.nan
    assert metrics.TABLE[name](replace(c, mask=mask)) == metrics.TABLE[name](replace(c, mask=mask, product=spoiled))


def test_consistency_is_stated_in_its_unit_and_skips_what_was_not_compared():
    residual = np.full((1, 4, 4), 3.0)
    residual[0, 0] = np.nan
    assert metrics.consistency(replace(pair(), residual=residual, residual_unit=2.0)) == pytest.approx(1.5)
