from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from pipelines.degradation import Degradation, Profile, axis_matrix
from pipelines.grid import Placement
from pipelines.networks.consistency import Twin
from pipelines.projection import Solver, project


def placement(coarse: int, fine: int, scale: Fraction) -> Placement:
    """Lattices that share their centre."""
    return Placement(coarse, fine, scale, (scale - 1) / 2 + (fine - coarse * scale) / 2)


def volume() -> Degradation:
    """Slices of 4 fine samples with a gap of 1, beside a shared axis of 7."""
    return Degradation((9, 7), (45, 7), (axis_matrix(placement(9, 45, Fraction(5)), Profile("slice", 4.0), 4.0), None))


def image() -> Degradation:
    """2.5x in one axis and 2x in the other."""
    y, x = placement(8, 20, Fraction(5, 2)), placement(11, 22, Fraction(2))
    mtf = Profile("mtf", 0.3)
    return Degradation((8, 11), (20, 22), (axis_matrix(y, mtf), axis_matrix(x, mtf)))


@pytest.mark.parametrize("make", [volume, image])
@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_the_twin_equals_the_projection(make: object, weight: float) -> None:
    degradation: Degradation = make()  # type: ignore[operator]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=degradation.fine_shape), rng.normal(size=degradation.coarse_shape)
    expected = project(x, y, degradation, solver=Solver(degradation, weight)).image
    twin = Twin.of(degradation, weight)
    found = twin.project(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)).numpy()
    assert np.abs(found - expected).max() <= 1e-5


def test_what_is_left_of_a_change_is_unseen_by_the_sensor() -> None:
    twin = Twin.of(image())
    r = torch.randn(20, 22, generator=torch.Generator().manual_seed(0))
    assert twin.forward(r).abs().max() > 0.1
    assert twin.forward(twin.unseen(r)).abs().max() <= 1e-5


def test_gradients_are_unseen_by_the_sensor() -> None:
    twin = Twin.of(volume())
    r = torch.zeros(45, 7, requires_grad=True)
    (
        twin.project(r, torch.ones(9, 7)) - torch.randn(45, 7, generator=torch.Generator().manual_seed(1))
    ).square().sum().backward()
    assert r.grad is not None
    assert r.grad.abs().max() > 0.1
    assert twin.forward(r.grad).abs().max() <= 1e-5
