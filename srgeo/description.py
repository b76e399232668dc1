"""Everything a raster says about itself, read once: what the header, the reader and the product's metadata need."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rasterio.errors import RasterioError
from rasterio.transform import Affine

Validity = Literal["all", "nodata", "mask", "band masks", "alpha"]
"""What decides whether a sample is valid, after GDAL's RFC 15: mask, then nodata, then alpha, else all are."""

PIXEL_GRID_TAG = "TRUESCALE_PIXEL_GRID"
"""Six numbers that place the samples of a product with GCPs or RPC on the pixels of its input (corner convention)."""

GDAL_NODATA = 42113
"""Number of the TIFF tag that holds the nodata value as text."""

WKT_DIGITS = 12
"""Of the numbers of a CRS: GeoTIFF keys turn 298.257222101 into 298.257222101004."""

_OWN_DOMAINS = frozenset({"", "IMAGE_STRUCTURE", "DERIVED_SUBDATASETS", "SUBDATASETS", "RPC", "rio_creation_kwds"})
_DROPPED_DOMAINS = re.compile(
    r"^(xml:|json:|GEOLOCATION$|OVERVIEWS$|TIFF$|_)", re.IGNORECASE
)  # paths inside, or verbatim files


@dataclass(frozen=True, slots=True)
class Band:
    """One band of a file. index counts from 1; nodata: as declared, whether or not the type can hold it."""

    index: int
    name: str
    dtype: str
    bits: int | None
    nodata: float | int | None
    colour: str
    unit: str
    scale: float
    offset: float
    tags: Mapping[str, str]
    palette: Mapping[int, tuple[int, int, int, int]] | None
    has_categories: bool


@dataclass(frozen=True, slots=True)
class Description:
    """A raster without its samples. transform: pixel corners (column, row) to world (x, y), None if there is none."""

    shape: tuple[int, int]
    block: tuple[int, int]
    transform: Affine | None
    crs: Any
    bands: tuple[Band, ...]
    validity: Validity
    tags: Mapping[str, str]
    structure: Mapping[str, str]
    domains: Mapping[str, Mapping[str, str]]
    gcps: tuple[Any, ...]
    gcp_crs: Any
    rpcs: Any
    subdatasets: int
    impossible_nodata: bool

    @property
    def grid_transform(self) -> Affine:
        """The transform that places samples: the file's own, else that of its pixels."""
        if self.transform is not None:
            return self.transform
        numbers = self.tags.get(PIXEL_GRID_TAG, "").split()
        try:
            return Affine(*map(float, numbers)) if len(numbers) == 6 else Affine.identity()
        except ValueError:
            return Affine.identity()

    @property
    def wkt(self) -> str:
        """The CRS of the transform as WKT2 that can be compared, '' without one."""
        if self.crs is None or self.transform is None:
            return ""
        return comparable_wkt(str(self.crs.to_wkt(version="WKT2_2019")))

    def digest_text(self) -> str:
        """A text of everything here that decides what samples are read, for the identity."""
        numbers = [list(self.grid_transform)[:6], self.shape, self.validity, self.block]
        bands = [(b.index, b.name, b.dtype, b.bits, repr(b.nodata), b.colour) for b in self.bands]
        return json.dumps([numbers, self.wkt, bands, sorted(self.tags.items())], default=str)


def describe(dataset: Any, path: Path) -> Description:
    """The description of an open rasterio dataset; `path` for what only its sidecar says."""
    transform = dataset.transform
    gcps, gcp_crs = dataset.gcps
    # rasterio says identity where a file has none
    has_transform = transform != Affine.identity()
    domains = {
        ns: dict(dataset.tags(ns=ns))
        for ns in dataset.tag_namespaces()
        if ns not in _OWN_DOMAINS and not _DROPPED_DOMAINS.match(ns)
    }
    return Description(
        shape=(dataset.height, dataset.width),
        block=dataset.block_shapes[0],
        transform=transform if has_transform else None,
        crs=dataset.crs,
        bands=_bands(dataset, path),
        validity=_validity(dataset),
        tags=dict(dataset.tags()),
        structure=dict(dataset.tags(ns="IMAGE_STRUCTURE")),
        domains=domains,
        gcps=tuple(gcps),
        gcp_crs=gcp_crs,
        rpcs=dataset.rpcs,
        subdatasets=len(dataset.subdatasets),
        impossible_nodata=_declares_impossible_nodata(dataset, path),
    )


def _bands(dataset: Any, path: Path) -> tuple[Band, ...]:
    categories = _bands_with_categories(path.with_name(path.name + ".aux.xml"))
    bands = []
    for n in range(dataset.count):
        structure = dataset.tags(n + 1, ns="IMAGE_STRUCTURE")
        bits = structure.get("NBITS")
        bands.append(
            Band(
                index=n + 1,
                name=(dataset.descriptions[n] or "").strip(),
                dtype=dataset.dtypes[n],
                bits=int(bits) if bits and bits.isdigit() else None,
                nodata=dataset.nodatavals[n],
                colour=_colour(dataset, n),
                unit=dataset.units[n] or "",
                scale=float(dataset.scales[n]),
                offset=float(dataset.offsets[n]),
                tags=dict(dataset.tags(n + 1)),
                palette=_palette(dataset, n + 1),
                has_categories=(n + 1) in categories,
            )
        )
    return tuple(bands)


def _colour(dataset: Any, n: int) -> str:
    try:
        return str(dataset.colorinterp[n].name)
    except ValueError:  # GDAL 3.10 knows interpretations (near infrared...) that rasterio has no name for
        return "undefined"


def _palette(dataset: Any, index: int) -> dict[int, tuple[int, int, int, int]] | None:
    try:
        return dict(dataset.colormap(index))
    except (ValueError, RasterioError):
        return None


def _bands_with_categories(sidecar: Path) -> set[int]:
    """Numbers of the bands whose sidecar names categories. Read as text: no XML entity is ever expanded."""
    if not sidecar.is_file():
        return set()
    text = sidecar.read_bytes()
    parts = re.split(rb'<PAMRasterBand\s+band="(\d+)"', text)[1:]
    return {int(n) for n, part in zip(parts[::2], parts[1::2], strict=True) if b"<CategoryNames" in part}


def _validity(dataset: Any) -> Validity:
    flags = {flag.name for band in dataset.mask_flag_enums for flag in band}
    first = {flag.name for flag in dataset.mask_flag_enums[0]}
    if "alpha" in first:
        return "alpha"
    if {"per_dataset", "nodata"} <= first:  # NODATA_VALUES: invalid where all bands hold theirs
        return "mask"
    if "per_dataset" in first:
        return "mask"
    if "nodata" in flags:
        return "nodata"
    return "all" if flags <= {"all_valid"} and all(dataset.mask_flag_enums) else "band masks"


def comparable_wkt(text: str) -> str:
    """WKT2 that is the same after a CRS was stored in GeoTIFF keys and read again.

    With an EPSG code of the whole it is. Else the keys change names of units, inner codes and last digits.
    """
    if re.search(r'ID\["EPSG",\d+\]\]$', text):
        return text
    text = re.sub(r',ID\["[^"]*",[^\]]*\]', "", text)
    text = re.sub(r'(LENGTHUNIT|ANGLEUNIT|SCALEUNIT)\["[^"]*"', r'\1["unit"', text)
    return re.sub(r"(?<=[,\[])-?\d+\.\d+(?=[,\]])", lambda number: f"{float(number[0]):.{WKT_DIGITS}g}", text)


def _declares_impossible_nodata(dataset: Any, path: Path) -> bool:
    """Whether a nodata value is declared that rasterio keeps back because the type of its band cannot hold it."""
    if all(value is not None for value in dataset.nodatavals):
        return False
    sidecar = path.with_name(path.name + ".aux.xml")
    in_sidecar = sidecar.is_file() and b"<NoDataValue" in sidecar.read_bytes()
    return (in_sidecar or _has_tag(path, GDAL_NODATA)) and all(value is None for value in dataset.nodatavals)


def _has_tag(path: Path, wanted: int) -> bool:
    """Whether the first directory of a TIFF has a tag. False if it cannot be followed."""
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        file.seek(struct.unpack(order + "Q", head[8:16])[0] if big else struct.unpack(order + "I", head[4:8])[0])
        width, entry = (8, 20) if big else (2, 12)
        start = file.read(width)
        count = int.from_bytes(start, "little" if order == "<" else "big") if len(start) == width else 0
        entries = file.read(min(count, 4096) * entry)
    tags = (entries[at : at + 2] for at in range(0, len(entries) - 1, entry))
    return any(struct.unpack(order + "H", tag)[0] == wanted for tag in tags)


def fits(value: float | int, dtype: str) -> bool:
    """Whether samples of this type can equal `value`."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return True
    if not np.isfinite(value) or value != int(value):
        return False
    limits = np.iinfo(kind)
    return int(limits.min) <= int(value) <= int(limits.max)
