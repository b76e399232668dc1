"""What a NIfTI file says before a sample is read: layout on disk, place in the world, and what kind of image it is."""

from __future__ import annotations

import gzip
import logging
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import GeometryError, InputError
from pipelines.grid import Grid
from pipelines.image import Channel, Fact, Header, ToldKind
from srmed.acquisition import Sidecar, Stated, acquisition, read_sidecar
from srmed.geometry import (
    SAME_FORM_VOXELS,
    UNIQUE_SPACING,
    anatomical_axes,
    coarsest_axis,
    grid_from_ras,
    largest_distance,
    ras_from_grid,
)

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

HEADER_BYTES = {348: 1, 540: 2}
"""Length of a header, which is also its first number, and the version of the format."""

DEFLATE_MAXIMUM = 1100
"""Deflate cannot shrink more than 1032 times."""

STORED_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
"""Types of one number per sample."""

MM_PER_UNIT = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}

LABEL_INTENT = 1002

REFUSED_INTENTS = {
    **dict.fromkeys(range(2, 25), "a map of a statistic"),
    **dict.fromkeys(range(1004, 1011), "a field of matrices, vectors or points"),
    **dict.fromkeys((2003, 2004, 2005), "colour or shape"),
    **dict.fromkeys(range(2006, 2019), "a warp field"),
}
"""Intent codes of nifti1.h whose samples are not intensities."""

LABEL_ENDINGS = frozenset(
    ("dseg", "seg", "segs", "mask", "masks", "label", "labels", "labelmap", "probseg", "segmentation", "parc", "atlas")
)
LABEL_WORDS = frozenset(("aseg", "aparc", "wmparc"))
"""Last word, and any word, of a file name that says label map (BIDS suffixes and FreeSurfer's names)."""

QUANTITATIVE_ENDINGS = frozenset(
    (
        *("t1map", "t2map", "t2starmap", "r1map", "r2map", "r2starmap", "pdmap"),
        *("mtrmap", "mtsat", "tb1map", "rb1map", "s0map", "m0map", "chimap"),
        *("fieldmap", "phasediff", "phase1", "phase2"),
    )
)
"""BIDS suffixes of maps of a physical quantity: their mean over a slice is not the quantity of the mean."""

PRODUCT = re.compile(rb"truescale \d")
"""How the description of a product begins: with the program and its version (see NiftiSink)."""

CT_INTERCEPT = -1000
"""16-bit samples with an intercept at or below this are Hounsfield units."""


@dataclass(frozen=True, slots=True)
class NiftiFile:
    """One opened header. offset: bytes before the samples; slope and inter make values of stored samples."""

    block: bytes
    header: Nifti1Header
    compressed: bool
    offset: int
    shape_xyz: tuple[int, int, int]
    stored: np.dtype[np.generic]
    slope: float
    inter: float
    mm_per_unit: float

    @property
    def codes(self) -> tuple[int, int]:
        """sform_code and qform_code."""
        return _codes(self.header)


def stem(path: Path) -> str:
    """The name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def grid_of_reference(path: Path) -> Grid:
    """The grid of any NIfTI with three axes in space, whatever its samples are. Raises InputError, GeometryError."""
    *_, header = _header_of(path)
    dims = [int(n) for n in header["dim"]]
    if not 3 <= dims[0] <= 7 or min(dims[1:4]) < 1:
        raise InputError(what=f"the reference has dimensions {dims}", why="a grid needs three axes in space")
    shape = (dims[1], dims[2], dims[3])
    with np.errstate(over="ignore", invalid="ignore"):  # a nonsensical place is refused, not warned about
        affine, _, _ = _affine(header, shape)
        return grid_from_ras(affine, shape, MM_PER_UNIT.get(_spatial_unit(header), 1.0))


def read_file_header(path: Path) -> NiftiFile:
    """Read and check the header of a single-file NIfTI-1 or -2. Raises InputError."""
    file_bytes, compressed, block, header = _header_of(path)
    if not np.isfinite(header["vox_offset"]):
        raise InputError(what="the header does not say where the samples begin", fix="repair the header first")
    shape = _volume_shape(header)
    stored = _stored_type(header)
    version = 2 if len(block) == 540 else 1
    offset = int(header["vox_offset"]) or (352 if version == 1 else 544)
    needed = offset + math.prod(shape) * stored.itemsize
    if (needed > file_bytes * DEFLATE_MAXIMUM) if compressed else (needed > file_bytes):
        raise InputError(
            what=f"the header announces {needed} bytes, the file has {file_bytes}",
            why="samples are missing: the file was cut short, or its header is wrong",
            fix="copy it again",
        )
    slope, inter = _scaling(header)
    unit = _spatial_unit(header)
    return NiftiFile(block, header, compressed, offset, shape, stored, slope, inter, MM_PER_UNIT.get(unit, 1.0))


def _header_of(path: Path) -> tuple[int, bool, bytes, Nifti1Header]:
    """(bytes of the file, whether it is compressed, the header as it lies in the file, the header)."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as raw:
            start = raw.read(540)
        compressed = start[:2] == b"\x1f\x8b"
        if compressed:
            with gzip.open(path, "rb") as stream:
                start = stream.read(540)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(what="the compressed file is damaged or cut short", fix="copy it again") from error
    except OSError as error:
        raise InputError(what=f"the file cannot be opened ({error.strerror})") from error
    if not file_bytes or not start:
        raise InputError(what="the file is empty", fix="copy it again")
    block, header = _checked_header(start)
    return file_bytes, compressed, block, header


def _checked_header(start: bytes) -> tuple[bytes, Nifti1Header]:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    lengths = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    length = next((n for n in HEADER_BYTES if n in lengths), 0)
    if not length:
        raise InputError(what="this is not a NIfTI file", why="it does not begin with the length of a NIfTI header")
    if len(start) < length:
        raise InputError(what="the file ends within its header", fix="copy it again")
    block = start[:length]
    kind = Nifti1Header if HEADER_BYTES[length] == 1 else Nifti2Header
    silent = logging.Logger("nifti header")  # noqa: LOG001 - nibabel logs to stderr unless it is given a logger
    silent.addHandler(logging.NullHandler())
    try:
        header = kind(block, check=False)
        if (np.asarray(header["pixdim"][1:4]) == 0).any() or not np.isfinite(header["pixdim"][1:4]).all():
            raise GeometryError(
                what="a pixdim of the header is zero or not finite",
                why="the size of the samples is not known",
                fix="repair the header first",
            )
        header.check_fix(logger=silent, error_level=40)
    except (HeaderDataError, WrapStructError) as error:
        raise InputError(what="the NIfTI header is damaged", why=str(error)) from error
    if header["magic"].item() not in (b"n+1", b"n+2"):
        raise InputError(
            what="the header belongs to a pair of files (.hdr and .img)",
            why="the samples are not in this file",
            fix="convert it to .nii.gz",
        )
    return block, header


def _volume_shape(header: Nifti1Header) -> tuple[int, int, int]:
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise InputError(what=f"the header gives impossible dimensions {dims}", fix="repair the header first")
    shape = dims[1 : dims[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    text = " x ".join(map(str, shape))
    if len(shape) < 3:
        raise InputError(what=f"the image is {len(shape)}-D ({text})", why="a volume with slices is needed: not yet")
    if len(shape) == 4:
        raise InputError(
            what=f"the image is 4-D ({text})",
            why="a series of volumes: not yet",
            fix="split it and super-resolve one volume at a time",
        )
    if len(shape) > 4:
        raise InputError(what=f"the image is {len(shape)}-D ({text})", why="vectors and tensors cannot be averaged")
    return shape[0], shape[1], shape[2]


def _stored_type(header: Nifti1Header) -> np.dtype[np.generic]:
    dtype: np.dtype[np.generic] = header.get_data_dtype()
    if dtype.newbyteorder("=").name not in STORED_TYPES:
        kind = "colour" if dtype.names else "complex numbers" if dtype.kind == "c" else f"the type {dtype.name}"
        raise InputError(
            what=f"the samples are {kind}",
            why="only one real number per sample can be super-resolved: not yet",
            fix="convert it to magnitude or grey values first",
        )
    return dtype


def _codes(header: Nifti1Header) -> tuple[int, int]:
    return int(header["sform_code"]), int(header["qform_code"])


def _scaling(header: Nifti1Header) -> tuple[float, float]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise InputError(what="scl_slope or scl_inter is not finite", why="the values of the samples are not known")
    return slope, inter


def _spatial_unit(header: Nifti1Header) -> str:
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def image_header(
    path: Path, file: NiftiFile, told_thickness_mm: float | None = None, told_kind: ToldKind | None = None
) -> Header:
    """Everything a plan needs. Raises InputError for images that must not be super-resolved, GeometryError for tilt."""
    words = [w for w in re.split(r"[^a-z0-9]+", stem(path).lower()) if w]
    sidecar = read_sidecar(path.with_name(stem(path) + ".json"))
    overruled = refuse_kind(file, words, told_kind)
    with np.errstate(over="ignore", invalid="ignore"):  # a nonsensical place is refused, not warned about
        affine, form, place_problems = _affine(file.header, file.shape_xyz)
        grid = grid_from_ras(affine, file.shape_xyz, file.mm_per_unit)
    slice_axis, slice_problems = _slice_axis(file.header, grid)
    modality, modality_fact, problems = _modality(file, sidecar, words)
    stated = Stated(modality, sidecar.thickness_mm, "sidecar", sidecar.three_dimensional)
    if told_thickness_mm is not None:
        stated = Stated(modality, told_thickness_mm, "told", sidecar.three_dimensional)
    scan = acquisition(grid, slice_axis, stated)
    label, guess, problem = _label(file, words, told_kind)
    problems += [text for text in (problem, overruled) if text]
    if PRODUCT.match(file.header["descrip"].item()):
        problems.append("this is already a super-resolved product")
    channel = Channel(
        name="label" if label else "intensity",
        profiles=scan.profiles,
        kind="classes" if label else "image",
        unit="HU" if modality == "CT" else "",
        noise_model="gaussian" if modality == "CT" else "rician",
        guess=guess,
    )
    facts = {**scan.facts, "modality": modality_fact, **_file_facts(file, form)}
    if sidecar.field_tesla is not None:
        facts["magnetic_field_t"] = Fact(sidecar.field_tesla, "T", "sidecar")
    return Header(
        grid=grid,
        channels=(channel,),
        dtype=file.stored.newbyteorder("=").name,
        domain="med",
        modality=modality,
        slice_axis=slice_axis,
        may_have_invalid=file.stored.kind == "f",
        facts=facts,
        problems=(*place_problems, *sidecar.problems, *problems, *(() if label else (*slice_problems, *scan.problems))),
        anatomical_axes=anatomical_axes(grid),
        file_world="NIfTI RAS+ mm, (i, j, k) centres",
        file_affine=tuple(tuple(float(v) for v in row) for row in ras_from_grid(grid)),
    )


def _file_facts(file: NiftiFile, form: str) -> dict[str, Fact]:
    sform, qform = file.codes
    facts = {
        "stored_type": Fact(file.stored.newbyteorder("=").name),
        "affine_from": Fact(form),
        "sform_code": Fact(sform),
        "qform_code": Fact(qform),
        "spatial_unit": Fact(_spatial_unit(file.header)),
    }
    if (file.slope, file.inter) != (1.0, 0.0):
        facts["scl_slope"], facts["scl_inter"] = Fact(file.slope), Fact(file.inter)
    return facts


def refuse_kind(file: NiftiFile, words: list[str], told: ToldKind | None) -> str:
    """What to say of a name that is overruled by the kind told, '' if there is nothing to say.

    Raises InputError for samples that are not intensities: super-resolving them would give wrong numbers.
    """
    intent = int(file.header["intent_code"])
    declared = f"{REFUSED_INTENTS[intent]} (intent code {intent})" if intent in REFUSED_INTENTS else ""
    named = _quantity_named(words)
    if named and told and not declared:
        taken = "an image" if told == "image" else "labels"
        return f"the name says {named}, but it is taken as {taken}: --kind says so"
    if declared or named:
        computed = "super-resolve the images that it was computed from"
        raise InputError(
            what=f"the samples are {declared or f'{named}, as its name says'}",
            why="a thick slice does not hold their mean, so no degradation explains them",
            fix=computed if declared else f"{computed}; if it is an image, say --kind image",
        )
    return ""


def _quantity_named(words: list[str]) -> str:
    """What a name says of samples that are no intensities, '' if nothing."""
    if {"phase", "imag"} & set(words) and "part" in words:
        return "the phase or imaginary part of a signal"
    if words and re.fullmatch(r"[ztf]stat\d*", words[-1]):
        return "a map of a statistic"
    return "a map of a physical quantity" if words and words[-1] in QUANTITATIVE_ENDINGS else ""


def _affine(header: Nifti1Header, shape_xyz: tuple[int, int, int]) -> tuple[NDArray[np.float64], str, list[str]]:
    """The RAS affine in the file's unit, which form it is from, and what is odd about it."""
    from nibabel.spatialimages import HeaderDataError

    problems = []
    sform_code, qform_code = _codes(header)
    if _spatial_unit(header) == "unknown":
        problems.append("the unit of length is not stated: millimetres are assumed")
    qform = None
    if qform_code > 0:
        try:
            qform = np.asarray(header.get_qform(), np.float64)
        except (HeaderDataError, ValueError) as error:
            if sform_code <= 0:
                raise GeometryError(what="the qform of the header is no rotation", fix="repair the header") from error
            problems.append("the qform of the header is no rotation: ignored, the sform is used")
    if sform_code <= 0:
        if qform is not None:
            return qform, "qform", problems
        problems.append("the header states no place in the world (both form codes are 0): a centred one is made up")
        return np.asarray(header.get_base_affine(), np.float64), "none", problems
    sform = np.asarray(header.get_sform(), np.float64)
    grid_from_ras(sform, shape_xyz)  # refuses a zero or singular one before it is compared
    if qform is not None:
        apart = largest_distance(sform, qform, shape_xyz)
        if not apart <= SAME_FORM_VOXELS:
            problems.append(f"sform and qform place the image {apart:.2g} voxels apart: the sform is used")
    return sform, "sform", problems


def _slice_axis(header: Nifti1Header, grid: Grid) -> tuple[int, list[str]]:
    """The axis that the slices are stacked on, and what to say if that is a guess."""
    slice_ijk = header.get_dim_info()[2]
    if slice_ijk is not None and slice_ijk <= 2:
        return 2 - slice_ijk, []
    axis = coarsest_axis(grid)
    others = [n for a, n in enumerate(grid.spacing) if a != axis]
    if grid.spacing[axis] > UNIQUE_SPACING * max(others):
        return axis, []
    taken = f"no axis is coarser than the others: slices are taken to be stacked {anatomical_axes(grid)[axis]}"
    return axis, [taken]


def _modality(file: NiftiFile, sidecar: Sidecar, words: list[str]) -> tuple[str, Fact, list[str]]:
    if sidecar.modality:
        return sidecar.modality, Fact(sidecar.modality, origin="sidecar"), []
    if file.stored.itemsize == 2 and file.stored.kind in "iu" and file.inter <= CT_INTERCEPT:
        return "CT", Fact("CT", origin="assumed"), ["taken as CT because of its intercept"]
    if "ct" in words:
        return "CT", Fact("CT", origin="assumed"), ["taken as CT because of its name"]
    return "MR", Fact("MR", origin="assumed"), []


def _label(file: NiftiFile, words: list[str], told: ToldKind | None) -> tuple[bool, str, str]:
    """Whether the samples are labels, why if that is a guess (see Channel.guess), and what to say about it."""
    declared = int(file.header["intent_code"]) == LABEL_INTENT
    guess = "" if declared else _label_guess(file, words)
    taken = "taken as a label map, its samples are repeated and not interpolated"
    if declared:
        return True, "", f"the intent of the header is a label: {taken}"
    if guess and told is None:
        return True, guess, f"{guess}: {taken}; if it is an image, say --kind image"
    overruled = f"{guess}, but it is taken as an image: --kind says so" if guess and told == "image" else ""
    return told == "labels", "", overruled


def _label_guess(file: NiftiFile, words: list[str]) -> str:
    """Why a file that does not declare labels is taken for a label map, '' if it is not."""
    if words and (words[-1] in LABEL_ENDINGS or LABEL_WORDS & set(words)):
        return "the name says label map"
    if file.stored.kind in "iu" and file.stored.itemsize == 8:
        return "64-bit integers are how programs store labels"
    return ""
