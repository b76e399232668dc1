from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import GeometryError, InputError, UsageError
from pipelines.grid import Frame, Grid
from pipelines.image import IN_PLANE
from srmed.acquisition import Stated, acquisition, known_modality, positive_number, read_sidecar


def grid(spacing: float = 5.0, slices: int = 8) -> Grid:
    return Grid("zyx", (slices, 9, 9), np.diag([spacing, 1.0, 1.0, 1.0]), Frame("mm", "patient"))


@pytest.mark.parametrize(
    ("thickness", "spacing", "gap"),
    [(4.0, 5.0, 1.0), (5.0, 5.0, 0.0), (4.0, 3.0, -1.0), (4.0, 4.8, 0.8), (3.0, 3.3, 0.3)],
)
def test_thickness_and_gap_add_up_to_the_spacing(thickness: float, spacing: float, gap: float) -> None:
    scan = acquisition(grid(spacing), 0, Stated("MR", thickness))
    assert scan.facts["thickness_mm"].value == thickness
    assert scan.facts["gap_mm"].value == gap
    assert scan.facts["slice_spacing_mm"].value == spacing
    assert scan.problems == ()


@pytest.mark.parametrize(("modality", "profile"), [("MR", "slice:4"), ("CT", "cosine:4")])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_profile_stands_on_the_slice_axis_alone(modality: str, profile: str, axis: int) -> None:
    even = Grid("zyx", (8, 8, 8), np.diag([5.0, 5.0, 5.0, 1.0]), Frame("mm", "patient"))
    profiles = acquisition(even, axis, Stated(modality, 4.0)).profiles
    assert [str(p) for p in profiles] == [profile if a == axis else str(IN_PLANE) for a in range(3)]


def test_float32_spacings_become_the_decimal_that_was_meant() -> None:
    scan = acquisition(grid(float(np.float32(3.2999992))), 0, Stated())
    assert scan.facts["thickness_mm"].value == 3.3
    assert scan.facts["thickness_mm"].origin == "assumed"


@pytest.mark.parametrize("thickness", [0.99, 15.01])
def test_thickness_has_limits(thickness: float) -> None:
    with pytest.raises(InputError, match="does not go with"):
        acquisition(grid(), 0, Stated("MR", thickness))


@pytest.mark.parametrize("thickness", [1.0, 15.0])
def test_the_limits_themselves_are_allowed(thickness: float) -> None:
    assert acquisition(grid(), 0, Stated("MR", thickness)).facts["thickness_mm"].value == thickness


def test_a_thicker_slice_drifts_further() -> None:
    affine = np.diag([5.0, 1.0, 1.0, 1.0])
    affine[1, 0] = 0.08
    tilted = Grid("zyx", (8, 9, 9), affine, Frame("mm", "patient"))
    acquisition(tilted, 0, Stated("MR", 5.0))
    with pytest.raises(GeometryError, match="tilted"):
        acquisition(tilted, 0, Stated("MR", 8.0))


def test_a_zero_filled_stack_is_told() -> None:
    lines = acquisition(grid(2.5), 0, Stated("MR", 5.0, three_dimensional=True)).problems
    assert any("interpolated by the scanner" in line for line in lines)
    assert acquisition(grid(5.0), 0, Stated("MR", 5.0, three_dimensional=False)).problems == ()


def test_a_thickness_that_cannot_be_is_put_down_to_who_said_it() -> None:
    with pytest.raises(InputError, match="correct the header or the sidecar"):
        acquisition(grid(5.0), 0, Stated("MR", 50.0))
    with pytest.raises(UsageError, match="another --slice-thickness"):
        acquisition(grid(5.0), 0, Stated("MR", 50.0, "told"))


def test_few_slices_are_told() -> None:
    assert any("only 3 slices" in line for line in acquisition(grid(slices=3), 0, Stated("MR", 5.0)).problems)


@pytest.mark.parametrize(
    ("value", "number"),
    [(4, 4.0), ("4.5", 4.5), (0, None), (-1, None), ("x", None), (float("nan"), None), (True, None), ([4], None)],
)
def test_a_positive_number_is_one(value: object, number: float | None) -> None:
    assert positive_number(value) == number


@pytest.mark.parametrize(("text", "modality"), [("MR", "MR"), (" mri", "MR"), ("CT", "CT")])
def test_modalities_are_known_by_their_names(text: str, modality: str) -> None:
    assert known_modality(text) == modality


@pytest.mark.parametrize("text", ["PT", "NM", "", "OT", "Canary^Quentin"])
def test_other_modalities_are_refused(text: str) -> None:
    with pytest.raises(InputError) as raised:
        known_modality(text)
    assert "Canary" not in str(raised.value)


def test_a_missing_sidecar_says_nothing(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "a.json").problems == ()


def test_a_sidecar_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"SliceThickness": 3}')
    assert read_sidecar(tmp_path / "a.json").thickness_mm == 3.0


@pytest.mark.parametrize("content", ["[" * 100000, "x" * (5 << 20)], ids=["deep", "large"])
def test_a_hostile_sidecar_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert any("ignored" in line for line in read_sidecar(tmp_path / "a.json").problems)
