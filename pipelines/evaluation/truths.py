"""What is measured on: the dev split of the project's data, or the images of any folder."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines import formats
from pipelines.errors import InputError
from pipelines.grid import Box
from pipelines.image import Header

CROP_VOLUME = 96
"""Samples per axis of the smoke suite's volumes."""

CROP_SCENE = 256
"""Samples per side of the smoke suite's scenes."""

LARGEST = 1 << 24
"""Samples of all channels of a truth, 3.1 GB at the peak (similarity); of a larger image its centre is measured."""

TISSUE = 0.02
"""Volumes: samples above this share of the 99.9th percentile are of the body."""

PAN_RATIOS = (1.5, 8.0)
"""Pixel of multispectral bands over that of the panchromatic one of the same place."""

BAND_20_M = (19.9, 20.1)
"""Pixels of the 20 m bands of Sentinel-2 [m]."""


HALF_PIXEL = 0.01
"""The 10 m bands of Sentinel-2 have half the pixel of its 20 m bands, to this share of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """An image that can be a truth, not yet read. subject: the person or place; pan_ratio: pixel over that of its PAN.

    header, identity: of its Source; guide: a finer image of the place, which a fusion may use.
    """

    path: Path
    subject: str
    name: str
    header: Header
    identity: str
    pan_ratio: int | None = None
    guide: Path | None = None

    @property
    def domain(self) -> str:
        """'med' for a volume, 'geo' for an image."""
        return "med" if self.header.grid.ndim == 3 else "geo"

    @property
    def fusions(self) -> tuple[str, ...]:
        """The fusion conditions it serves."""
        grid = self.header.grid
        low, high = BAND_20_M
        fine = grid.frame.unit == "m" and all(low < s < high for s in grid.spacing)
        return (*(("20m",) if fine else ()), *(("pan",) if self.pan_ratio else ()))


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """A fine image: the part `box` of an entry. samples: (channel, *shape), NaN = invalid; mask: what counts.

    header: of the part; peaks: (channel,), the 99.9th percentile (1 for a volume, which is scaled to it).
    """

    entry: Entry
    box: Box
    header: Header
    samples: NDArray[np.float64]
    mask: NDArray[np.bool_]
    peaks: NDArray[np.float64]

    @property
    def subject(self) -> str:
        """The person or place."""
        return self.entry.subject

    @property
    def name(self) -> str:
        """Of the image."""
        return self.entry.name

    @property
    def identity(self) -> str:
        """A text that changes whenever the samples may have."""
        return f"{self.entry.identity} {self.box.start} {self.box.stop}"


def entries(domains: Sequence[str], data: Path) -> tuple[list[Entry], dict[str, str]]:
    """(images to measure on, name -> why it was left out) of a data folder.

    data: the project's (med/ and geo/, each with a manifest.csv, of which the dev split counts), or any folder of
    NIfTI, DICOM series and rasters: what lies in one folder below it is of one subject or place. Raises InputError if
    nothing in it can be measured on.
    """
    listed = any((data / domain / "manifest.csv").is_file() for domain in ("med", "geo"))
    candidates = [c for d in domains for c in _listed(data, d)] if listed else list(_lying(data))
    found, left = [], {}
    for path, subject, name in candidates:
        try:
            with formats.open_source(path) as source:
                found.append(Entry(path, subject, name, source.header, source.identity))
        except InputError as error:
            left[f"{subject} {name}"] = str(error)
    kept = [_beside_finer(_beside_pan(e, found), found) for e in found if e.domain in domains]
    if not kept:
        kind = {"med": "volume", "geo": "raster"}
        refused = [f"{name}: {why}" for name, why in left.items()]
        more = f" ({len(refused) - 1} more were refused)" if len(refused) > 1 else ""
        raise InputError(
            what=f"there is no {' and no '.join(kind[d] for d in domains)} to measure on in the data folder{more}",
            why=refused[0] if refused else "",
            fix="name a folder of NIfTI, DICOM series or GeoTIFF with --data",
        )
    return kept, left


def _listed(data: Path, domain: str) -> Iterator[tuple[Path, str, str]]:
    """(path, subject, name) of the dev volumes or scenes. Raises InputError without a manifest."""
    table = data / domain / "manifest.csv"
    if not table.is_file():
        raise InputError(what=f"there is no {domain}/manifest.csv in the data folder", fix="name another with --data")
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "dev"]
    for row in rows:
        path = Path(row["path"])
        if domain == "med" and row["kind"] == "volume":
            yield data / domain / path, row["subject"], _stem(path.name)
        elif domain == "geo" and path.parts[0] == "scenes":
            yield data / domain / path, path.parts[2], _stem(path.name)


def _lying(data: Path) -> Iterator[tuple[Path, str, str]]:
    """(path, subject, name) of all that a reader may know below a folder; DICOM slices are one image a folder."""
    for text, folders, files in os.walk(data):
        folder = Path(text)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        zarrs = [f for f in folders if (folder / f / "zarr.json").is_file()]
        folders[:] = [f for f in folders if f not in zarrs]
        kinds = {name: _kind(folder / name) for name in sorted(files) if not name.startswith(".")}
        images = [folder / name for name in (*zarrs, *(n for n, kind in kinds.items() if kind in ("nifti", "raster")))]
        for path in [folder, *images] if "dicom" in kinds.values() else images:
            parts = path.relative_to(data).parts or (data.resolve().name,)
            name = "/".join((*parts[1:-1], _stem(parts[-1])))
            yield path, parts[0] if len(parts) > 1 else name, name


def _kind(path: Path) -> str:
    try:
        return formats.kind_of(path)
    except InputError:
        return ""


def _stem(name: str) -> str:
    """A file's name without what says its format."""
    return Path(name.removesuffix(".gz")).stem


def _beside_pan(entry: Entry, found: Sequence[Entry]) -> Entry:
    """With the ratio to the panchromatic band of its place: one band, the same frame, a finer pixel."""
    if entry.domain != "geo" or len(entry.header.channels) < 2:
        return entry
    own = entry.header.grid
    for other in found:
        grid = other.header.grid
        if other.subject != entry.subject or len(other.header.channels) != 1 or grid.frame != own.frame:
            continue
        ratio = own.spacing[0] / grid.spacing[0]
        if PAN_RATIOS[0] <= ratio <= PAN_RATIOS[1]:
            return replace(entry, pan_ratio=round(ratio), guide=other.path)
    return entry


def _beside_finer(entry: Entry, found: Sequence[Entry]) -> Entry:
    """With the bands of its place that have half its pixel, if it has none that is panchromatic."""
    if entry.guide is not None or not entry.fusions:
        return entry
    own = entry.header.grid
    for other in found:
        grid = other.header.grid
        if other.subject == entry.subject and grid.frame == own.frame:
            ratios = [a / b for a, b in zip(own.spacing, grid.spacing, strict=True)]
            if all(abs(ratio - 2) < HALF_PIXEL for ratio in ratios):
                return replace(entry, guide=other.path)
    return entry


def read(entry: Entry, *, whole: bool) -> Truth | str:
    """The truth of an entry, or in words why it is none. whole: of larger images than `LARGEST` still the centre.

    Raises InputError if the file is damaged.
    """
    return _volume(entry, whole=whole) if entry.domain == "med" else _scene(entry, whole=whole)


def _centre(shape: tuple[int, ...], extent: int) -> Box:
    start = tuple(max(0, (n - extent) // 2) for n in shape)
    return Box(start, tuple(min(n, a + extent) for a, n in zip(start, shape, strict=True)))


def _bounded(shape: tuple[int, ...], channels: int) -> Box:
    """The whole, or the largest central box of `LARGEST` samples, cut along the longest axes."""
    extent = max(shape)
    while channels * np.prod([min(n, extent) for n in shape]) > LARGEST:
        extent -= 1
    return _centre(shape, extent)


def _part(header: Header, box: Box, channels: Sequence[int]) -> Header:
    """The header of the part `box` of some channels, as bare samples."""
    kept = tuple(header.channels[k] for k in channels)
    return replace(header, grid=header.grid.crop(box), channels=kept, dtype="float32", problems=())


def _volume(entry: Entry, *, whole: bool) -> Truth | str:
    shape = entry.header.grid.shape
    if entry.header.channels[0].kind != "image":
        return "it holds classes, not an image"
    box = _bounded(shape, 1)
    with formats.open_source(entry.path) as source:
        values = source.read(box)[:1].astype(np.float64)
    valid = np.isfinite(values)
    peak = np.percentile(values[valid], 99.9) if valid.any() else 0.0
    if not peak > 0:
        return "its 99.9th percentile is not above 0"
    values /= peak
    mask = (body(np.where(valid, values, 0.0)[0]) & valid[0])[None]
    inner = Box((0, 0, 0), box.shape) if whole else _centre(box.shape, CROP_VOLUME)
    index = (slice(None), *inner.slices)
    if not mask[index].any():
        return "nothing in it is above 2 % of its 99.9th percentile"
    crop = Box(*(tuple(a + b for a, b in zip(box.start, end, strict=True)) for end in (inner.start, inner.stop)))
    return Truth(entry, crop, _part(entry.header, crop, (0,)), values[index].copy(), mask[index].copy(), np.ones(1))


def body(volume: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where a volume scaled to its 99.9th percentile counts: above 0.02, closed by 2, filled, dilated by 2."""
    bright = np.pad(np.asarray(volume) > TISSUE, 2)  # or the closing would eat what touches the border
    closed = ndimage.binary_closing(bright, iterations=2)
    filled = ndimage.binary_fill_holes(closed)
    dilated = np.asarray(ndimage.binary_dilation(filled, iterations=2), bool)
    return dilated[tuple(slice(2, -2) for _ in range(volume.ndim))]


def _scene(entry: Entry, *, whole: bool) -> Truth | str:
    """Of the bands that are images with contrast in the part looked at."""
    shape, channels = entry.header.grid.shape, entry.header.channels
    box = _bounded(shape, len(channels)) if whole else _centre(shape, CROP_SCENE)
    with formats.open_source(entry.path) as source:
        values = source.read(box).astype(np.float64)
    valid = np.isfinite(values)
    kept = [
        k
        for k, channel in enumerate(channels)
        if channel.kind == "image" and valid[k].mean() > 0.5 and np.ptp(values[k][valid[k]]) > 0
    ]
    if not kept:
        return "no band is an image with contrast"
    values, valid = values[kept], valid[kept]
    peaks = np.array([np.percentile(v[m], 99.9) for v, m in zip(values, valid, strict=True)])
    if not (peaks > 0).all():
        return "the 99.9th percentile of a band is not above 0"
    return Truth(entry, box, _part(entry.header, box, kept), values, valid, peaks)
