"""A folder of classic DICOM files becomes one stack of slices, or a reason why not. Headers only.

Order, distance and place come from the positions (ImagePositionPatient) alone: instance numbers, slice locations and
file names have all been wrong.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import GeometryError, InputError
from srmed.slice_header import KEY_NAMES, DamagedFile, NotASlice, Slice, read_slice_header, reading

SAME_DIRECTION = 1e-4
"""Direction cosines closer than this are one orientation: scanners write 4 to 6 decimals."""

SAME_POSITION_MM = 0.01
"""Slices closer than this are at one place."""

EVEN = 1e-3
"""Distances that differ by less, as a share of the spacing (or by SAME_POSITION_MM), are rounding."""

UNEVEN = 1e-2
"""Distances that differ by more, as a share of the spacing, are refused."""

ROUNDING = 1e-4
"""Share of the spacing by which the last slice of a stack may move when its spacing is rounded."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices in the order of their normal, evenly spaced. first, step: LPS mm; problems: for the header."""

    slices: tuple[Slice, ...]
    first: NDArray[np.float64]
    step: NDArray[np.float64]
    ignored: int
    problems: tuple[str, ...]


def read_stack(path: Path) -> Stack:
    """The one stack in a folder (searched with all its folders), or in a folder of one file.

    Raises InputError or GeometryError with the reason if there is none, more than one, or one that is incomplete.
    """
    slices, ignored = _read_headers(path)
    _refuse_mixed_patients(slices)
    _refuse_several(slices)
    slices, problems = _in_order(slices)
    if len(slices) < 2:
        raise InputError(
            what="the series has 1 slice",
            why="the distance to the next one is not known",
            fix="give the folder that holds the whole series",
        )
    first, step, uneven = _even_line(slices)
    if ignored:
        problems.append(f"files left aside because they hold no slice of the series: {sum(ignored.values())}")
    if any(s.derived for s in slices):
        problems.append("a derived series: reformatting or filtering changed how its slices average")
    factor = max(s.interpolation for s in slices)
    if factor > 1.05:
        problems.append(f"the scanner interpolated the slices in-plane ({factor:.3g}x): their noise is correlated")
    return Stack(tuple(slices), first, step, sum(ignored.values()), (*problems, *uneven))


def _read_headers(path: Path) -> tuple[list[Slice], Counter[str]]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    slices, ignored, damaged = [], Counter[str](), 0
    for file in files:
        try:
            slices.append(read_slice_header(file))
        except NotASlice as reason:
            ignored[str(reason)] += 1
        except DamagedFile:
            damaged += 1
    if damaged:
        raise InputError(
            what=f"{damaged} of {len(files)} DICOM files cannot be read",
            why="a slice may be missing",
            fix="copy the series again",
        )
    if not slices:
        found = ", ".join(f"{n} x {reason}" for reason, n in sorted(ignored.items())) or "no file"
        raise InputError(what=f"no MR or CT slice was found ({found})", fix="give the folder of one DICOM series")
    return slices, ignored


def _refuse_mixed_patients(slices: Sequence[Slice]) -> None:
    owners: dict[str, str] = {}
    if any(owners.setdefault(s.series, s.patient) != s.patient for s in slices):
        raise InputError(
            what="one series holds images of different patients or studies",
            why="they must not become one volume",
            fix="sort the files first",
        )


def _refuse_several(slices: Sequence[Slice]) -> None:
    """Raise InputError unless all slices belong to one stack; says what the others are."""
    groups: dict[tuple[object, ...], list[Slice]] = {}
    directions: list[NDArray[np.float64]] = []
    for s in slices:
        orientation = np.array(s.orientation)
        near = [n for n, d in enumerate(directions) if np.abs(d - orientation).max() < SAME_DIRECTION]
        if not near:
            directions.append(orientation)
        groups.setdefault((s.series, near[0] if near else len(directions) - 1, *s.key), []).append(s)
    if len(groups) == 1:
        return
    names = ("series", "orientation", *KEY_NAMES)
    differ = [name for n, name in enumerate(names) if len({g[n] for g in groups}) > 1]
    described = [
        f"series {'?' if g[0].series_number is None else g[0].series_number}: {len(g)} {g[0].modality} "
        f"image{'s' if len(g) > 1 else ''} of {g[0].shape[0]} x {g[0].shape[1]}"
        for g in sorted(groups.values(), key=lambda g: (g[0].series_number or 0, -len(g)))
    ]
    shown = "; ".join(described[:8]) + (f"; and {len(described) - 8} more" if len(described) > 8 else "")
    kind = " (a localizer)" if len({g[1] for g in groups}) > 1 and len({g[0] for g in groups}) == 1 else ""
    raise InputError(
        what=f"the folder holds {len(groups)} stacks{kind}: {shown}",
        why=f"they differ in {', '.join(differ)}, and only one stack becomes one volume",
        fix="give a folder with the files of one of them",
    )


def _in_order(slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    """Sorted along the normal; exact copies dropped. Raises InputError for different images at one place."""
    row, column = np.array(slices[0].orientation[:3]), np.array(slices[0].orientation[3:])
    normal = np.cross(row, column)
    ordered = sorted(slices, key=lambda s: (round(float(normal @ np.array(s.position)), 6), s.sop, s.file_bytes))
    places: list[list[Slice]] = []
    for s in ordered:
        if places and normal @ (np.array(s.position) - np.array(places[-1][0].position)) < SAME_POSITION_MM:
            places[-1].append(s)
        else:
            places.append([s])
    copies = sum(len(place) - 1 for place in places)
    if not copies:
        return ordered, []
    for number, place in enumerate(places):
        if len({_pixels_hash(s) for s in place}) > 1:
            raise InputError(
                what=f"{sum(len(p) > 1 for p in places)} of {len(places)} positions hold different images, "
                f"first slice {number}",
                why="they are several time points, or slices of another image: not yet",
                fix="give a folder with one image per position",
            )
    return [place[0] for place in places], [f"exact copies of slices dropped: {copies}"]


def _pixels_hash(s: Slice) -> str:
    """Of stored pixels, place and scaling: equal for exact copies."""
    import pydicom

    try:
        with reading():
            ds = pydicom.dcmread(s.path, force=True)
            pixels = bytes(ds.get("PixelData", b""))
    except DamagedFile as error:
        raise InputError(what="a slice of the series cannot be read", fix="copy the series again") from error
    place = tuple(round(v / SAME_POSITION_MM) for v in s.position)
    return hashlib.sha256(pixels + repr((place, s.syntax, s.slope, s.intercept)).encode()).hexdigest()


def _even_line(slices: Sequence[Slice]) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """First position and step (LPS mm) of the line through the positions. Raises InputError if slices are not even."""
    positions = np.array([s.position for s in slices])
    row, column = np.array(slices[0].orientation[:3]), np.array(slices[0].orientation[3:])
    distances = np.diff(positions @ np.cross(row, column))
    spacing = float(np.median(distances))
    ratios = distances / spacing
    wrong = np.flatnonzero(np.abs(ratios - 1) > UNEVEN)
    whole = np.rint(ratios)
    if wrong.size and np.all(np.abs(ratios - whole)[wrong] <= 2 * UNEVEN * whole[wrong]) and whole[wrong].min() >= 2:
        raise InputError(
            what=f"slices are missing: {int((whole[wrong] - 1).sum())}, the first after slice {int(wrong[0])}"
            f" of {len(slices)}",
            why="what lies there was not measured, or its file was lost",
            fix="copy the series again",
        )
    index = np.arange(len(slices)) - (len(slices) - 1) / 2
    middle = positions.mean(axis=0)
    step = np.asarray(index @ (positions - middle) / np.sum(index**2))
    off = float(np.linalg.norm(positions - (middle + index[:, None] * step), axis=1).max())
    step = _as_meant(step, len(slices))
    first = np.asarray(middle + index[0] * step)
    if wrong.size or off > UNEVEN * spacing:
        raise GeometryError(
            what=f"the slices are unevenly spaced: {distances.min():.4g} to {distances.max():.4g} mm apart,"
            f" up to {off:.2g} mm beside a straight line",
            why="one spacing must hold for the whole stack: not yet otherwise",
            fix="resample it evenly, or give an evenly spaced part",
        )
    if off > max(SAME_POSITION_MM, EVEN * spacing):
        return first, step, [f"slices lie up to {off:.2g} mm beside even positions: taken as even"]
    return first, step, []


def _as_meant(step: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The step with the roundest length that moves no slice by more than rounding: 3.99999 of positions is 4."""
    length = float(np.linalg.norm(step))
    for digits in range(1, 7):
        rounded = float(f"{length:.{digits}g}")
        if abs(rounded - length) * count <= ROUNDING * length:
            return np.asarray(step * (rounded / length))
    return step
