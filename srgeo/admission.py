"""Which files GDAL may open: decided from the name and the first bytes, then opened with one driver.

GDAL detects formats by content, so a file named .tif may be a VRT that reads any other file, and a path may be a
network address. Only local GeoTIFF files pass; everything else is refused with the reason.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.session import DummySession

from pipelines.errors import InputError

GDAL_ERRORS: tuple[type[Exception], ...] = (RasterioError, CPLE_BaseError, OSError)
"""Everything that rasterio raises for a file or a disk; the second is not in its public tree."""

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""Classic and Big TIFF, little and big endian."""

CACHE_BYTES = 64 << 20
"""GDAL's block cache of the whole process; its default is 5 % of the memory of the machine."""

MAX_DECLARED_BYTES = 1 << 40
"""A sparse file of 46 MB can declare 16 TB: more than this is a damaged or hostile header."""

MAX_BLOCK_BYTES = 256 << 20
"""One block is decoded at once, whatever is asked of it."""

MAX_BANDS = 4096
"""More bands than any sensor has."""

MAX_SIDECAR_BYTES = 64 << 20
"""Largest .aux.xml that is parsed."""

_OPENING = threading.Lock()  # the warning filters are shared by all threads

_FOREIGN = (
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000 is not read yet", "convert the band to GeoTIFF without loss"),
    (b"\xff\x4f\xff\x51", "JPEG 2000 is not read yet", "convert the band to GeoTIFF without loss"),
    (b"PK\x03\x04", "zip archives and zipped SAFE products are not read yet", "give the band GeoTIFFs"),
    (b"\x89HDF", "HDF5 and netCDF-4 are not read", "export the bands as GeoTIFF"),
    (b"CDF", "netCDF is not read", "export the bands as GeoTIFF"),
    (b"\x89PNG", "PNG is not read", "convert it to GeoTIFF"),
    (b"\xff\xd8\xff", "JPEG is not read", "convert the original, uncompressed image to GeoTIFF"),
)


@contextmanager
def gdal(**options: Any) -> Iterator[None]:
    """GDAL with a small cache, whole compound CRS and its messages sent to logging instead of stderr."""
    settings = {"GDAL_CACHEMAX": CACHE_BYTES, "GTIFF_REPORT_COMPD_CS": "YES", **options}
    with rasterio.Env(session=DummySession(), **settings):  # credentials in the environment are none of ours
        yield


@contextmanager
def unplaced() -> Iterator[None]:
    """Files without georeference are ordinary here: the warning is answered by a line among the problems."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def admitted(path: str | Path) -> Path:
    """The absolute path of a local GeoTIFF file. Raises InputError with the reason for everything else."""
    _refuse_strange_names(str(path))
    place = Path(path).absolute()
    name = place.name
    if re.search(r"\.safe(\.zip)?$", name, re.IGNORECASE) or ".SAFE/" in str(path):
        raise InputError(what="SAFE products are not read yet", fix="give the band GeoTIFFs")
    if not place.exists():
        raise InputError(what=f"there is no file '{name}'", fix="check the path")
    if not place.is_file():
        raise InputError(what=f"'{name}' is no regular file", why="a raster is one GeoTIFF file", fix="give the file")
    _refuse_other_content(place)
    for ending in (".msk", ".MSK", ".ovr", ".OVR"):  # GDAL would open these by content, too
        beside = place.with_name(name + ending)
        if beside.exists() and _head(beside)[:4] not in TIFF_MAGIC:
            raise InputError(
                what=f"'{beside.name}' is no TIFF",
                why="a mask or overview beside a raster that is of another kind could read any file",
                fix="remove it or make it a GeoTIFF",
            )
    aux = place.with_name(name + ".aux.xml")
    if aux.exists() and aux.stat().st_size > MAX_SIDECAR_BYTES:
        raise InputError(what=f"'{aux.name}' is larger than {MAX_SIDECAR_BYTES >> 20} MiB", fix="remove it")
    return place


def _refuse_strange_names(text: str) -> None:
    if re.match(r"\s*<(VRTDataset|\?xml|WMTS|GDAL_WMS)", text):
        raise InputError(what="the path is a VRT text", why="a VRT can read any file", fix="give the GeoTIFF itself")
    if re.match(r"[A-Z][A-Z0-9_]+:(?!//)", text):
        raise InputError(
            what=f"'{text.partition(':')[0]}:' names a part of a product",
            why="SAFE products and subdatasets are not read yet",
            fix="give the band GeoTIFFs",
        )
    if text.startswith(("/vsi", "\\vsi")) or re.match(r"[A-Za-z][\w+.-]+:/", text):
        raise InputError(what="the path is a remote path", why="the network is never used", fix="download the file")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError as error:
        raise InputError(what=f"'{path.name}' cannot be read", why=error.strerror or "", fix="check it") from error


def _refuse_other_content(path: Path) -> None:
    head = _head(path)
    if not head:
        raise InputError(what=f"'{path.name}' is empty", fix="fetch it again")
    if head[:4] in TIFF_MAGIC:
        return
    if b"<VRTDataset" in head or path.suffix.lower() == ".vrt":
        raise InputError(
            what=f"'{path.name}' is a VRT", why="a VRT can read any file", fix="write it as a GeoTIFF (gdal_translate)"
        )
    for signature, what, fix in _FOREIGN:
        if head.startswith(signature):
            raise InputError(what=f"'{path.name}': {what}", fix=fix)
    raise InputError(what=f"'{path.name}' is no GeoTIFF", why="rasters are read from GeoTIFF", fix="convert it")


def opened(path: Path) -> Any:
    """A rasterio dataset of an admitted path, with the one driver and for this thread alone. Raises InputError."""
    try:
        with gdal(), unplaced():
            return rasterio.open(os.fspath(path), driver="GTiff", sharing=False)
    except GDAL_ERRORS as error:
        raise InputError(
            what=f"'{path.name}' cannot be opened as a GeoTIFF",
            why=_reason(error, path),
            fix="fetch or write it again",
        ) from error


def _reason(error: Exception, path: Path) -> str:
    """What GDAL says, on one line and without the folder."""
    text = " ".join(str(error).replace(str(path), path.name).split())
    return text.removeprefix(f"{path.name}: ")[:200] or type(error).__name__


def refuse_bombs(dataset: Any, name: str) -> None:
    """Raise InputError if the header declares more than can be meant, before any allocation that follows it."""
    if dataset.count > MAX_BANDS:
        raise InputError(what=f"'{name}' declares {dataset.count} bands", why=f"at most {MAX_BANDS} are read")
    if dataset.count == 0:
        raise InputError(what=f"'{name}' has no bands", fix="give one of its subdatasets as a GeoTIFF")
    itemsize = max(np.dtype(d).itemsize if "int" in d or "float" in d else 16 for d in dataset.dtypes)
    declared = dataset.width * dataset.height * dataset.count * itemsize
    if declared > MAX_DECLARED_BYTES:
        raise InputError(
            what=f"'{name}' declares {dataset.height} x {dataset.width} x {dataset.count} samples "
            f"({declared / 1e12:.3g} TB)",
            why=f"more than {MAX_DECLARED_BYTES / 1e12:.2g} TB is taken for a damaged header",
            fix="cut it into smaller files",
        )
    rows, columns = dataset.block_shapes[0]
    together = 1 if str(dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE")) == "BAND" else dataset.count
    block = min(rows, dataset.height) * min(columns, dataset.width) * together * itemsize
    tiled = columns < dataset.width
    block = rows * columns * together * itemsize if tiled else block
    if block > MAX_BLOCK_BYTES:
        raise InputError(
            what=f"'{name}' is stored in blocks of {block / 1e6:.0f} MB",
            why=f"a block is decoded at once and at most {MAX_BLOCK_BYTES >> 20} MiB are allowed",
            fix="write it tiled (gdal_translate -co TILED=YES)",
        )
