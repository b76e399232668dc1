"""Where the samples of a volume are: the only place that knows RAS, x, y, z order and what is tilted.

Inside, the world is LPS in millimetres and an index is (z, y, x). A NIfTI affine takes (i, j, k) to RAS in its unit:

    LPS = diag(-1, -1, 1, 1) @ RAS        index (z, y, x) = (k, j, i)        so the columns 0 and 2 change places
"""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import GeometryError
from pipelines.grid import Frame, Grid

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns world coordinates; its own inverse."""

REVERSED = [2, 1, 0, 3]
"""Columns of an affine when the order of the three indices is reversed."""

DRIFT_LIMIT_PIXELS = 0.1
"""A tilted stack that moves further in-plane over one slice thickness cannot be treated axis by axis."""

SAME_FORM_VOXELS = 0.1
"""sform and qform that differ by less at every corner are the same."""

UNIQUE_SPACING = 1.01
"""The slice axis must be coarser than the next one by this ratio to be found by its spacing."""

DIRECTIONS = (("right", "left"), ("anterior", "posterior"), ("foot", "head"))
"""Where the three LPS axes come from and go to."""


def grid_from_ras(affine: NDArray[np.float64], shape_xyz: tuple[int, ...], mm_per_unit: float = 1.0) -> Grid:
    """The grid of a NIfTI: affine (4, 4) takes (i, j, k) to RAS in a unit of `mm_per_unit` mm.

    Raises GeometryError if the affine is zero, not finite or singular.
    """
    scale = np.diag([mm_per_unit] * 3 + [1.0])
    lps = scale @ LPS_FROM_RAS @ np.asarray(affine, np.float64)
    return Grid("zyx", tuple(shape_xyz[2::-1]), lps[:, REVERSED], Frame("mm", "patient"))


def ras_from_grid(grid: Grid, mm_per_unit: float = 1.0) -> NDArray[np.float64]:
    """The NIfTI affine (4, 4) of a grid: the inverse of `grid_from_ras`."""
    scale = np.diag([1.0 / mm_per_unit] * 3 + [1.0])
    return np.asarray(scale @ LPS_FROM_RAS @ grid.affine[:, REVERSED])


def lps_affine(grid: Grid) -> NDArray[np.float64]:
    """The affine (4, 4) from (column, row, slice) to DICOM's patient coordinates."""
    return np.asarray(grid.affine[:, REVERSED])


def grid_from_slices(
    first_lps: NDArray[np.float64],
    step_lps: NDArray[np.float64],
    orientation: NDArray[np.float64],
    pixel_spacing: tuple[float, float],
    shape: tuple[int, int, int],
    frame: str,
) -> Grid:
    """The grid of a DICOM stack, shape (z, y, x).

    first_lps: centre of the first pixel of slice 0; step_lps: from slice to slice; orientation: (6,), the direction in
    which columns grow, then rows (ImageOrientationPatient); pixel_spacing: between rows, then between columns;
    frame: a `frame_id`.
    """
    affine = np.eye(4)
    affine[:3, 0] = step_lps
    affine[:3, 1] = orientation[3:] * pixel_spacing[0]
    affine[:3, 2] = orientation[:3] * pixel_spacing[1]
    affine[:3, 3] = first_lps
    return Grid("zyx", shape, affine, Frame("mm", "patient", frame))


def frame_id(uid: str) -> str:
    """A name for a frame of reference that cannot be traced to the study: a UID identifies."""
    return hashlib.sha256(b"frame of reference " + uid.encode()).hexdigest()[:12] if uid else ""


def anatomical_axes(grid: Grid) -> tuple[str, ...]:
    """Per axis, the body direction nearest to it in which the index grows: 'foot-head'.

    The three axes get three different directions, those that fit best together.
    """
    direction = grid.affine[:3, :3] / np.array(grid.spacing)
    best = max(itertools.permutations(range(3)), key=lambda p: sum(abs(direction[p[a], a]) for a in range(3)))
    names = []
    for a, world in enumerate(best):
        low, high = DIRECTIONS[world]
        names.append(f"{low}-{high}" if direction[world, a] > 0 else f"{high}-{low}")
    return tuple(names)


def coarsest_axis(grid: Grid) -> int:
    """The axis of the largest spacing; of several within 1 % the one nearest to head-foot, then to front-back.

    So the order in which a volume is stored changes nothing.
    """
    coarse = [a for a in range(3) if UNIQUE_SPACING * grid.spacing[a] >= max(grid.spacing)]
    rank = [("head" in name) * 2 + ("anterior" in name) for name in anatomical_axes(grid)]
    return max(coarse, key=lambda a: rank[a])


def slice_distance(grid: Grid, axis: int) -> float:
    """Distance [mm] between neighbouring slices along their normal; less than the spacing of a tilted stack."""
    return float(abs(_normal(grid, axis) @ grid.affine[:3, axis]))


def drift_pixels(grid: Grid, axis: int, thickness_mm: float) -> float:
    """How far [pixels] the stack moves in-plane over one slice thickness, measured along the slices' normal."""
    normal = _normal(grid, axis)
    step = grid.affine[:3, axis]
    along = step @ normal
    sideways = (step / along - normal) * thickness_mm
    in_plane = np.delete(grid.affine[:3, :3], axis, axis=1)
    return float(np.linalg.norm(np.linalg.lstsq(in_plane, sideways, rcond=None)[0]))


def refuse_tilt(grid: Grid, axis: int, thickness_mm: float) -> None:
    """Raise GeometryError if slices do not lie above each other: there the blur is not along an axis of the grid."""
    drift = drift_pixels(grid, axis, thickness_mm)
    if drift <= DRIFT_LIMIT_PIXELS:
        return
    cosine = slice_distance(grid, axis) / grid.spacing[axis]
    tilt = float(np.degrees(np.arccos(min(1.0, cosine))))
    raise GeometryError(
        what=f"the slices are tilted by {tilt:.1f} degrees against the axis they are stacked along (gantry tilt)",
        why=f"over one slice thickness the image moves by {drift:.2g} pixels in-plane, so no slice averages along it",
        fix="remove the tilt first (dcm2niix writes an untilted file named _Tilt)",
    )


def largest_distance(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance between corners of an array placed by two affines (4, 4), in steps of the first."""
    corners = np.array(list(itertools.product(*[(0.0, n - 1.0) for n in shape])))
    apart = (corners @ (first - second)[:3, :3].T) + (first - second)[:3, 3]
    return float(np.linalg.norm(apart, axis=1).max() / np.linalg.norm(first[:3, :3], axis=0).min())


def _normal(grid: Grid, axis: int) -> NDArray[np.float64]:
    a, b = (grid.affine[:3, other] for other in range(3) if other != axis)
    normal = np.cross(a, b)
    normal /= np.linalg.norm(normal)
    return np.asarray(normal if normal @ grid.affine[:3, axis] > 0 else -normal)
