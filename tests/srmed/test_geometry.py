from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.errors import GeometryError
from pipelines.grid import Frame, Grid
from srmed.geometry import (
    anatomical_axes,
    coarsest_axis,
    drift_pixels,
    frame_id,
    grid_from_ras,
    grid_from_slices,
    ras_from_grid,
    refuse_tilt,
    slice_distance,
)


def rotation(x: float, y: float, z: float) -> NDArray[np.float64]:
    """Degrees about the three axes, one after the other."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians([x, y, z])):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


@st.composite
def ras_affines(draw: st.DrawFn) -> NDArray[np.float64]:
    """All 48 permutations and flips, straight or oblique, thick along any axis."""
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3))
    angles = draw(st.sampled_from([(0, 0, 0), (20, -15, 30), (3, 40, -8)]))
    spacing = draw(st.permutations((0.9, 1.1, 5.2)))
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles) @ np.eye(3)[:, list(order)] @ np.diag(signs) @ np.diag(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


@given(ras_affines(), st.tuples(*[st.integers(0, 20)] * 3), st.sampled_from([1.0, 1000.0, 0.001]))
def test_a_sample_keeps_its_place_in_the_body(
    affine: NDArray[np.float64], ijk: tuple[int, ...], mm_per_unit: float
) -> None:
    grid = grid_from_ras(affine, (21, 22, 23), mm_per_unit)
    ras_mm = (affine @ [*ijk, 1.0])[:3] * mm_per_unit
    lps = grid.world(np.array(ijk[::-1], float))
    assert grid.shape == (23, 22, 21)
    np.testing.assert_allclose(lps, ras_mm * [-1, -1, 1], rtol=1e-12, atol=1e-9 * mm_per_unit)


@given(ras_affines(), st.sampled_from([1.0, 1000.0, 0.001]))
def test_the_affine_comes_back(affine: NDArray[np.float64], mm_per_unit: float) -> None:
    grid = grid_from_ras(affine, (4, 5, 6), mm_per_unit)
    np.testing.assert_allclose(ras_from_grid(grid, mm_per_unit), affine, rtol=1e-12, atol=1e-12)


@given(ras_affines())
def test_the_coarsest_axis_has_the_thick_spacing_and_no_drift(affine: NDArray[np.float64]) -> None:
    grid = grid_from_ras(affine, (4, 5, 6))
    axis = coarsest_axis(grid)
    assert grid.spacing[axis] == pytest.approx(5.2)
    assert slice_distance(grid, axis) == pytest.approx(5.2)
    assert drift_pixels(grid, axis, 5.2) < 1e-9


def test_anatomical_axes_follow_permutations_and_flips() -> None:
    names = (("left", "right"), ("posterior", "anterior"), ("foot", "head"))  # RAS
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((-1, 1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = rotation(8, -9, 7) @ np.eye(3)[:, list(order)] @ np.diag(signs)
        expected = tuple(f"{names[w][s < 0]}-{names[w][s > 0]}" for w, s in zip(order, signs, strict=True))
        assert anatomical_axes(grid_from_ras(affine, (3, 3, 3))) == expected[::-1]


def test_an_ambiguous_direction_still_names_three_axes() -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(45, 0, 0)
    names = {frozenset(a.split("-")) for a in anatomical_axes(grid_from_ras(affine, (3, 3, 3)))}
    assert len(names) == 3


def test_nearly_equal_spacings_have_no_coarsest_axis_but_z() -> None:
    assert coarsest_axis(grid_from_ras(np.diag([1.0, 1.005, 1.0, 1.0]), (3, 3, 3))) == 0
    assert coarsest_axis(grid_from_ras(np.diag([1.0, 1.02, 1.0, 1.0]), (3, 3, 3))) == 1


@given(st.permutations(range(3)), st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
def test_the_slices_of_a_nearly_isotropic_volume_do_not_depend_on_its_storage(
    order: list[int], signs: tuple[float, ...]
) -> None:
    for spacing, expected in (((2.385, 2.39, 2.366), "anterior"), ((1.0, 1.0, 1.0), "head"), ((1.0, 0.9, 1.0), "head")):
        affine = np.eye(4)
        affine[:3, :3] = (np.diag(spacing) @ np.eye(3)[:, order]) * signs
        grid = grid_from_ras(affine, (3, 3, 3))
        assert expected in anatomical_axes(grid)[coarsest_axis(grid)]


def test_dicom_columns_are_slice_row_and_column_steps() -> None:
    orientation = np.array([0.0, 1, 0, 0, 0, -1])
    grid = grid_from_slices(
        np.array([1.0, 2, 3]), np.array([-4.0, 0, 0]), orientation, (0.5, 0.25), (3, 4, 5), frame_id("1.2.3")
    )
    np.testing.assert_allclose(grid.world([2, 0, 0]), [-7, 2, 3])
    np.testing.assert_allclose(grid.world([0, 1, 0]), [1, 2, 2.5])
    np.testing.assert_allclose(grid.world([0, 0, 1]), [1, 2.25, 3])


def test_frames_are_told_apart_without_their_uid() -> None:
    assert frame_id("1.2.3") != frame_id("1.2.4")
    assert "1.2.3" not in frame_id("1.2.3")
    assert frame_id("") == ""


def sheared(drift_mm: float) -> Grid:
    """Slices 5 mm apart, each moved by `drift_mm` along x (pixels of 0.5 mm)."""
    affine = np.diag([5.0, 0.5, 0.5, 1.0])[[2, 1, 0, 3]]
    affine[0, 0] = drift_mm
    return Grid("zyx", (6, 6, 6), affine, Frame("mm", "patient"))


def test_drift_is_in_pixels_over_one_thickness() -> None:
    assert drift_pixels(sheared(1.0), 0, 5.0) == pytest.approx(2.0)
    assert drift_pixels(sheared(1.0), 0, 2.5) == pytest.approx(1.0)
    assert slice_distance(sheared(1.0), 0) == pytest.approx(5.0)


def test_a_tilted_stack_is_refused_and_a_slight_one_is_not() -> None:
    refuse_tilt(sheared(0.049), 0, 5.0)
    with pytest.raises(GeometryError, match=r"tilted by 20\.0 degrees"):
        refuse_tilt(sheared(5.0 * np.tan(np.radians(20))), 0, 5.0)
