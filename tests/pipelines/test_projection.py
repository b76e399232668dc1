from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy import ndimage

from pipelines import interpolation
from pipelines.degradation import Degradation, Profile
from pipelines.grid import Box, Factor, Frame, Grid, placements
from pipelines.interpolation import interpolate
from pipelines.projection import Solver, project, stable_weight, stein_weight

RNG = np.random.default_rng(7)


def _scene(shape: tuple[int, ...], smooth: float) -> np.ndarray:
    x = ndimage.gaussian_filter(RNG.normal(size=shape), smooth)
    return np.asarray(x / np.ptp(x))


def _slices(coarse: int, profile: str, scale: Fraction = Fraction(4)) -> tuple[Grid, Grid, Degradation]:
    grid = Grid("zyx", (coarse, 14, 10), np.diag([float(scale), 1, 1, 1]), Frame("mm", "patient"))
    fine = grid.rescaled(Factor((scale, Fraction(1), Fraction(1))))
    return grid, fine, Degradation.between(grid, fine, [Profile.parse(profile)] * 3)


def test_cubic_equals_the_definition_and_scipy() -> None:
    y = np.array([2.61206215, 18.54326957, 11.67686681])
    grid = Grid("yx", (3, 1), np.eye(3))
    fine = grid.rescaled(Factor((Fraction(4), Fraction(1))))
    ours = interpolate(y[:, None], placements(grid, fine), "cubic")[:, 0]
    expected = [0.696385, 1.492560, 4.296265, 8.798052, 13.650922, 17.462766, 18.894736, 17.832977, 15.388627]
    expected += [12.726085, 10.975398, 10.476523]
    assert np.abs(ours - expected).max() <= 1e-6
    u = [float(c) for c in placements(grid, fine)[0].coordinates()]
    assert np.abs(ours - ndimage.map_coordinates(y, [u], order=3, mode="nearest")).max() <= 1e-6


@pytest.mark.parametrize("kind", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scale", [Fraction(2), Fraction(4), Fraction(9, 2), Fraction(25, 6)])
def test_interpolation_keeps_a_constant(kind: str, scale: Fraction) -> None:
    grid = Grid("yx", (11, 7), np.eye(3))
    fine = grid.rescaled(Factor((scale, scale)))
    made = interpolate(np.full((11, 7), 3.0), placements(grid, fine), kind)
    assert np.abs(made - 3.0).max() <= 1e-12


def test_the_floor_explains_a_clean_input_exactly() -> None:
    grid, fine, a = _slices(20, "slice:4")
    y = a.forward(_scene(fine.shape, 1.5))
    made = project(interpolate(y, placements(grid, fine), "cubic"), y, a)
    assert made.before.rms > 1e-4
    assert made.after.rms <= 1e-12


def test_a_perfect_estimate_passes_unharmed() -> None:
    _, fine, a = _slices(20, "slice:4")
    x = _scene(fine.shape, 1.0)
    assert np.abs(project(x, a.forward(x), a).image - x).max() <= 1e-12


def test_the_projection_never_moves_away_from_a_feasible_truth() -> None:
    _, fine, a = _slices(16, "slice:4")
    x = _scene(fine.shape, 1.0)
    guess = x + 0.1 * RNG.normal(size=x.shape)
    for weight in (0.0, 0.01, 1.0):
        made = project(guess, a.forward(x), a, weight=weight).image
        assert np.linalg.norm(made - x) <= np.linalg.norm(guess - x)


def test_two_axes_equal_the_dense_formula() -> None:
    grid = Grid("yx", (7, 6), np.eye(3))
    fine = grid.rescaled(Factor((Fraction(2), Fraction(2))))
    a = Degradation.between(grid, fine, [Profile("mtf", 0.3)] * 2)
    dense = np.kron(a.matrices[0].toarray(), a.matrices[1].toarray())
    x, y = RNG.normal(size=fine.shape), RNG.normal(size=grid.shape)
    weight = 0.02
    gain = dense.T @ np.linalg.inv(dense @ dense.T + weight * np.eye(42))
    expected = x.ravel() + gain @ (y.ravel() - dense @ x.ravel())
    assert np.abs(project(x, y, a, weight=weight).image.ravel() - expected).max() <= 1e-9


@pytest.mark.parametrize(("profile", "scale"), [("slice:4", 4), ("mtf:0.3", 2), ("mtf:0.3", 4), ("block", 3)])
def test_beyond_its_reach_a_sample_does_not_matter(profile: str, scale: int) -> None:
    _, fine, a = _slices(80, profile, Fraction(scale))
    reach, support = a.reach[0], a.support[0]
    x, y = _scene(fine.shape, 1.0), RNG.normal(size=a.coarse_shape)
    whole = project(x, y, a).image
    middle = range(40, 44)
    rows = Box((40 - reach - support, 0, 0), (44 + reach + support, 14, 10))
    seen = a.fine_box(rows)
    part = project(x[seen.slices], y[rows.slices], a.crop(rows, seen), solver=Solver(a.crop(rows, seen))).image
    cut = slice(middle[0] * scale, (middle[-1] + 1) * scale)
    inner = slice(cut.start - seen.start[0], cut.stop - seen.start[0])
    assert np.abs(whole[cut] - part[inner]).max() <= 2e-6 * np.ptp(whole)


def test_overlapping_slices_get_a_weight_that_keeps_them_stable() -> None:
    _, fine, a = _slices(24, "slice:12")
    assert stable_weight(a) > 0
    assert stable_weight(_slices(24, "slice:4")[2]) == 0
    x = _scene(fine.shape, 2.0)
    y = a.forward(x) + 1e-3 * RNG.normal(size=a.coarse_shape)
    assert np.abs(project(np.zeros(fine.shape), y, a).image).max() < 20


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_steins_weight_is_close_to_the_best_of_a_scan(noise: float) -> None:
    grid, fine, a = _slices(24, "slice:4")
    x = _scene(fine.shape, 1.2)
    y = a.forward(x) + noise * RNG.normal(size=grid.shape)
    spline = interpolation.matrix(placements(grid, fine)[0], "cubic")
    weights, risk, _ = stein_weight(y[None], a, (spline, None, None), noise)
    chosen = weights[np.argmin(risk)]
    estimate = interpolate(y, placements(grid, fine), "cubic")

    def error_db(weight: float) -> float:
        return float(10 * np.log10(np.mean((project(estimate, y, a, weight=weight).image - x) ** 2)))

    best = min(error_db(w) for w in weights)
    assert error_db(chosen) <= best + 0.15


@pytest.mark.parametrize("smooth", [1.0, 2.0, 4.0])
def test_on_a_smooth_image_the_noise_is_not_amplified_for_what_cubic_has_already(smooth: float) -> None:
    grid = Grid("yx", (64, 64), np.eye(3))
    fine = grid.rescaled(Factor((Fraction(2), Fraction(2))))
    a = Degradation.between(grid, fine, [Profile("mtf", 0.3)] * 2)
    x, noise = _scene(fine.shape, smooth), 0.012
    y = a.forward(x) + noise * RNG.normal(size=grid.shape)
    places = placements(grid, fine)
    splines = (interpolation.matrix(places[0], "cubic"), interpolation.matrix(places[1], "cubic"))
    weights, risk, residual = stein_weight(y[None], a, splines, noise)
    cubic = interpolate(y, places, "cubic")

    def error_db(weight: float) -> float:
        return float(10 * np.log10(np.mean((project(cubic, y, a, weight=weight).image - x) ** 2)))

    chosen = int(np.argmin(risk))
    assert error_db(weights[chosen]) <= min(error_db(w) for w in weights[::3]) + 0.1
    assert residual[chosen] == pytest.approx(project(cubic, y, a, weight=weights[chosen]).after.rms, rel=1e-6)
