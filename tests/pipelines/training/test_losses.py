"""Losses: known values, least at the truth, gradients that can be used, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.losses.spectral_loss import JukeboxLoss
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from pipelines.errors import ModelError, UsageError
from pipelines.networks.textbook import build as network
from pipelines.networks.textbook.bundle import write_bundle
from pipelines.training.losses import TERMS, build, heteroscedastic, kl


def images(ndim: int, seed: int = 0, side: int = 24) -> Tensor:
    return torch.randn(2, 2, *(side,) * ndim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Small networks with random weights, by their axes."""
    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(0)
    made = {n: write_bundle(network("edsr", (2,) * n, channels=4, blocks=1), folder, name=f"e{n}") for n in (2, 3)}
    return {n: str(folder / f"{card.id}.json") for n, card in made.items()}


def told(name: str, ndim: int, bundles: dict[int, str]) -> dict[str, Any]:
    return {name: {"model": bundles[ndim]} if name == "perceptual" else 1.0}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_zero_at_the_truth_and_a_step_down_its_slope_leads_there(
    name: str, ndim: int, bundles: dict[int, str]
) -> None:
    loss, truth = build(told(name, ndim, bundles), ndim, 1.0), images(ndim)
    assert loss(truth, truth).item() == pytest.approx(0, abs=1e-6)
    estimate = (truth + 0.3 * images(ndim, 1)).requires_grad_(True)
    found = loss(estimate, truth)
    found.backward()  # type: ignore[no-untyped-call]
    assert estimate.grad is not None
    assert found.item() > 0.01
    assert estimate.grad.isfinite().all()
    step = 0.1 * estimate.grad / estimate.grad.norm()
    with torch.no_grad():
        assert loss(estimate - step, truth) < found < loss(estimate + step, truth)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_patch_without_content_has_a_gradient_that_can_be_used(
    name: str, value: float, bundles: dict[int, str]
) -> None:
    estimate = torch.full((1, 1, 24, 24), value, requires_grad=True)
    build(told(name, 2, bundles), 2, 1.0)(estimate, torch.full((1, 1, 24, 24), value)).backward()  # type: ignore[no-untyped-call]
    assert estimate.grad is not None
    assert estimate.grad.isfinite().all()


def test_amplitudes_alone_have_no_gradient_there() -> None:
    """Why the spectra are compared by hand. If this fails, MONAI's loss may be taken instead."""
    estimate = torch.zeros(1, 1, 8, 8, requires_grad=True)
    JukeboxLoss(2)(estimate, torch.ones(1, 1, 8, 8)).backward()
    assert estimate.grad is not None
    assert estimate.grad.isnan().any()


@pytest.mark.parametrize("name", TERMS)
def test_the_unit_of_the_images_does_not_matter(name: str, bundles: dict[int, str]) -> None:
    a, b = images(2), images(2, 1)
    one = build(told(name, 2, bundles), 2, 2.0)(a, b)
    other = build(told(name, 2, bundles), 2, 2000.0)(1000 * a, 1000 * b)
    assert other.item() == pytest.approx(one.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", 0.3),
        ("mse", 0.09),
        ("charbonnier", math.sqrt(0.3**2 + 1e-6) - 1e-3),
        ("gradient", 0.0),  # the same offset everywhere
    ],
)
def test_values_of_an_offset_are_known(name: str, expected: float) -> None:
    truth = images(2)
    assert build({name: 1}, 2, 1.0)(truth + 0.3, truth).item() == pytest.approx(expected, abs=1e-6)


def test_the_gradient_term_sees_steps_along_every_axis() -> None:
    truth, estimate = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    estimate[:, :, :, 2:] = 1.0  # one step of three along one of three axes
    assert build({"gradient": 1}, 3, 1.0)(estimate, truth).item() == pytest.approx(1 / 9)
    flat = torch.zeros(1, 1, 1, 4, 4)
    assert build({"gradient": 1}, 3, 1.0)(flat, flat) == 0


def test_a_sum_of_squares_of_spectra_is_that_of_samples() -> None:
    """Parseval: white errors cost about sqrt(pi) / 2 of their standard deviation, whatever the size."""
    error = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    found = build({"fourier": {"epsilon": 1e-6}}, 2, 1.0)(error, torch.zeros_like(error))
    assert found.item() == pytest.approx(math.sqrt(math.pi) / 2, rel=0.02)


def test_a_shift_costs_in_the_spectra_too() -> None:
    truth = images(2)
    assert build({"fourier": 1}, 2, 1.0)(truth.roll(1, dims=-1), truth) > 0.5


def test_ssim_is_that_of_another_library_away_from_the_edges() -> None:
    a = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    b = (a + 0.2 * torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    inner = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)[1][..., 5:-5, 5:-5]
    assert build({"ssim": 1}, 2, 1.0)(a, b).item() == pytest.approx(1 - inner.mean().item(), abs=1e-4)


def test_windows_shrink_to_a_thin_slab() -> None:
    thin = torch.randn(1, 1, 4, 20, 20, generator=torch.Generator().manual_seed(0))
    assert build({"ssim": 1}, 3, 1.0)(thin, 0.5 * thin).isfinite()


@pytest.mark.parametrize(("side", "fits"), [(11, False), (12, True), (44, True), (176, True)])
def test_ms_ssim_takes_as_many_scales_as_fit(side: int, fits: bool) -> None:
    loss, truth = build({"ms_ssim": 1}, 2, 1.0), images(2, side=side)
    if fits:
        assert 0 < loss(0.5 * truth, truth) < 1
    else:
        with pytest.raises(UsageError, match="11 samples is too short"):
            loss(truth, truth)


def test_terms_add_up_with_their_weights() -> None:
    a, b = images(2), images(2, 1)
    loss = build({"l1": 0.5, "mse": {"weight": 2}}, 2, 1.0)
    parts = loss.parts(a, b)
    assert parts["l1"].item() == pytest.approx(0.5 * (a - b).abs().mean().item())
    assert parts["mse"].item() == pytest.approx(2 * (a - b).square().mean().item())
    assert loss(a, b).item() == pytest.approx(sum(v.item() for v in parts.values()))


def test_half_precision_is_not_summed_in_half() -> None:
    a = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    assert build({"mse": 1}, 2, 1.0)(a, 1.5 * a).dtype == torch.float32


def test_perceptual_features_are_frozen_and_of_every_band(bundles: dict[int, str]) -> None:
    loss, truth = build({"perceptual": {"model": bundles[2]}}, 2, 1.0), images(2)
    other = truth.clone()
    other[:, 1] += images(2, 1)[:, 1]
    assert loss(other, truth) > 0.01
    with pytest.raises(ModelError, match="network of 2 axes, the images have 3"):
        build({"perceptual": {"model": bundles[2]}}, 3, 1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [("srcnn", {}), ("autoencoder", {"channels": [4, 6]}), ("unet", {"channels": [4, 6], "units": 0}), ("vae", {})],
)
def test_features_of_any_network_of_the_line(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    card = write_bundle(network(name, (2, 2), **options), tmp_path, name=name)
    loss = build({"perceptual": {"model": str(tmp_path / f"{card.id}.json")}}, 2, 1.0)
    truth = images(2, side=21)  # no multiple of any stride
    assert loss(truth + images(2, 1, side=21), truth) > 0.01
    assert loss(truth, truth) == 0
    if name == "unet":
        with pytest.raises(ModelError, match="too small for perceptual features"):
            loss(truth[..., :1, :1], truth[..., :1, :1])


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        ({}, "no terms"),
        ({"charbonier": 1}, "Did you mean 'charbonnier'"),
        ({"l1": -1}, "l1 has the weight -1"),
        ({"l1": math.nan}, "l1 has the weight nan"),
        ({"l1": "much"}, "l1 has the weight 'much'"),
        ({"l1": True}, "l1 has the weight True"),
        ({"l1": {"epsilon": 1}}, "l1 has no option 'epsilon'. It has none"),
        ({"charbonnier": {"epsilom": 1}}, "Did you mean 'epsilon'"),
        ({"charbonnier": {"epsilon": 0}}, "the epsilon 0"),
        ({"ssim": {"window": 4}}, "Give an odd one"),
        ({"ms_ssim": {"scales": 1}}, "give 2 to 5|Give 2 to 5"),
        ({"perceptual": 1}, "names no model"),
        ({"perceptual": {"model": "lattice-mri"}}, "no textbook network"),
    ],
)
def test_what_cannot_be_built_is_refused(terms: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        build(terms, 2, 1.0)


@pytest.mark.parametrize("data_range", [0.0, -1.0, math.nan])
def test_a_range_that_is_none_is_refused(data_range: float) -> None:
    with pytest.raises(UsageError, match="range of the images"):
        build({"l1": 1}, 2, data_range)


def test_the_divergence_of_a_standard_normal_is_none() -> None:
    zero = torch.zeros(3)
    assert kl(zero, zero) == 0
    assert kl(zero + 2, zero).item() == pytest.approx(2.0)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.5, math.exp(0.35)), torch.distributions.Normal(0.0, 1.0)
    )
    assert kl(zero + 0.5, zero + 0.7).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("kind", "log_variance"), [("gaussian", math.log(0.3**2)), ("laplace", math.log(2 * 0.3**2))])
def test_a_likelihood_is_highest_where_the_stated_spread_is_that_of_the_errors(kind: str, log_variance: float) -> None:
    mean, truth = torch.zeros(100), 0.3 * torch.ones(100).mul_(torch.tensor([1.0, -1.0]).repeat(50))

    def found(value: float) -> float:
        return heteroscedastic(mean, torch.full((100,), value), truth, kind).item()

    assert found(log_variance) < min(found(log_variance - 0.1), found(log_variance + 0.1))
    if kind == "gaussian":
        other = torch.distributions.Normal(0.0, math.exp(0.5 * log_variance))
    else:
        other = torch.distributions.Laplace(0.0, math.exp(0.5 * log_variance) / math.sqrt(2))
    assert found(log_variance) == pytest.approx(-other.log_prob(truth).mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_an_absurd_spread_does_not_leave_the_numbers(kind: str) -> None:
    for value in (-1e4, 1e4):
        assert heteroscedastic(torch.zeros(3), torch.full((3,), value), torch.ones(3), kind).isfinite()
    with pytest.raises(UsageError, match="Did you mean 'laplace'"):
        heteroscedastic(torch.zeros(3), torch.zeros(3), torch.zeros(3), "laplase")
