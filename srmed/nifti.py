"""NIfTI in and out: `.nii` and `.nii.gz`, one 3-D volume.

Samples lie with i (x) fastest and k (z) slowest, so a slab of slices is one run of bytes in array order (z, y, x). A
`.nii.gz` is decoded once when it is read in the order of `blocks()`; going back means decoding from the start again.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError, InputError, UsageError
from pipelines.grid import Box, Grid, Orientation
from pipelines.image import SLAB_SAMPLES, Header, Source, ToldKind, slabs
from srmed.geometry import largest_distance, ras_from_grid
from srmed.nifti_header import NiftiFile, image_header, read_file_header

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

CHUNK_BYTES = 4 << 20
"""Stored bytes decoded at a time, beside the box that is returned."""

SHEAR_VOXELS = 0.01
"""An affine that a quaternion cannot hold to this accuracy has no qform."""

NIFTI1_LARGEST = 32767
"""Dimensions of NIfTI-1 are 16-bit."""

SCANNER = 1
"""Form code: coordinates of the scanner."""

ALIGNED = 2
"""Form code: coordinates of something else than the scanner."""

SUFFIXES = (".nii", ".nii.gz")


def open_nifti(path: Path, thickness_mm: float | None = None, kind: ToldKind | None = None) -> NiftiSource:
    """Open a volume, reading its header and JSON sidecar only.

    thickness_mm: told by the user, wins over the sidecar. kind: told too, wins over all but the intent of the header.

    Raises InputError (GeometryError) for what cannot or must not be super-resolved.
    """
    return NiftiSource(path, thickness_mm, kind)


class NiftiSource(Source):
    """A Source over one `.nii` or `.nii.gz`. Reads may come from several threads; they take turns."""

    def __init__(self, path: Path, thickness_mm: float | None = None, kind: ToldKind | None = None) -> None:
        self._path = Path(path).absolute()
        self._told = thickness_mm, kind
        self._file = read_file_header(self._path)
        self._header = image_header(self._path, self._file, thickness_mm, kind)
        self._identity = self._identify()
        self._open_stream: IO[bytes] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., NiftiSource], tuple[Path, float | None, ToldKind | None]]:
        return open_nifti, (self._path, *self._told)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def file(self) -> NiftiFile:
        """The header as it lies in the file: what a product of it keeps."""
        return self._file

    @property
    def identity(self) -> str:
        return self._identity

    def _identify(self) -> str:
        status = self._path.stat()
        text = self._file.block + f" {status.st_size} {status.st_mtime_ns}".encode()
        return hashlib.sha256(text).hexdigest()[:16]

    def blocks(self, max_samples: int) -> Iterator[Box]:
        yield from slabs(self._header.grid.shape, max_samples)

    def read(self, box: Box) -> NDArray[np.floating]:
        values = np.empty((1, *box.shape), self._header.working)
        _, rows, columns = box.slices
        slice_bytes = self._file.stored.itemsize * int(np.prod(self._header.grid.shape[1:], dtype=np.int64))
        step = max(1, CHUNK_BYTES // slice_bytes)
        with self._lock:
            for z in range(box.start[0], box.stop[0], step):
                stop = min(z + step, box.stop[0])
                stored = self._stored_slices(z, stop)[:, rows, columns]
                values[0, z - box.start[0] : stop - box.start[0]] = self._values(stored)
        return values

    @property
    def anywhere(self) -> bool:
        return not self._file.compressed

    def _stored_slices(self, start: int, stop: int) -> NDArray[np.generic]:
        """Slices (stop - start, y, x) as stored."""
        shape = self._header.grid.shape
        slice_bytes = self._file.stored.itemsize * shape[1] * shape[2]
        wanted = (stop - start) * slice_bytes
        try:
            stream = self._stream()
            stream.seek(self._file.offset + start * slice_bytes)
            content = stream.read(wanted)
            if stop == shape[0] and self._file.compressed:
                while stream.read(CHUNK_BYTES):  # only the end of the file holds the checksum
                    pass
        except (OSError, EOFError, zlib.error) as error:
            self._forget_stream()
            raise InputError(
                what=f"the file cannot be read around slice {start} of {shape[0]}: it is damaged or cut short",
                fix="copy it again",
            ) from error
        if len(content) != wanted:
            raise InputError(
                what=f"the file ends before slice {stop} of {shape[0]}",
                why="its header announces more samples than it holds",
                fix="copy it again",
            )
        return np.frombuffer(content, self._file.stored).reshape(stop - start, *shape[1:])

    def _values(self, stored: NDArray[np.generic]) -> NDArray[np.floating]:
        """Values in file units; infinite ones are invalid too."""
        working = self._header.working
        with np.errstate(over="ignore", invalid="ignore"):  # what the type cannot hold becomes invalid
            if (self._file.slope, self._file.inter) == (1.0, 0.0):
                values = stored.astype(working)
            else:
                values = (stored.astype(np.float64) * self._file.slope + self._file.inter).astype(working)
        if stored.dtype.kind == "f":
            values[~np.isfinite(values)] = np.nan
        return values

    def _stream(self) -> IO[bytes]:
        """The open file, kept between reads so that what was decoded stays behind."""
        if self._open_stream is None:
            if self._file.compressed:
                self._open_stream = cast(IO[bytes], gzip.open(self._path, "rb"))  # noqa: SIM115 - kept open
            else:
                self._open_stream = self._path.open("rb")
        return self._open_stream

    def _forget_stream(self) -> None:
        if self._open_stream is not None:
            self._open_stream.close()
            self._open_stream = None

    def close(self) -> None:
        with self._lock:
            self._forget_stream()


class NiftiSink:
    """Writes a product as NIfTI: float32 without scaling, so that it explains the input as well as it was computed.

    Label maps keep their integer type. Of a NIfTI input, codes, units, intent, display range, times and dim_info stay;
    free text, extensions and slice timing, which describe the thick slices or the patient, do not.
    """

    def refuse(self, header: Header, path: Path) -> None:
        name = path.name.lower()
        if not name.endswith(SUFFIXES):
            dicom = not path.suffix or name.endswith(".dcm")
            raise UsageError(
                what="DICOM out: not yet" if dicom else f"a volume cannot be written as '{path.suffix}'",
                fix="write .nii.gz",
            )
        if header.grid.axes != "zyx" or len(header.channels) != 1:
            raise UsageError(
                what=f"{len(header.channels)} channels on the axes '{header.grid.axes}' do not fit into NIfTI",
                why="it holds one volume",
            )

    def write(self, product: Source, original: Source | None, path: Path, note: dict[str, str]) -> dict[str, float]:
        self.refuse(product.header, path)
        like = original.file if isinstance(original, NiftiSource) else None
        dtype = _product_type(product.header, like)
        software = "; ".join(note[k] for k in ("software", "use") if k in note)
        header = product_header(product.header, dtype, like, software)
        if original is not None and like is not None:
            header.set_dim_info(*_turned_dim_info(like, original.header.grid, product.header.grid))
        temporary = path.with_name(f".{path.name}.partial")
        try:
            with temporary.open("wb") as raw:
                clipped = _write_samples(product, header.binaryblock, dtype, raw, path.name.lower().endswith(".gz"))
                raw.flush()
                os.fsync(raw.fileno())
            temporary.replace(path)
        except OSError as error:
            raise ExportError(
                what=f"the product cannot be written ({error.strerror})",
                fix="make room or choose another folder, then run again with --resume",
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return {"clipped": float(clipped)}

    def overruling(self, path: Path) -> tuple[Path, ...]:
        """None."""
        del path
        return ()


def _turned_dim_info(like: NiftiFile, given: Grid, made: Grid) -> tuple[int | None, ...]:
    """Axes (i, j, k) of frequency, phase and slice in a product: a reference may have another order."""
    order = Orientation.onto(given, made).order
    return tuple(None if n is None else 2 - order.index(2 - n) for n in like.header.get_dim_info())


def _write_samples(product: Source, block: bytes, dtype: np.dtype[np.generic], raw: IO[bytes], compressed: bool) -> int:
    """Header, the empty extension mark and the slices in file order; returns the number of clipped samples."""
    stream: IO[bytes] = raw
    if compressed:  # neither name nor time inside: the same product gives the same bytes
        packed = gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0)
        stream = cast(IO[bytes], packed)
    clipped = 0
    try:
        stream.write(block + b"\0\0\0\0")
        for box in slabs(product.header.grid.shape, SLAB_SAMPLES):
            values = product.read(box)[0]
            if dtype.kind in "iu":
                values, outside = _whole_numbers(values, dtype)
                clipped += outside
            stream.write(np.ascontiguousarray(values, dtype).tobytes())
    finally:
        if compressed:
            stream.close()
    return clipped


def _whole_numbers(values: NDArray[np.float32], dtype: np.dtype[np.generic]) -> tuple[NDArray[np.float64], int]:
    """Values rounded into an integer type, invalid ones as 0, and how many did not fit."""
    limits = np.iinfo(dtype.name)
    rounded = np.rint(np.nan_to_num(values.astype(np.float64), nan=0.0))
    fitted = np.clip(rounded, float(limits.min), float(limits.max) if dtype.itemsize < 8 else float(2**53))
    return fitted, int(np.count_nonzero(fitted != rounded))


def _product_type(header: Header, like: NiftiFile | None) -> np.dtype[np.generic]:
    own = np.dtype(header.dtype) if like is None else like.stored
    scaled = like is not None and (like.slope, like.inter) != (1.0, 0.0)
    if all(c.kind == "classes" for c in header.channels) and own.kind in "iu" and not scaled:
        return own.newbyteorder("<")
    return header.working.newbyteorder("<")


def product_header(header: Header, dtype: np.dtype[np.generic], like: NiftiFile | None, software: str) -> Nifti1Header:
    """The NIfTI header of a product, little-endian, with nothing of the input but what still holds."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    shape_xyz = header.grid.shape[::-1]
    kind = Nifti2Header if max(shape_xyz) > NIFTI1_LARGEST else Nifti1Header
    new = kind(endianness="<")
    new.set_data_dtype(dtype)
    new.set_data_shape(shape_xyz)
    new.set_xyzt_units("mm")
    codes, mm_per_unit = (SCANNER, SCANNER), 1.0
    if like is not None:
        codes, mm_per_unit = like.codes, like.mm_per_unit
        for name in ("xyzt_units", "dim_info", "toffset", "intent_code", "cal_min", "cal_max"):
            new[name] = like.header[name]
        for name in ("intent_p1", "intent_p2", "intent_p3"):
            new[name] = like.header[name]
        new["pixdim"][4:] = like.header["pixdim"][4:]
    _set_place(new, ras_from_grid(header.grid, mm_per_unit), codes)
    new["scl_slope"], new["scl_inter"] = 1.0, 0.0
    new["descrip"] = software.encode("ascii", "replace")[:79]
    new["magic"] = b"n+1" if kind is Nifti1Header else b"n+2"
    new["vox_offset"] = 352 if kind is Nifti1Header else 544
    return new


def _set_place(new: Nifti1Header, affine: NDArray[np.float64], codes: tuple[int, int]) -> None:
    """Write both forms alike, each with its code; a sheared affine fits into the sform alone."""
    sform_code, qform_code = codes
    shape = tuple(int(n) for n in new.get_data_shape())
    new.set_zooms([float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)])
    if (sform_code, qform_code) == (0, 0):
        if largest_distance(affine, np.asarray(new.get_base_affine(), np.float64), shape) <= SHEAR_VOXELS:
            return  # readers make up the same centred place for the product as for the input
        sform_code = qform_code = ALIGNED
    new.set_qform(affine, code=qform_code, strip_shears=True)
    if not largest_distance(affine, np.asarray(new.get_qform(), np.float64), shape) <= SHEAR_VOXELS:
        new.set_qform(None, code=0)
        sform_code, qform_code = sform_code or qform_code or SCANNER, 0
    if sform_code:
        new.set_sform(affine, code=sform_code)
