"""Which file is read and written by what: tables of 'module:name', so no arrow points from the core to a domain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pipelines.errors import InputError, UsageError
from pipelines.grid import Grid
from pipelines.image import Sink, Source

READERS: Mapping[str, str] = {
    "nifti": "srmed.nifti:open_nifti",
    "dicom": "srmed.dicom:open_dicom",
    "raster": "srgeo.raster:open_raster",
    "zarr": "pipelines.zarr_image:open_zarr",
}
"""Kind of file -> function (path, **options) -> Source."""

GRIDS: Mapping[str, str] = {
    "nifti": "srmed.nifti_header:grid_of_reference",
    "raster": "srgeo.raster:grid_of_reference",
}
"""Kind of file -> function (path) -> Grid, where an image that is no good input is still a good reference."""

WRITERS: Mapping[str, str] = {
    ".nii": "srmed.nifti:NiftiSink",
    ".nii.gz": "srmed.nifti:NiftiSink",
    ".tif": "srgeo.cog:CogSink",
    ".tiff": "srgeo.cog:CogSink",
    ".zarr": "pipelines.zarr_image:ZarrSink",
}
"""Ending -> Sink."""

OPTIONS: Mapping[str, Mapping[str, str]] = {
    "raster": {"bands": "bands", "nodata": "nodata", "kind": "kind"},
    "nifti": {"slice_thickness": "thickness_mm", "kind": "kind"},
    "dicom": {"slice_thickness": "thickness_mm", "kind": ""},
    "zarr": {"slice_thickness": "", "kind": ""},
}
"""What a reader can be told: option -> its argument, '' where planning alone uses it."""

MAGIC: tuple[tuple[int, tuple[bytes, ...], str], ...] = (
    (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "raster"),
    (344, (b"n+1\0", b"ni1\0"), "nifti"),
    (4, (b"n+2\0", b"ni2\0"), "nifti"),
    (128, (b"DICM",), "dicom"),
)
"""(offset, signatures, kind): looked at only when the name says nothing."""

HEAD_BYTES = 512
"""Enough for all of them."""

SAFE = (".safe", ".safe.zip")
"""Endings of a product of the Copernicus archives, in small letters."""

STAC_BYTES = 1 << 20
"""Of a JSON file, in which a STAC item says that it is one: items measure some tens of kB."""


def _load(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def kind_of(path: Path) -> str:
    """The key of READERS for a path, by its name, then by its first bytes. Raises InputError."""
    text = str(path)
    if re.match(r"[A-Za-z][\w+.-]+:/", text) or text.startswith("/vsi"):
        raise InputError(
            what=f"'{path.name}' is a remote path", why="the network is never used", fix="download the file first"
        )
    if not path.exists():
        raise InputError(what=f"there is no file or folder '{path.name}'", fix="check the path")
    name = path.name.lower()
    if name.endswith(SAFE):
        raise InputError(what="SAFE products are not read yet", fix="give the band as a GeoTIFF")
    if path.is_dir():
        if (path / "zarr.json").exists():
            return "zarr"
        _refuse_scenes(path)
        return "dicom"
    if path.stat().st_size == 0:
        raise InputError(what=f"'{path.name}' is empty", fix="fetch it again")
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith((".tif", ".tiff", ".vrt", ".jp2", ".img", ".png", ".jpg", ".jpeg")):
        return "raster"  # which says itself what it does not read
    with path.open("rb") as file:
        found = _kind_of_content(file.read(HEAD_BYTES))
    if found:
        return found
    raise InputError(
        what=f"'{path.name}' is of an unknown kind",
        why="truescale reads NIfTI (.nii, .nii.gz), folders of DICOM slices, GeoTIFF and its own .zarr",
        fix="convert it to one of these",
    )


def _kind_of_content(head: bytes) -> str:
    """What the first bytes of a file say it is, '' if nothing."""
    if b"<VRTDataset" in head:
        return "raster"
    matches = (kind for at, signatures, kind in MAGIC if any(head[at : at + len(s)] == s for s in signatures))
    return next(matches, "")


def _refuse_scenes(folder: Path) -> None:
    """Raise InputError for a folder of satellite scenes: only a folder of DICOM slices is one image."""
    if any(folder.glob("*.[tT][iI][fF]*")):
        raise InputError(
            what=f"'{folder.name}' is a folder of rasters", why="a raster is one file", fix="name one of its GeoTIFFs"
        )
    safe = any(p.name.lower().endswith(SAFE) for p in folder.glob("*"))
    item = any(b'"stac_version"' in _start(p, STAC_BYTES) for p in folder.glob("*.[jJ][sS][oO][nN]"))
    if not (safe or item) or any(_kind_of_content(_start(p, HEAD_BYTES)) == "dicom" for p in folder.rglob("*")):
        return
    if safe:
        raise InputError(
            what=f"'{folder.name}' holds SAFE products, which are not read yet", fix="give the band as a GeoTIFF"
        )
    raise InputError(
        what=f"'{folder.name}' holds a STAC item and none of its rasters",
        why="an item says where they are, and the network is never used",
        fix="download a band and name its GeoTIFF",
    )


def _start(path: Path, count: int) -> bytes:
    """The first bytes of what lies in a folder; none of what is no file or must not be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def open_source(path: str | Path, **options: Any) -> Source:
    """The open input at a path. options: bands, nodata, slice_thickness [mm], kind. Raises InputError or UsageError."""
    path = Path(path)
    kind = kind_of(path)
    taken, given = OPTIONS[kind], {}
    for name, value in options.items():
        if value is None:
            continue
        if name not in taken:
            raise UsageError(what=f"--{name.replace('_', '-')} means nothing for a {kind} input", fix="leave it out")
        if taken[name]:
            given[taken[name]] = value
    return cast("Source", _load(READERS[kind])(path, **given))


def grid_of(path: str | Path) -> Grid:
    """The grid of a `--like` file: also of a mask, a map of a quantity or a series. Raises InputError."""
    path = Path(path)
    kind = kind_of(path)
    if kind in GRIDS:
        return cast("Grid", _load(GRIDS[kind])(path))
    with open_source(path) as source:
        return source.header.grid


def ending(path: Path) -> str:
    """The key of WRITERS for an output path. Raises UsageError."""
    name = path.name.lower()
    for suffix in sorted(WRITERS, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    if name.endswith(".dcm"):
        raise UsageError(what="DICOM cannot be written yet", fix="write .nii.gz")
    what = f"no writer for '{path.name}'" if path.suffix else f"the output '{path.name}' does not say its format"
    raise UsageError(what=what, fix=f"end it with one of {', '.join(sorted(WRITERS))}")


def sink_for(path: str | Path) -> Sink:
    """The Sink for an output path. Raises UsageError."""
    return cast("Sink", _load(WRITERS[ending(Path(path))])())
