"""DICOM in: a folder with one classic MR or CT series, one file per slice.

Opening reads headers only. A read decodes the files of the slices it needs, once each; a few decoded slices are kept.
Values are in the unit of the display (stored value times rescale slope plus intercept).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.grid import Box
from pipelines.image import Channel, Fact, Header, Source, slabs
from srmed.acquisition import Stated, acquisition
from srmed.geometry import anatomical_axes, grid_from_slices, lps_affine
from srmed.series import Stack, read_stack
from srmed.slice_header import DamagedFile, Slice, reading

CACHE_BYTES = 64 << 20
"""Decoded slices kept between reads."""

SAME_THICKNESS = 0.01
"""Thicknesses within a series that differ by a larger share are different acquisitions."""

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
"""Every decoder says it can; only pylibjpeg-libjpeg decodes 12 bits."""


def open_dicom(path: Path, thickness_mm: float | None = None) -> DicomSource:
    """Open the one series in a folder, reading headers only. thickness_mm: told by the user, wins over the header.

    Raises InputError (GeometryError) for what is not one complete series, or must not be super-resolved.
    """
    return DicomSource(path, thickness_mm)


class DicomSource(Source):
    """A Source over a stack of files. Reads may come from several threads; they take turns."""

    def __init__(self, path: Path, thickness_mm: float | None = None) -> None:
        self._path = Path(path).absolute()
        self._thickness_mm = thickness_mm
        if not self._path.exists():
            raise InputError(what="there is no such file or folder")
        stack = read_stack(self._path)
        _refuse_undecodable(stack)
        self._slices = stack.slices
        self._header = _header(stack, thickness_mm)
        self._cache: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., DicomSource], tuple[Path, float | None]]:
        return open_dicom, (self._path, self._thickness_mm)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        files = sorted((s.sop, s.file_bytes, s.mtime_ns) for s in self._slices)
        return hashlib.sha256(repr(files).encode()).hexdigest()[:16]

    def blocks(self, max_samples: int) -> Iterator[Box]:
        yield from slabs(self._header.grid.shape, max_samples)

    def read(self, box: Box) -> NDArray[np.float32]:
        values = np.empty((1, *box.shape), np.float32)
        _, rows, columns = box.slices
        with self._lock:
            for z in range(box.start[0], box.stop[0]):
                values[0, z - box.start[0]] = self._decoded(z)[rows, columns]
        return values

    @property
    def anywhere(self) -> bool:
        return True

    def _decoded(self, z: int) -> NDArray[np.float32]:
        """Values (y, x) of slice z, from the cache or from its file."""
        if z in self._cache:
            self._cache.move_to_end(z)
            return self._cache[z]
        try:
            values = _decode(self._slices[z])
        except DamagedFile as error:
            raise InputError(
                what=f"slice {z} of {len(self._slices)} cannot be decoded: its pixel data is damaged or cut short",
                fix="copy the series again",
            ) from error
        self._cache[z] = values
        while len(self._cache) > max(1, CACHE_BYTES // values.nbytes):
            self._cache.popitem(last=False)
        return values

    def close(self) -> None:
        with self._lock:
            self._cache.clear()


def _decode(s: Slice) -> NDArray[np.float32]:
    """Values (rows, columns) of one file; NaN where it is padded. Raises DamagedFile."""
    import pydicom
    from pydicom.uid import UID

    with reading():
        ds = pydicom.dcmread(s.path, force=True)
        if "TransferSyntaxUID" not in ds.file_meta:
            ds.file_meta.TransferSyntaxUID = UID(s.syntax)
        stored = np.asarray(ds.pixel_array)
        if stored.shape != s.shape:
            raise ValueError("the pixel data has another shape than the header says")
    if (s.slope, s.intercept) == (1.0, 0.0):
        values = stored.astype(np.float32)
    else:
        values = (stored.astype(np.float64) * s.slope + s.intercept).astype(np.float32)
    if s.padding is not None:  # compared as stored: rescaling would move it
        values[(stored >= s.padding[0]) & (stored <= s.padding[1])] = np.nan
    return values


def _refuse_undecodable(stack: Stack) -> None:
    """Raise InputError now, not at slice 900, if a transfer syntax has no decoder here."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    for syntax, bits in sorted({(s.syntax, s.bits_stored) for s in stack.slices}):
        name = syntax_name(syntax)
        try:
            with reading():
                decoder = get_decoder(UID(syntax))
        except DamagedFile as error:
            raise InputError(what=f"the pixels are stored as {name}, which has no decoder") from error
        twelve_bit = syntax == JPEG_EXTENDED and bits > 8
        if decoder.is_available and not (twelve_bit and "pylibjpeg" not in decoder.available_plugins):
            continue
        package = "pylibjpeg-libjpeg (GPL)" if twelve_bit else "truescale[dicom-codecs]"
        raise InputError(
            what=f"the pixels are stored as {name}, and no decoder for it is installed",
            fix=f"pip install '{package}'" if not twelve_bit else f"install {package}, or decompress the files first",
        )


def syntax_name(syntax: str) -> str:
    """The standard's name of a transfer syntax."""
    from pydicom._uid_dict import UID_dictionary

    return str(UID_dictionary[syntax][0]) if syntax in UID_dictionary else "an unknown transfer syntax"


def _header(stack: Stack, told_thickness_mm: float | None) -> Header:
    first = stack.slices[0]
    grid = grid_from_slices(
        stack.first,
        stack.step,
        np.array(first.orientation),
        first.pixel_spacing,
        (len(stack.slices), *first.shape),
        first.frame,
    )
    thickness = _thickness(stack)
    stated = Stated(first.modality, thickness, "header", first.three_dimensional)
    if told_thickness_mm is not None:
        stated = Stated(first.modality, told_thickness_mm, "told", first.three_dimensional)
    scan = acquisition(grid, 0, stated)
    padded = any(s.padding is not None for s in stack.slices)
    return Header(
        grid=grid,
        channels=(
            Channel(
                name="intensity",
                profiles=scan.profiles,
                unit="HU" if first.modality == "CT" else "",
                noise_model="gaussian" if first.modality == "CT" else "rician",
            ),
        ),
        dtype=first.stored_type,
        domain="med",
        modality=first.modality,
        slice_axis=0,
        may_have_invalid=padded,
        facts={**scan.facts, **_facts(stack)},
        problems=(*stack.problems, *scan.problems),
        anatomical_axes=anatomical_axes(grid),
        file_world="DICOM LPS mm, (column, row, slice) centres",
        file_affine=tuple(tuple(float(v) for v in row) for row in lps_affine(grid)),
    )


def _thickness(stack: Stack) -> float | None:
    """SliceThickness of the series, None if no slice states it. Raises InputError if it changes within."""
    stated = [s.thickness_mm for s in stack.slices if s.thickness_mm is not None]
    if not stated:
        return None
    if max(stated) > (1 + SAME_THICKNESS) * min(stated):
        raise InputError(
            what=f"the slice thickness changes within the series, from {min(stated):.6g} to {max(stated):.6g} mm",
            why="one width must hold for the whole stack",
            fix="give a folder with slices of one thickness",
        )
    return stated[0]


def _facts(stack: Stack) -> dict[str, Fact]:
    first = stack.slices[0]
    facts = {
        "modality": Fact(first.modality),
        "stored_type": Fact(first.stored_type),
        "bits_stored": Fact(first.bits_stored),
        "transfer_syntax": Fact(syntax_name(first.syntax)),
        "files": Fact(len(stack.slices), origin="counted"),
        "files_left_aside": Fact(stack.ignored, origin="counted"),
    }
    if first.series_number is not None:
        facts["series_number"] = Fact(first.series_number)
    if first.field_tesla is not None:
        facts["magnetic_field_t"] = Fact(first.field_tesla, "T")
    if first.padding is not None:
        facts["padding_stored"] = Fact(first.padding[0])
    if any((s.slope, s.intercept) != (1.0, 0.0) for s in stack.slices):
        facts["rescale_slope"], facts["rescale_intercept"] = Fact(first.slope), Fact(first.intercept)
        facts["rescale_per_slice"] = Fact(len({(s.slope, s.intercept) for s in stack.slices}) > 1, origin="counted")
    return facts
