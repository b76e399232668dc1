from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import GeometryError
from pipelines.grid import Box, Factor, Frame, Grid, Orientation, Placement, fine_length, placements
from tests.strategies import factors, grids


@given(grids(), factors())
def test_the_field_of_view_keeps_its_centre(grid: Grid, factor: Factor) -> None:
    fine = grid.rescaled(factor)
    assert np.abs(fine.faces().mean(axis=0) - grid.faces().mean(axis=0)).max() <= 1e-9


@given(grids(), factors())
def test_outer_faces_move_by_the_part_that_is_not_whole(grid: Grid, factor: Factor) -> None:
    fine = grid.rescaled(factor)
    moved = np.linalg.solve(fine.affine[:3, :3], (fine.faces() - grid.faces()).T)[:, 0]  # in fine samples
    for a, (m, s) in enumerate(zip(grid.shape, factor, strict=True)):
        assert moved[a] == pytest.approx(-float(fine.shape[a] - m * s) / 2, abs=1e-8)
        assert abs(moved[a]) <= 0.25 + 1e-8


def test_the_first_centre_moves_outwards() -> None:
    grid = Grid("zyx", (12, 4, 4), np.diag([5.0, 1, 1, 1]), Frame("mm", "patient"))
    fine = grid.rescaled(Factor((Fraction(5), Fraction(1), Fraction(1))))
    assert fine.shape == (60, 4, 4)
    assert fine.affine[0, 3] == -2.0


@given(st.integers(1, 400), st.decimals("0.3", "9.9", places=2), st.decimals("0.1", "0.3", places=2))
def test_lengths_come_from_exact_fractions(coarse: int, spacing: object, finer: object) -> None:
    scale = Fraction(str(spacing)) / Fraction(str(finer))
    exact = Fraction(coarse) * scale + Fraction(1, 2)
    assert fine_length(coarse, scale) == exact.numerator // exact.denominator


def test_float_division_would_lose_a_slice() -> None:
    grid = Grid("zyx", (12, 4, 4), np.diag([3.3, 1, 1, 1]), Frame("mm", "patient"))
    assert grid.rescaled(grid.factor_to([Fraction("1.1"), None, None])).shape[0] == 36


def test_a_spacing_stored_as_float32_is_the_decimal_that_was_meant() -> None:
    grid = Grid("zyx", (10, 4, 4), np.diag([float(np.float32(5.2)), 1, 1, 1]), Frame("mm", "patient"))
    assert grid.factor_to([Fraction("1.3"), None, None]).axes[0] == 4


@given(grids(), factors())
def test_affines_give_the_placements_back_exactly(grid: Grid, factor: Factor) -> None:
    fine = grid.rescaled(factor)
    for place, m, s in zip(placements(grid, fine), grid.shape, factor, strict=True):
        n = fine_length(m, s)
        assert (place.scale, place.first) == (s, (s - 1) / 2 + (n - m * s) / 2)


@given(grids(low=3), st.data())
def test_a_crop_keeps_its_samples_where_they_were(grid: Grid, data: st.DataObject) -> None:
    start = tuple(data.draw(st.integers(0, n - 1)) for n in grid.shape)
    cropped = grid.crop(Box(start, grid.shape))
    assert np.allclose(cropped.world((0, 0, 0)), grid.world(start), rtol=0, atol=1e-9)


@given(grids())
def test_json_gives_the_same_grid_back(grid: Grid) -> None:
    assert Grid.from_json(grid.to_json()) == grid


def test_two_frames_are_never_the_same_place() -> None:
    grid = Grid("yx", (4, 4), np.eye(3), Frame("m", "map", "A"))
    assert grid.same_place(grid)
    assert not grid.same_place(Grid("yx", (4, 4), np.eye(3), Frame("m", "map", "B")))


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 1, 0, 1])])
def test_an_affine_without_inverse_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(GeometryError):
        Grid("zyx", (4, 4, 4), affine)


def test_a_rotated_reference_is_refused() -> None:
    grid = Grid("yx", (8, 8), np.eye(3))
    turned = np.array([[0.5, 0.02, 0], [-0.02, 0.5, 0], [0, 0, 1.0]])
    with pytest.raises(GeometryError, match="parallel"):
        placements(grid, Grid("yx", (16, 16), turned))


def _places(grid: Grid, box: Box) -> np.ndarray:
    """World coordinates (d, *box)."""
    index = np.meshgrid(*(np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)), indexing="ij")
    return np.moveaxis(grid.world(np.stack(index, -1)), -1, 0)


@given(grids(low=2, high=6), grids(), st.data())
def test_turned_samples_stay_where_they_were(grid: Grid, other: Grid, data: st.DataObject) -> None:
    turn = Orientation.onto(grid, other)
    turned = turn.grid(grid)
    stop = tuple(data.draw(st.integers(1, n)) for n in grid.shape)
    box = Box(tuple(data.draw(st.integers(0, n - 1)) for n in stop), stop)
    there = turn.box(box, grid.shape)
    assert np.allclose(_places(turned, there), turn.array(_places(grid, box)), rtol=0, atol=1e-9)
    assert np.allclose(turn.inverse.grid(turned).affine, grid.affine, rtol=0, atol=1e-9)
    assert turn.inverse.box(there, turned.shape) == box
    assert not Orientation.onto(turned, turned).turns


@given(grids(low=2, high=6), st.permutations(range(3)), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_a_turned_grid_is_turned_back_onto_its_origin(
    grid: Grid, order: list[int], flipped: tuple[bool, bool, bool]
) -> None:
    turn = Orientation(tuple(order), flipped)
    assert Orientation.onto(turn.grid(grid), grid) == turn.inverse


def test_a_scale_below_one_is_refused() -> None:
    with pytest.raises(GeometryError, match="coarser"):
        Factor((Fraction(1, 2),))


@given(
    st.integers(2, 60),
    st.fractions(1, 8, max_denominator=60),
    st.fractions(-5, 5, max_denominator=10**9),
)
def test_positions_are_the_doubles_nearest_to_the_exact_ones(coarse: int, scale: Fraction, first: Fraction) -> None:
    place = Placement(coarse, math.floor(coarse * scale), scale, first)
    assert place.positions().tolist() == [float(u) for u in place.coordinates()]
    assert place.centres().tolist() == [float(first + j * scale) for j in range(coarse)]
