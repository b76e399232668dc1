"""Discriminators and their losses: known values, what they push, and that one learns to tell images apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pipelines.errors import UsageError
from pipelines.training.adversarial import KINDS, discriminator, losses

SMALL = {"channels": 4, "layers": 2}


def logits(*values: float) -> tuple[torch.Tensor, ...]:
    return tuple(torch.full((2, 1, 3), value, requires_grad=True) for value in values)


@pytest.mark.parametrize(
    ("kind", "of_discriminator", "of_generator"),
    [
        ("bce", 2 * math.log(2), math.log(2)),
        ("lsgan", 0.5, 0.5),
        ("hinge", 2.0, 0.0),
        ("relativistic", 2 * math.log(2), 2 * math.log(2)),
    ],
)
def test_values_are_known_where_nothing_is_told_apart(kind: str, of_discriminator: float, of_generator: float) -> None:
    d, g = losses(kind)
    assert d(logits(0.0), logits(0.0)).item() == pytest.approx(of_discriminator)
    assert g(logits(0.0), logits(0.0)).item() == pytest.approx(of_generator)


@pytest.mark.parametrize("kind", KINDS)
def test_a_discriminator_is_pushed_apart_and_a_generator_towards_real(kind: str) -> None:
    d, g = losses(kind)
    real, made = logits(0.3), logits(0.2)
    d(real, made).backward()  # type: ignore[no-untyped-call]
    assert real[0].grad is not None
    assert made[0].grad is not None
    assert (real[0].grad < 0).all()
    assert (made[0].grad > 0).all()
    made = logits(0.2)
    g(logits(0.3), made).backward()  # type: ignore[no-untyped-call]
    assert made[0].grad is not None
    assert (made[0].grad < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_wrong_by_much_still_learns(kind: str) -> None:
    real = logits(-20.0)
    losses(kind)[0](real, logits(-20.0)).backward()  # type: ignore[no-untyped-call]
    assert real[0].grad is not None
    assert real[0].grad.abs().sum() > 0.4


def test_relativistic_losses_see_differences_only() -> None:
    for loss in losses("relativistic"):
        assert loss(logits(1.5), logits(0.5)).item() == pytest.approx(loss(logits(11.5), logits(10.5)).item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_count_alike_whatever_their_size(kind: str) -> None:
    large, small = torch.full((1, 1, 64), 1.0), torch.full((1, 1, 2), -1.0)
    for loss in losses(kind):
        both = loss((large, small), (small.mean() + 0 * large, large.mean() + 0 * small))
        each = [loss((a,), (b,)) for a, b in ((large, -large), (small, -small))]
        assert both.item() == pytest.approx((each[0] + each[1]).item() / 2)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["patch", "multiscale"])
def test_the_least_side_is_the_least(kind: str, ndim: int) -> None:
    net = discriminator({**SMALL, "kind": kind, "layers": 1 if ndim == 3 else 2}, ndim, 3)
    assert isinstance(net.least_side, int)
    made = net(torch.zeros(1, 3, *(net.least_side,) * ndim))
    assert len(made) == (1 if kind == "patch" else 2)
    assert all(m.shape[:2] == (1, 1) for m in made)
    with pytest.raises(UsageError, match=f"it needs {net.least_side}"):
        net(torch.zeros(1, 3, *(net.least_side - 1,) * ndim))
    with pytest.raises(RuntimeError):  # and nothing smaller would do
        net.net(torch.zeros(1, 3, *(net.least_side - 1,) * ndim))


def test_spectral_norm_bounds_every_layer() -> None:
    torch.manual_seed(0)
    net = discriminator({**SMALL, "spectral": True}, 2, 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(100.0)
        for _ in range(30):  # a power iteration a pass
            net(torch.randn(1, 1, 32, 32))
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) == 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=0.05)
    free = discriminator({**SMALL, "spectral": False}, 2, 1)
    assert sum(p.numel() for p in free.parameters()) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_to_tell_smooth_images_from_rough(kind: str) -> None:
    torch.manual_seed(0)
    net, (loss, _) = discriminator(SMALL, 2, 1), losses(kind)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(40):
        rough = torch.randn(4, 1, 24, 24)
        smooth = torch.nn.functional.avg_pool2d(rough, 3, 1, 1)
        found = loss(net(smooth), net(rough))
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    rough = torch.randn(4, 1, 24, 24)
    with torch.no_grad():
        apart = net(torch.nn.functional.avg_pool2d(rough, 3, 1, 1))[0].mean() - net(rough)[0].mean()
    assert apart > 0.5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"chanels": 3}, "Did you mean 'channels'"),
        ({"channels": 0}, "0 is no channels"),
        ({"layers": True}, "True is no layers"),
        ({"kind": "global"}, "Choose one of patch, multiscale"),
        ({"norm": "layer"}, "Choose one of none, instance, batch"),
        ({"spectral": 1}, "Choose one of True, False"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        discriminator(options, 2, 1)


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'lsgan'"):
        losses("lsgans")
