"""What the scanner did along the slice axis: thickness, gap and profile, and where that knowledge came from.

Spacing is not thickness: NIfTI stores only the distance of the centres, and SpacingBetweenSlices has meant spacing, gap
and thickness. So: a thickness that was told, else the sidecar's or the header's, else the spacing, with a warning.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.degradation import Profile
from pipelines.errors import InputError, UsageError
from pipelines.grid import Grid, decimal_fraction
from pipelines.image import IN_PLANE, MIN_SLICES, Fact
from srmed.geometry import refuse_tilt, slice_distance

THICKNESS_OVER_SPACING = (0.2, 3.0)
"""Slices thinner or thicker than this share of their distance are a mistake in a header."""

ZERO_FILLED = 1.05
"""Partitions thicker than this multiple of their distance were interpolated by the scanner (ZIP)."""

MAX_SIDECAR_BYTES = 4 << 20
"""A BIDS sidecar has a few kilobytes; more is something else."""

MODALITIES = {"MR": "MR", "MRI": "MR", "CT": "CT"}
"""Names in sidecars and headers, and ours; other modalities have another forward model."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What a file says about its acquisition; None: nothing. origin: where the thickness stands."""

    modality: str = "MR"
    thickness_mm: float | None = None
    origin: str = "header"
    three_dimensional: bool | None = None


@dataclass(frozen=True, slots=True)
class Acquisition:
    """profiles: the blur per axis; facts and problems: for the header."""

    profiles: tuple[Profile, ...]
    facts: dict[str, Fact]
    problems: tuple[str, ...]


def acquisition(grid: Grid, slice_axis: int, stated: Stated) -> Acquisition:
    """The blur of a volume. Raises InputError for an impossible thickness, GeometryError for a tilted stack.

    An impossible thickness that was told is a UsageError.
    """
    spacing = float(decimal_fraction(slice_distance(grid, slice_axis)))
    problems = []
    thickness, origin = stated.thickness_mm, stated.origin
    if thickness is None:
        thickness, origin = spacing, "assumed"
        problems.append(
            f"the slice thickness is not known: {thickness:.6g} mm, the slice spacing, is assumed (no gap); "
            "pass --slice-thickness MM if the slices are thinner or overlap, or auto to estimate it from the samples"
        )
    low, high = THICKNESS_OVER_SPACING
    if not low <= thickness / spacing <= high:
        what = f"a slice thickness of {thickness:.6g} mm ({origin}) does not go with a spacing of {spacing:.6g} mm"
        why = f"real slices measure {low:g} to {high:g} spacings; with a wrong width the result is worse than cubic"
        if origin == "told":
            raise UsageError(what, why, "give another --slice-thickness")
        raise InputError(what, why, "pass --slice-thickness MM, or correct the header or the sidecar")
    refuse_tilt(grid, slice_axis, thickness)
    if stated.three_dimensional:
        problems.append(
            "a 3-D acquisition: its partitions have a sinc-like profile, the Gaussian of a slice is an approximation"
        )
        if thickness > ZERO_FILLED * spacing:
            problems.append(
                f"partitions of {thickness:.6g} mm every {spacing:.6g} mm were interpolated by the scanner: "
                "through-plane detail may be missing that the spacing promises"
            )
    count = grid.shape[slice_axis]
    if count < MIN_SLICES:
        problems.append(f"only {count} slice{'s' if count > 1 else ''}: there is little to go by between them")
    kind = "cosine" if stated.modality == "CT" else "slice"
    profiles = tuple(Profile(kind, thickness) if a == slice_axis else IN_PLANE for a in range(grid.ndim))
    facts = {
        "thickness_mm": Fact(thickness, "mm", origin),
        "gap_mm": Fact(round(spacing - thickness, 6), "mm", origin),
        "slice_spacing_mm": Fact(spacing, "mm", "positions"),
    }
    if stated.three_dimensional is not None:
        facts["acquisition"] = Fact("3D" if stated.three_dimensional else "2D")
    return Acquisition(profiles, facts, tuple(problems))


def positive_number(value: object) -> float | None:
    """A finite number above 0, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What a BIDS sidecar says that matters here; free text is never taken over. modality: '' if not stated."""

    thickness_mm: float | None = None
    modality: str = ""
    field_tesla: float | None = None
    three_dimensional: bool | None = None
    problems: tuple[str, ...] = field(default=())


def read_sidecar(path: Path) -> Sidecar:
    """The JSON file at `path`; an empty Sidecar if there is none, one with a problem line if it cannot be read.

    Raises InputError if it names a modality with another forward model.
    """
    try:
        if not path.is_file():
            return Sidecar()
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            return Sidecar(problems=("the JSON sidecar is too large to be one: ignored",))
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return Sidecar(problems=("the JSON sidecar cannot be read: ignored",))
    if not isinstance(content, dict):
        return Sidecar(problems=("the JSON sidecar holds no object: ignored",))
    problems = []
    thickness = positive_number(content.get("SliceThickness"))
    if thickness is None and content.get("SliceThickness") is not None:
        problems.append("SliceThickness in the JSON sidecar is not a positive number: ignored")
    modality = ""
    if isinstance(content.get("Modality"), str):
        modality = known_modality(content["Modality"])
    elif "ConvolutionKernel" in content:
        modality = "CT"
    kind = content.get("MRAcquisitionType")
    return Sidecar(
        thickness,
        modality,
        positive_number(content.get("MagneticFieldStrength")),
        {"3D": True, "2D": False}.get(kind) if isinstance(kind, str) else None,
        tuple(problems),
    )


def known_modality(text: str) -> str:
    """'MR' or 'CT'. Raises InputError for any other."""
    modality = MODALITIES.get(text.strip().upper())
    if modality is None:
        named = text.strip().upper() if text.strip().isalpha() and len(text.strip()) <= 4 else "another one"
        raise InputError(
            what=f"the modality is {named}, not MR or CT",
            why="its samples average the body in another way",
            fix="only MR and CT volumes can be super-resolved yet",
        )
    return modality
