"""The vectors are those of the definition of the forward model, to eight digits."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.degradation import Degradation, Profile, axis_matrix
from pipelines.errors import UsageError
from pipelines.grid import Box, Factor, Frame, Grid, Placement, fine_length
from tests.strategies import places

X = np.array([0, 0, 1, 4, 9, 16, 25, 36, 20, 10, 5, 0.0])
VECTORS = [
    ("slice:4", "4", 3, 4.0, [2.61206215, 18.54326957, 11.67686681]),
    ("slice:3.2", "4", 3, 3.2, [1.78132223, 19.75589603, 10.34778842]),
    ("mtf:0.3", "2", 6, None, [0.26741464, 3.2870196, 13.27436003, 26.23203849, 16.37826451, 4.15874932]),
    ("block", "2.4", 5, None, [0.16666667, 4.91666667, 20.83333333, 22.83333333, 3.75]),
    ("cosine:4", "4", 3, 4.0, [2.01157119, 19.48010966, 11.14084923]),
    ("wald", "2", 6, None, [0.053915, 2.71488053, 12.71501246, 29.16052587, 15.58627084, 2.80137572]),
    ("slice:2.5", "2.5", 5, 2.5, [0.33180309, 5.2010692, 20.53681321, 20.52875923, 4.4742264]),
]
PROFILES = st.sampled_from(["slice:0.8", "slice:1", "cosine:1", "box:1", "mtf:0.3", "gaussian:1.2", "block", "wald"])


def _place(coarse: int, scale: Fraction, fine: int) -> Placement:
    return Placement(coarse, fine, scale, (scale - 1) / 2 + (fine - coarse * scale) / 2)


@pytest.mark.parametrize(("name", "scale", "coarse", "width", "expected"), VECTORS)
def test_the_definition(name: str, scale: str, coarse: int, width: float | None, expected: list[float]) -> None:
    matrix = axis_matrix(_place(coarse, Fraction(scale), 12), Profile.parse(name), width)
    assert np.abs(matrix @ X - expected).max() <= 5.1e-9 * 10  # eight digits of numbers up to 30


def _matrix(place: Placement, name: str) -> np.ndarray:
    profile = Profile.parse(name)
    width = profile.value * float(place.scale) if profile.in_mm and profile.value else None
    return axis_matrix(place, profile, width).toarray()


@given(places(), PROFILES)
def test_a_constant_stays_constant_up_to_the_edge(place: Placement, name: str) -> None:
    assert np.abs(_matrix(place, name).sum(axis=1) - 1).max() <= 1e-12


@given(places(low=16).filter(lambda p: p.scale >= 2), st.sampled_from(["slice:1", "mtf:0.3", "gaussian:1.2"]))
def test_a_ramp_is_sampled_at_the_coarse_centres(place: Placement, name: str) -> None:
    degraded = _matrix(place, name) @ np.arange(place.fine)
    # between lattice points the cut at 4 sigma is lopsided, and narrower profiles alias: close, not equal
    assert np.abs(degraded - place.centres())[5:-5].max() <= 1e-4


@given(places(), PROFILES)
def test_mirroring_the_scene_mirrors_the_measurement(place: Placement, name: str) -> None:
    matrix = _matrix(place, name)
    assert np.abs(matrix - matrix[::-1, ::-1]).max() <= 1e-12


def _model(shape: tuple[int, ...], scales: tuple[Fraction, ...], names: tuple[str, ...]) -> Degradation:
    grid = Grid("zyx"[-len(shape) :], shape, np.eye(len(shape) + 1), Frame("mm", "patient"))
    return Degradation.between(grid, grid.rescaled(Factor(scales)), [Profile.parse(n) for n in names])


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(*[st.sampled_from([Fraction(1), Fraction(2), Fraction(5, 2)])] * 2),
    st.tuples(PROFILES, PROFILES),
    st.integers(0, 2**32 - 1),
)
def test_adjoint_is_exact(
    shape: tuple[int, int], scales: tuple[Fraction, ...], names: tuple[str, ...], seed: int
) -> None:
    a = _model(shape, scales, names)
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=a.fine_shape), rng.normal(size=a.coarse_shape)
    gap = np.vdot(a.forward(x), y) - np.vdot(x, a.adjoint(y))
    assert abs(gap) <= 1e-12 * np.linalg.norm(x) * np.linalg.norm(y)


def test_an_axis_that_both_share_is_left_alone_bit_for_bit() -> None:
    a = _model((4, 5, 6), (Fraction(3), Fraction(1), Fraction(1)), ("slice:1", "block", "block"))
    assert a.changed == (0,)
    x = np.random.default_rng(0).normal(size=a.fine_shape)
    assert np.array_equal(a.forward(x)[:, 2, 3], a.matrices[0] @ x[:, 2, 3])


def test_a_crop_drops_rows_that_see_more() -> None:
    a = _model((12, 4), (Fraction(4), Fraction(1)), ("slice:1", "block"))
    rows = Box((3, 0), (9, 4))
    seen = a.fine_box(rows)
    x = np.random.default_rng(0).normal(size=a.fine_shape)
    assert np.allclose(a.crop(rows, seen).forward(x[seen.slices]), a.forward(x)[3:9], rtol=0, atol=1e-13)
    narrow = a.crop(rows, Box((seen.start[0] + 1, 0), seen.stop))
    assert narrow.matrices[0] is not None
    assert narrow.matrices[0].toarray()[0].sum() == 0


def test_rows_beside_a_hole_are_renormalised_and_rows_in_it_are_dropped() -> None:
    a = _model((8, 3), (Fraction(4), Fraction(1)), ("block", "block"))
    valid = np.ones(a.fine_shape, bool)
    valid[4:9] = False
    degraded, share = a.forward_valid(np.where(valid, 7.0, np.nan), valid)
    assert np.isnan(degraded[1]).all()
    assert np.allclose(degraded[2], 7.0)
    assert share[2, 0] == pytest.approx(0.75)


@pytest.mark.parametrize("text", ["slice", "block:3", "mtf:1.5", "mtf:0", "slice:-4", "slice:x", "sinc:4", ""])
def test_a_degradation_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Profile.parse(text)


def test_lengths_are_in_millimetres_where_the_frame_has_them() -> None:
    affine = np.diag([5.0, 1, 1, 1])
    scale = Factor((Fraction(5), Fraction(1), Fraction(1)))
    grids = [Grid("zyx", (9, 2, 2), affine, Frame(unit, "patient")) for unit in ("mm", "voxel")]
    in_mm, in_samples = (
        Degradation.between(g, g.rescaled(scale), [Profile("slice", v)] * 3)
        for g, v in zip(grids, (4.0, 0.8), strict=True)
    )
    assert np.allclose(in_mm.matrices[0].toarray(), in_samples.matrices[0].toarray(), rtol=0, atol=1e-15)


def test_fine_length_of_a_vector() -> None:
    assert fine_length(5, Fraction("2.5")) == 13
