"""What one classic DICOM file says before its pixels are read, and whether it is a slice at all.

Identifiers are kept as hashes, to be compared; texts of the header are never passed on.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import GeometryError, InputError, TruescaleError
from srmed.acquisition import known_modality, positive_number
from srmed.geometry import frame_id

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CLASSIC = {"1.2.840.10008.5.1.4.1.1.4": "MR", "1.2.840.10008.5.1.4.1.1.2": "CT"}
"""SOP classes with one slice per file."""

NOT_IMAGES = frozenset(("SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "RWV", "AU", "DOC", "FID"))
"""Modalities of objects that lie beside a series and hold no slice of it."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

NOT_MAGNITUDE = frozenset(
    (
        *("P", "R", "I", "PHASE", "PHASE MAP", "REAL", "IMAGINARY", "VELOCITY", "VELOCITY MAP"),
        *("ADC", "FA", "T1 MAP", "T2 MAP", "RCBF", "RCBV", "MTT", "TTP"),
    )
)
"""Words of ImageType, from the third on, for samples that are not intensities."""

SCOUTS = frozenset(("LOCALIZER", "PROJECTION IMAGE", "SCOUT"))

ORTHOGONAL = 1e-3
"""Row and column direction: largest cosine between them, largest error of their length."""

_reading_lock = threading.RLock()


class DamagedFile(Exception):  # noqa: N818 - the caller says which file, as an InputError
    """pydicom or a decoder could not read a file; its own message may quote values of the header."""


class NotASlice(Exception):  # noqa: N818 - not an error: the file is left aside
    """A file that lies beside the slices. Its text says what it is."""


@contextmanager
def reading() -> Iterator[None]:
    """Around every use of pydicom: no warnings, which quote values of the header, and DamagedFile for all it raises.

    One thread at a time, as warning filters are global.
    """
    from pydicom.errors import BytesLengthException, InvalidDicomError

    with _reading_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except TruescaleError:
            raise
        except (
            *(ValueError, KeyError, AttributeError, TypeError, IndexError, EOFError, OSError, ArithmeticError),
            *(NotImplementedError, RuntimeError, struct.error, zlib.error, BytesLengthException, InvalidDicomError),
        ) as error:
            raise DamagedFile from error


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
    frame: str
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


KEY_TAGS = ("EchoTime", "InversionTime", "TemporalPositionIdentifier", "DiffusionBValue")
"""Attributes that tell the images at one place apart."""

KEY_NAMES = (
    *("kind of image", "matrix", "pixel spacing", "frame of reference", "image type", "echo time"),
    *("inversion time", "time point", "b-value", "stored type"),
)


def read_slice_header(file: Path) -> Slice:
    """Raises NotASlice for what can be left aside, InputError for what must be refused, or DamagedFile."""
    import pydicom

    with reading():
        with file.open("rb") as raw:
            start = raw.read(132)
        if not start.endswith(b"DICM") and not start.startswith(b"\x08\x00"):  # files without a preamble exist
            raise NotASlice("not DICOM")
        ds = pydicom.dcmread(file, stop_before_pixels=True, force=True)
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
        raise NotASlice("DICOMDIR")
    if modality in NOT_IMAGES or "Rows" not in ds:
        raise NotASlice("an object without an image")
    if sop_class.startswith(SECONDARY_CAPTURE):
        raise NotASlice("a screenshot")
    if SCOUTS & set(_words(ds)):
        raise NotASlice("a localizer")


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
    words, frame = _words(ds), frame_id(str(ds.get("FrameOfReferenceUID", "") or ""))
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
        frame=frame,
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
            frame,
            tuple(words[2:]),
            *(_rounded(ds, name) for name in KEY_TAGS),
            stored,
        ),
    )


def _rounded(ds: Dataset, name: str) -> str:
    """A number to four digits: scanners let an echo time jitter in the fifth."""
    value = ds.get(name)
    return "" if value in (None, "") else f"{float(value):.4g}"


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
