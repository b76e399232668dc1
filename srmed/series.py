"""A folder of classic DICOM files becomes one stack of slices, or a reason why not. Headers only.

Order, distance and place come from the positions (ImagePositionPatient) alone: instance numbers, slice locations and file
names have all been wrong. Nothing that could identify a patient leaves this module; identifiers are compared as hashes.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import GeometryError, InputError
from srmed.acquisition import FEW_SLICES, known_modality, positive_number

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CLASSIC = {"1.2.840.10008.5.1.4.1.1.4": "MR", "1.2.840.10008.5.1.4.1.1.2": "CT"}
"""SOP classes with one slice per file."""

NOT_IMAGES = frozenset(("SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "RWV", "AU", "DOC", "FID"))
"""Modalities of objects that lie beside a series and hold no slice of it."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

NOT_MAGNITUDE = frozenset(
    (
        "P",
        "R",
        "I",
        "PHASE",
        "PHASE MAP",
        "REAL",
        "IMAGINARY",
        "VELOCITY",
        "VELOCITY MAP",
        "ADC",
        "FA",
        "T1 MAP",
        "T2 MAP",
    )
)
"""Words of ImageType, from the third on, for samples that are not intensities."""

SCOUTS = frozenset(("LOCALIZER", "PROJECTION IMAGE", "SCOUT"))

SAME_DIRECTION = 1e-4
"""Direction cosines closer than this are one orientation: scanners write 4 to 6 decimals."""

SAME_POSITION_MM = 0.01
"""Slices closer than this are at one place."""

EVEN = 1e-3
"""Distances that differ by less, as a share of the spacing (or by SAME_POSITION_MM), are rounding."""

UNEVEN = 1e-2
"""Distances that differ by more, as a share of the spacing, are refused."""

ORTHOGONAL = 1e-3
"""Row and column direction: largest cosine between them, largest error of their length."""

UNREADABLE = (
    *(ValueError, KeyError, AttributeError, TypeError, IndexError, EOFError, OSError),
    *(NotImplementedError, RuntimeError, OverflowError, struct.error),
)
"""What pydicom and its decoders raise on damaged files."""

_quiet_lock = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of pydicom: they quote values of the header. One thread at a time, as warning filters are global."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True, slots=True)
class Slice:
    """One file's header. Identifiers are hashed. key: what must agree within a stack, in the order of KEY_NAMES."""

    path: Path
    file_bytes: int
    mtime_ns: int
    sop: str
    series: str
    patient: str
    series_number: int | None
    modality: str
    syntax: str
    frame_uid: str
    shape: tuple[int, int]
    pixel_spacing: tuple[float, float]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    thickness_mm: float | None
    stored_type: str
    bits_stored: int
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    derived: bool
    three_dimensional: bool | None
    field_tesla: float | None
    interpolation: float
    key: tuple[object, ...]


KEY_NAMES = (
    *("kind of image", "matrix", "pixel spacing", "frame of reference", "image type", "echo time"),
    *("inversion time", "time point", "b-value", "stored type"),
)


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices in the order of their normal, evenly spaced. first, step: LPS mm; problems: for the header."""

    slices: tuple[Slice, ...]
    first: NDArray[np.float64]
    step: NDArray[np.float64]
    ignored: int
    problems: tuple[str, ...]


class _NotASlice(Exception):  # noqa: N818 - not an error: the file is left aside
    """A file that lies beside the slices. Its text says what it is."""


def read_stack(path: Path) -> Stack:
    """The one stack in a folder (searched with all its folders), or in a folder of one file.

    Raises InputError or GeometryError with the reason if there is none, more than one, or one that is incomplete.
    """
    slices, ignored = _read_headers(path)
    _refuse_mixed_patients(slices)
    _refuse_several(slices)
    slices, problems = _in_order(slices)
    if len(slices) < FEW_SLICES:
        raise InputError(
            what=f"the series has {len(slices)} slice{'s' if len(slices) > 1 else ''}",
            why=f"fewer than {FEW_SLICES} hold next to nothing about what lies between them",
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
            slices.append(_read_header(file))
        except _NotASlice as reason:
            ignored[str(reason)] += 1
        except InputError:
            raise
        except UNREADABLE:
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


def _read_header(file: Path) -> Slice:
    """Raises _NotASlice for what can be left aside, InputError for what must be refused, others if damaged."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    with file.open("rb") as raw:
        start = raw.read(132)
    if not start.endswith(b"DICM") and not start.startswith(b"\x08\x00"):
        raise _NotASlice("not DICOM")
    with quiet():
        try:
            ds = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        except InvalidDicomError as error:
            raise _NotASlice("not DICOM") from error
        status = file.stat()
        _left_aside(ds)
        _refuse_kind(ds)
        return _slice(ds, file, status.st_size, status.st_mtime_ns)


def _words(ds: Dataset) -> list[str]:
    value = ds.get("ImageType") or []
    return [str(v).strip().upper() for v in ([value] if isinstance(value, str) else value)]


def _left_aside(ds: Dataset) -> None:
    sop_class, modality = str(ds.get("SOPClassUID", "")), str(ds.get("Modality", "")).strip().upper()
    if sop_class == "1.2.840.10008.1.3.10" or "DirectoryRecordSequence" in ds:
        raise _NotASlice("DICOMDIR")
    if modality in NOT_IMAGES or "Rows" not in ds:
        raise _NotASlice("an object without an image")
    if sop_class.startswith(SECONDARY_CAPTURE):
        raise _NotASlice("a screenshot")
    if SCOUTS & set(_words(ds)):
        raise _NotASlice("a localizer")


def _refuse_kind(ds: Dataset) -> None:
    """Raise InputError for images of a kind that is not read, or not super-resolved."""
    words = _words(ds)
    modality = known_modality(str(ds.get("Modality", "")))
    if int(ds.get("SamplesPerPixel", 1) or 1) != 1 or not str(ds.get("PhotometricInterpretation")).startswith("MONO"):
        raise InputError(what="the images are in colour", why="colour is drawn, not measured")
    if int(ds.get("NumberOfFrames", 1) or 1) > 1 or "PerFrameFunctionalGroupsSequence" in ds:
        raise InputError(
            what=f"a multi-frame (enhanced) {modality} file: not yet",
            fix="convert it with dcm2niix and give the .nii.gz",
        )
    if "MOSAIC" in words or "VFRAME" in words:
        raise InputError(
            what="a mosaic: all slices of a volume in one image: not yet",
            fix="convert it with dcm2niix and give the .nii.gz",
        )
    if str(ds.get("SOPClassUID", "")) not in CLASSIC:
        raise InputError(what=f"a {modality} object of a class that is not a classic slice", fix="convert it to NIfTI")
    if NOT_MAGNITUDE & set(words[2:]):
        raise InputError(
            what="the images are phase, real or imaginary parts, or maps of a quantity, as ImageType says",
            why="a thick slice does not hold their mean",
            fix="give the magnitude images alone",
        )
    if str(ds.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise InputError(what="text is burned into the images", why="it would be super-resolved as anatomy")
    if "ModalityLUTSequence" in ds:
        raise InputError(what="the values go through a modality lookup table: not yet", fix="convert it to NIfTI")


def _slice(ds: Dataset, file: Path, file_bytes: int, mtime_ns: int) -> Slice:
    position = _numbers(ds, "ImagePositionPatient", 3)
    orientation = _numbers(ds, "ImageOrientationPatient", 6)
    spacing = _numbers(ds, "PixelSpacing", 2)
    _check_orientation(np.array(orientation))
    words = _words(ds)
    bits, signed = int(ds.BitsAllocated), int(ds.get("PixelRepresentation", 0))
    shape = (int(ds.Rows), int(ds.Columns))
    slope, intercept = _number(ds, "RescaleSlope", 1.0), _number(ds, "RescaleIntercept", 0.0)
    if slope == 0 or bits not in (8, 16, 32) or min(shape) < 1 or min(spacing) <= 0:
        raise InputError(what="a header of the series gives an impossible size, pixel spacing, depth or rescale slope")
    syntax = str(getattr(ds, "file_meta", {}).get("TransferSyntaxUID", "") or "1.2.840.10008.1.2")
    stored = f"{'int' if signed else 'uint'}{bits}"
    return Slice(
        path=file,
        file_bytes=file_bytes,
        mtime_ns=mtime_ns,
        sop=_hashed(ds, "SOPInstanceUID"),
        series=_hashed(ds, "SeriesInstanceUID"),
        patient=_hashed(ds, "PatientID") + _hashed(ds, "StudyInstanceUID"),
        series_number=int(ds.SeriesNumber) if ds.get("SeriesNumber") is not None else None,
        modality=CLASSIC[str(ds.SOPClassUID)],
        syntax=syntax,
        frame_uid=str(ds.get("FrameOfReferenceUID", "") or ""),
        shape=shape,
        pixel_spacing=(spacing[0], spacing[1]),
        orientation=orientation,
        position=position,
        thickness_mm=positive_number(str(ds.get("SliceThickness", ""))),
        stored_type=stored,
        bits_stored=int(ds.get("BitsStored", bits)),
        slope=slope,
        intercept=intercept,
        padding=_padding(ds, bits, signed) if CLASSIC[str(ds.SOPClassUID)] == "CT" else None,
        derived="DERIVED" in words[:1],
        three_dimensional={"3D": True, "2D": False}.get(str(ds.get("MRAcquisitionType", "")).strip()),
        field_tesla=positive_number(str(ds.get("MagneticFieldStrength", ""))),
        interpolation=_interpolation(ds, shape),
        key=(
            str(ds.SOPClassUID),
            shape,
            tuple(round(v, 5) for v in spacing),
            str(ds.get("FrameOfReferenceUID", "")),
            tuple(words[2:]),
            *(
                str(ds.get(n, ""))
                for n in ("EchoTime", "InversionTime", "TemporalPositionIdentifier", "DiffusionBValue")
            ),
            stored,
        ),
    )


def _number(ds: Dataset, name: str, default: float) -> float:
    value = ds.get(name)
    number = default if value in (None, "") else float(value)
    if not math.isfinite(number):
        raise InputError(what=f"{name} of a slice is not finite", fix="repair the header first")
    return number


def _numbers(ds: Dataset, name: str, count: int) -> tuple[float, ...]:
    value = ds.get(name)
    numbers = [] if value is None or isinstance(value, str) else [float(v) for v in value]
    if len(numbers) != count or not all(math.isfinite(v) for v in numbers):
        raise InputError(
            what=f"a slice has no usable {name}",
            why="its samples have no place in the world",
            fix="repair the header, or convert the series to NIfTI",
        )
    return tuple(numbers)


def _hashed(ds: Dataset, name: str) -> str:
    return hashlib.sha256(str(ds.get(name, "")).encode()).hexdigest()[:16]


def _padding(ds: Dataset, bits: int, signed: int) -> tuple[int, int] | None:
    """Lowest and highest stored value that means 'outside the scan'; the tag's sign may disagree with the pixels'."""
    ends = [ds.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    numbers = [int(v) % 2**bits for v in ends if v is not None]
    numbers = [v - 2**bits if signed and v >= 2 ** (bits - 1) else v for v in numbers]
    return min(numbers), max(numbers)


def _interpolation(ds: Dataset, shape: tuple[int, int]) -> float:
    """Samples per acquired sample in-plane, from AcquisitionMatrix (frequency rows, columns, phase rows, columns)."""
    value = ds.get("AcquisitionMatrix")
    matrix = [] if value is None or isinstance(value, int | str) else [int(v) for v in value]
    if len(matrix) != 4:
        return 1.0
    rows, columns = max(matrix[0], matrix[2]), max(matrix[1], matrix[3])
    return max(shape[0] / rows, shape[1] / columns) if rows > 0 and columns > 0 else 1.0


def _check_orientation(orientation: NDArray[np.float64]) -> None:
    row, column = orientation[:3], orientation[3:]
    lengths = np.abs([np.linalg.norm(row) - 1, np.linalg.norm(column) - 1])
    if lengths.max() > ORTHOGONAL or abs(row @ column) > ORTHOGONAL:
        raise GeometryError(
            what="ImageOrientationPatient of a slice is not two perpendicular unit vectors",
            why="its samples have no place in the world",
            fix="repair the header first",
        )


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
        for g in groups.values()
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
        with quiet():
            ds = pydicom.dcmread(s.path, force=True)
            pixels = bytes(ds.get("PixelData", b""))
    except UNREADABLE as error:
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
            what=f"{int((whole[wrong] - 1).sum())} slices are missing, the first after slice {int(wrong[0])}"
            f" of {len(slices)}",
            why="what lies there was not measured, or its file was lost",
            fix="copy the series again",
        )
    index = np.arange(len(slices), dtype=np.float64)
    step = np.asarray((index - index.mean()) @ (positions - positions.mean(axis=0))) / np.sum(
        (index - index.mean()) ** 2
    )
    first = np.asarray(positions.mean(axis=0) - index.mean() * step)
    off = float(np.linalg.norm(positions - (first + index[:, None] * step), axis=1).max())
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
