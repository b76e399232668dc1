"""Cloud-optimised GeoTIFF out: the product is streamed into a tiled GeoTIFF, which GDAL copies into the final layout.

The COG driver only copies whole files, so the metadata must be complete before it runs: nothing is added afterwards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.shutil import copy as gdal_copy
from rasterio.windows import Window

from pipelines.errors import ExportError, UsageError
from pipelines.grid import Box
from pipelines.image import SLAB_SAMPLES, Header, Source
from srgeo.admission import CACHE_BYTES, GDAL_ERRORS, gdal, unplaced
from srgeo.casting import Storage, stored
from srgeo.product import NOTE_PREFIX, Layout, layout_of
from srgeo.raster import RasterSource

BLOCK = 512
"""Side of the tiles of the product, and of those of its intermediate file."""

MAX_THREADS = 8
"""Of the compression; the bytes do not depend on it."""

SUFFIXES = (".tif", ".tiff")

_DTYPES = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"})

_BESIDE_NAME = (".aux.xml", ".msk", ".msk.ovr", ".ovr")
_BESIDE_STEM = (".tfw", ".TFW", ".rpb", ".RPB")


class _InvalidSampleError(Exception):
    """A product that promised only valid samples holds an invalid one."""


class CogSink:
    """Writes COGs with the transform, CRS, nodata, tags and type of the input."""

    def refuse(self, header: Header, path: Path) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(what=f"'{path.name}' is no name of a GeoTIFF", fix="end it with .tif")
        if header.grid.axes != "yx":
            raise UsageError(
                what="a volume cannot be written as a GeoTIFF", why="it has three axes", fix="write .nii.gz or .zarr"
            )
        if header.dtype not in _DTYPES:
            raise UsageError(what=f"samples of type {header.dtype} are not written as GeoTIFF", fix="write .zarr")

    def write(self, product: Source, original: Source | None, path: Path, note: dict[str, str]) -> dict[str, float]:
        self.refuse(product.header, path)
        raster = original if isinstance(original, RasterSource) else None
        if raster is not None and path.exists() and path.samefile(raster.path):
            raise UsageError(what="the product would replace its own input", fix="choose another name")
        layout = layout_of(product.header, raster, note)
        if len(layout.bands) != len(product.header.channels):
            raise ExportError(
                what=f"the product has {len(product.header.channels)} bands and the input {len(layout.bands)}",
                why="the metadata of each band comes from the input",
            )
        try:
            folder = path.with_name(f".{path.name}.partial")
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            folder.mkdir()
        except OSError as error:
            raise _export_error(path, error) from error
        try:
            clipped = _write_into(folder, product, layout, path)
        except GDAL_ERRORS as error:
            raise _export_error(path, error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return {"clipped": float(clipped)}

    def overruling(self, path: Path) -> tuple[Path, ...]:
        names = (*(path.name + e for e in _BESIDE_NAME), *(path.stem + e for e in _BESIDE_STEM))
        return tuple(path.with_name(name) for name in names)


def _export_error(path: Path, error: Exception) -> ExportError:
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return ExportError(
        what=f"'{path.name}' could not be written", why=why, fix="make room there, then call again with --resume"
    )


def _write_into(folder: Path, product: Source, layout: Layout, path: Path) -> int:
    """Both files in `folder`, the finished one moved to `path`. Returns the number of clipped samples."""
    plain, finished = folder / "plain.tif", folder / "cog.tif"
    if layout.scheme == "shared nodata":
        layout = layout.marked("nodata", _unused_value(product, layout))
    try:
        clipped = _stream(product, layout, plain)
    except _InvalidSampleError:
        clipped = _stream(product, layout.marked("mask"), plain)
    _require_all_blocks(plain)
    options = {
        "driver": "COG",
        "BLOCKSIZE": str(_block(layout)),
        "COMPRESS": "DEFLATE",
        "PREDICTOR": "YES" if _predictable(layout.storage) else "NO",
        "OVERVIEWS": "IGNORE_EXISTING",
        "OVERVIEW_RESAMPLING": "NEAREST" if layout.has_classes else "AVERAGE",
        "BIGTIFF": _bigtiff(layout),
        "NUM_THREADS": str(min(MAX_THREADS, os.cpu_count() or 1)),
    }
    with gdal(GDAL_TIFF_INTERNAL_MASK="YES", GDAL_PAM_ENABLED="NO"), unplaced():
        gdal_copy(os.fspath(plain), os.fspath(finished), **options)
    _require_all_blocks(finished)
    plain.unlink()
    with finished.open("rb+") as file:
        os.fsync(file.fileno())
    finished.replace(path)
    return clipped


def _predictable(storage: Storage) -> bool:
    """Whether the horizontal predictor applies: not to floats (it may cost space) nor to packed bits (GDAL refuses)."""
    return not storage.is_float and storage.bits is None


def _block(layout: Layout) -> int:
    """Side of the blocks: BLOCK, or less where the bands of several blocks would not fit GDAL's cache together.

    It would decode a block again for every band; this version writes the bands of a COG in one block.
    """
    side = BLOCK
    while side > 64 and len(layout.bands) * np.dtype(layout.storage.dtype).itemsize * side**2 > CACHE_BYTES // 8:
        side //= 2
    return side


def _bigtiff(layout: Layout) -> str:
    """YES if the file could pass 4 GB: GDAL's own rule looks at the base level only, and fails after hours."""
    raw = len(layout.bands) * np.dtype(layout.storage.dtype).itemsize + (layout.scheme == "mask")
    return "YES" if raw * layout.shape[0] * layout.shape[1] * 4 / 3 > 4e9 else "NO"


def _profile(layout: Layout) -> dict[str, Any]:
    colours = [b.colour for b in layout.bands]
    photometric = "RGB" if colours[:3] == ["red", "green", "blue"] else "MINISBLACK"
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": layout.shape[0],
        "width": layout.shape[1],
        "count": len(layout.bands),
        "dtype": layout.storage.dtype,
        "tiled": True,
        "blockxsize": _block(layout),
        "blockysize": _block(layout),
        "interleave": "band",  # overviews are made band by band: no block is decoded again for every band
        "compress": "deflate",
        "zlevel": 1,
        "photometric": photometric,
        # else GDAL takes the fourth band of 8-bit imagery for alpha: dark infrared would be transparent; a true alpha
        # band is flagged by its colour, whatever its place
        "alpha": "PREMULTIPLIED" if layout.premultiplied else "NO",
        "bigtiff": _bigtiff(layout),
    }
    if layout.scheme == "nodata":
        profile["nodata"] = layout.storage.nodata
    if layout.transform is not None:
        profile["transform"] = layout.transform
    if layout.crs is not None:
        profile["crs"] = layout.crs
    if layout.storage.bits is not None:
        profile["nbits"] = layout.storage.bits
    return profile


def _stream(product: Source, layout: Layout, path: Path) -> int:
    """The product as a tiled GeoTIFF. Raises _InvalidSampleError where an unmarked sample is invalid."""
    clipped = 0
    with gdal(GDAL_TIFF_INTERNAL_MASK="YES", GDAL_PAM_ENABLED="NO"):
        with unplaced():
            dataset = rasterio.open(os.fspath(path), "w", **_profile(layout))
        try:
            _describe(dataset, layout)  # before the samples: colours are fixed by the first block
            for box in _windows(layout):
                window = Window(box.start[1], box.start[0], box.shape[1], box.shape[0])
                values, valid, beyond = stored(product.read(box), layout.storage)
                if layout.scheme == "all" and not layout.storage.is_float and not valid.all():
                    raise _InvalidSampleError
                clipped += beyond
                dataset.write(values, window=window)
                if layout.scheme == "mask":
                    dataset.write_mask(_shared_mask(valid, layout), window=window)
            dataset.update_tags(**{f"{NOTE_PREFIX}CLIPPED": str(clipped)})
        finally:
            with unplaced():
                dataset.close()
    return clipped


def _windows(layout: Layout) -> Iterator[Box]:
    """Whole blocks, one row of windows after the other: a block is compressed once."""
    rows, columns = layout.shape
    block = _block(layout)
    height = 2 * block
    width = max(1, SLAB_SAMPLES // (len(layout.bands) * height * block)) * block
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield Box((top, left), (min(rows, top + height), min(columns, left + width)))


def _shared_mask(valid: NDArray[np.bool_], layout: Layout) -> NDArray[np.uint8]:
    """One mask for all bands: floats keep a NaN of their own, an integer band must not show an invalid sample."""
    image = valid[[b.kind != "alpha" for b in layout.bands]]
    shown = image.any(axis=0) if layout.storage.is_float else image.all(axis=0)
    return np.where(shown, 255, 0).astype(np.uint8)


def _unused_value(product: Source, layout: Layout) -> int:
    """A value for nodata that no valid sample has, searched from both ends of the range."""
    low, high = layout.storage.limits
    candidates = list(dict.fromkeys([0, low, high, *range(high, max(low, high - 30), -1), *range(1, 30)]))
    free: list[int] = [c for c in candidates if low <= c <= high]
    first = free[0]
    for box in _windows(layout):
        values, valid, _ = stored(product.read(box), layout.storage)
        seen = set(np.unique(values[valid]).tolist())
        free = [c for c in free if c not in seen]
        if not free:
            return first  # every candidate occurs: valid samples are moved off it by one
    return int(free[0])


def _describe(dataset: Any, layout: Layout) -> None:
    """All metadata that is known beforehand: nothing can be added to a finished COG."""
    for n, band in enumerate(layout.bands, start=1):
        if band.name:
            dataset.set_band_description(n, band.name)
        if band.unit:
            dataset.set_band_unit(n, band.unit)
        if band.tags:
            dataset.update_tags(n, **band.tags)
        if band.palette is not None and layout.storage.dtype in ("uint8", "uint16"):
            dataset.write_colormap(n, dict(band.palette))
    if any(b.scale != 1.0 or b.offset != 0.0 for b in layout.bands):
        dataset.scales = tuple(b.scale for b in layout.bands)
        dataset.offsets = tuple(b.offset for b in layout.bands)
    if all(b.colour != "palette" for b in layout.bands):
        dataset.colorinterp = tuple(ColorInterp[b.colour] for b in layout.bands)
    dataset.update_tags(**dict(sorted(layout.tags.items())))
    if layout.gcps:
        dataset.gcps = (list(layout.gcps), layout.gcp_crs)
    if layout.rpcs is not None:
        dataset.rpcs = layout.rpcs


def _require_all_blocks(path: Path) -> None:
    """Raise OSError if a block was never written: GDAL reports a full disk on close only as a log line."""
    with gdal(), unplaced(), rasterio.open(os.fspath(path), driver="GTiff", sharing=False) as dataset:
        rows, columns = dataset.block_shapes[0]
        size = path.stat().st_size
        for i in range(-(-dataset.height // rows)):
            for j in range(-(-dataset.width // columns)):
                offset = dataset.get_tag_item(f"BLOCK_OFFSET_{j}_{i}", "TIFF", bidx=1)
                length = dataset.get_tag_item(f"BLOCK_SIZE_{j}_{i}", "TIFF", bidx=1)
                if offset is None or length is None or int(offset) + int(length) > size:
                    raise OSError("the file ended before its last block: no space is left, most likely")
