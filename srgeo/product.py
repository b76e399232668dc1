"""What a product file says: its transform, control points, colours and tags, from the input and the two grids."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine

from pipelines.grid import Grid, Orientation, Placement, placements
from pipelines.image import ChannelKind, Header
from srgeo.casting import Storage
from srgeo.description import PIXEL_GRID_TAG, Description, fits
from srgeo.meaning import Meaning
from srgeo.raster import RasterSource, corner_transform

Scheme = Literal["all", "nodata", "shared nodata", "mask", "alpha"]
"""How the product marks invalid samples; 'shared nodata': a value that no band uses has still to be found."""

NOTE_PREFIX = "TRUESCALE_"
"""Of all tags that tell how a product was made."""

OVERVIEW_TAG = "OVR_RESAMPLING_ALG"
"""Where rio-cogeo notes how the overviews of a file were made."""

_STALE = re.compile(
    r"^(STATISTICS_|OVERVIEW_|OVR_RESAMPLING|HISTOGRAM|CHECKSUM|INTERNAL_MASK_FLAGS|TRUESCALE_)"
    r"|^(LAYOUT|COMPRESSION|INTERLEAVE|PREDICTOR|TIFFTAG_MINSAMPLEVALUE|TIFFTAG_MAXSAMPLEVALUE)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class BandLayout:
    """What one band of the product says."""

    name: str
    kind: ChannelKind
    colour: str
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    tags: Mapping[str, str] | None = None
    palette: Mapping[int, tuple[int, int, int, int]] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A product file before its samples. transform: of pixel corners, None where GCPs or RPC place it."""

    shape: tuple[int, int]
    storage: Storage
    scheme: Scheme
    transform: Affine | None
    crs: Any
    bands: tuple[BandLayout, ...]
    tags: Mapping[str, str]
    gcps: tuple[Any, ...] = ()
    gcp_crs: Any = None
    rpcs: Any = None
    premultiplied: bool = False

    @property
    def has_classes(self) -> bool:
        """Whether a band holds classes, which must not be averaged."""
        return any(b.kind == "classes" for b in self.bands)

    def marked(self, scheme: Scheme, nodata: float | int | None = None) -> Layout:
        """The same with another way to mark invalid samples."""
        return replace(self, scheme=scheme, storage=replace(self.storage, nodata=nodata))


def layout_of(header: Header, original: RasterSource | None, note: Mapping[str, str]) -> Layout:
    """The layout of a product with this header, made from `original` if that is a raster."""
    tags = {NOTE_PREFIX + re.sub(r"\W+", "_", k).upper(): str(v) for k, v in sorted(note.items())}
    if original is None:
        return _bare_layout(header, tags)
    description, m = original.description, original.meaning
    orientation = Orientation.onto(header.grid, original.header.grid)
    axes = placements(original.header.grid, orientation.grid(header.grid))
    transform = (
        corner_transform(header.grid)
        if orientation.turns
        else product_transform(description.grid_transform, axes, header.grid)
    )
    pinned = description.transform is None and (bool(description.gcps) or description.rpcs is not None)
    if pinned:
        tags[PIXEL_GRID_TAG] = " ".join(f"{v:.17g}" for v in tuple(transform)[:6])
    scheme, nodata = _scheme(header, m)
    return Layout(
        shape=(header.grid.shape[0], header.grid.shape[1]),
        storage=Storage(m.bands[0].dtype, _bits(m), nodata),
        scheme=scheme,
        transform=None if pinned else transform,
        crs=None if pinned else description.crs,
        bands=_bands(m),
        tags={**_carried_tags(description, orientation.inverse.axes(axes), pinned, "classes" in m.kinds), **tags},
        gcps=_scaled_gcps(description, axes) if pinned else (),
        gcp_crs=description.gcp_crs if pinned else None,
        rpcs=None if orientation.turns else _scaled_rpcs(description, axes),
        premultiplied=description.structure.get("ALPHA", "").upper() == "PREMULTIPLIED",
    )


def _bare_layout(header: Header, tags: dict[str, str]) -> Layout:
    is_float = np.dtype(header.dtype).kind == "f"
    dtype = {"float16": "float32"}.get(header.dtype, header.dtype)
    nodata = _told_nodata(header)
    if not header.may_have_invalid:
        scheme: Scheme = "all"
    else:
        scheme = "nodata" if is_float or nodata is not None else "mask"
    bands = [
        BandLayout(c.name, c.kind, "alpha" if c.kind == "alpha" else "gray" if n == 0 else "undefined", c.unit)
        for n, c in enumerate(header.channels)
    ]
    return Layout(
        shape=(header.grid.shape[0], header.grid.shape[1]),
        storage=Storage(dtype, nodata=None if scheme != "nodata" else math.nan if nodata is None else nodata),
        scheme="alpha" if any(c.kind == "alpha" for c in header.channels) else scheme,
        transform=corner_transform(header.grid),
        crs=CRS.from_wkt(header.grid.frame.id) if header.grid.frame.kind == "map" and header.grid.frame.id else None,
        bands=tuple(bands),
        tags=tags,
    )


def _told_nodata(header: Header) -> float | int | None:
    """The one nodata value of a raster that came by another format (ingested to zarr), None without one."""
    try:
        value = float(str(header.facts["nodata"].value))
    except (KeyError, ValueError):  # none, or different ones
        return None
    if not fits(value, header.dtype):
        return None
    return value if np.dtype(header.dtype).kind == "f" else int(value)


def _bits(m: Meaning) -> int | None:
    """Bits that limit the values: of integers only; half precision is widened, not rounded again."""
    return None if "float" in m.bands[0].dtype else m.bands[0].bits


def _scheme(header: Header, m: Meaning) -> tuple[Scheme, float | int | None]:
    is_float = "float" in m.bands[0].dtype
    if m.validity == "nodata":
        values = [v for v, k in zip(m.nodata, m.kinds, strict=True) if k != "alpha"]
        first = values[0]
        if all(repr(v) == repr(first) for v in values) and first is not None:
            return "nodata", first
        return ("nodata", float("nan")) if is_float else ("shared nodata", None)
    if m.validity == "band masks":
        return ("nodata", float("nan")) if is_float else ("shared nodata", None)
    if m.validity == "mask":
        return "mask", None
    if m.validity == "alpha":
        return ("alpha" if "alpha" in m.kinds else "mask"), None
    return ("mask" if header.may_have_invalid and not is_float else "all"), None


def _step(place: Placement) -> tuple[Fraction, Fraction]:
    """(s, k): corner coordinate u of the input is s u + k of the product."""
    return place.scale, place.first + Fraction(1, 2) - place.scale / 2


def product_transform(transform: Affine, axes: tuple[Placement, ...], grid: Grid) -> Affine:
    """The transform of the product: exactly `T * scale(1/s)` where the outer corners agree.

    With a shared centre, `T * translation * scale`; of any other grid (a reference), that grid's own.
    """
    (s_row, k_row), (s_col, k_col) = (_step(a) for a in axes)
    rescaled = all(2 * k == p.fine - p.coarse * s for p, (s, k) in zip(axes, map(_step, axes), strict=True))
    if not rescaled:
        return corner_transform(grid)
    a, b, c, d, e, f = tuple(transform)[:6]
    shift_col, shift_row = float(-k_col / s_col), float(-k_row / s_row)  # 0 where the corners agree
    col, row = float(1 / s_col), float(1 / s_row)
    return Affine(
        a * col, b * row, a * shift_col + b * shift_row + c, d * col, e * row, d * shift_col + e * shift_row + f
    )


def _scaled_gcps(description: Description, axes: tuple[Placement, ...]) -> tuple[Any, ...]:
    """Ground control points count pixels from the corner."""
    (s_row, k_row), (s_col, k_col) = (tuple(map(float, _step(a))) for a in axes)
    return tuple(
        GroundControlPoint(g.row * s_row + k_row, g.col * s_col + k_col, g.x, g.y, g.z, g.id, g.info)
        for g in description.gcps
    )


def _scaled_rpcs(description: Description, axes: tuple[Placement, ...]) -> Any:
    """RPC count pixels from the centre of the first: `LINE_OFF' = (LINE_OFF + 1/2) s + k - 1/2`."""
    if description.rpcs is None:
        return None
    (s_row, k_row), (s_col, k_col) = (tuple(map(float, _step(a))) for a in axes)
    rpcs = copy.copy(description.rpcs)
    rpcs.line_off = (rpcs.line_off + 0.5) * s_row + k_row - 0.5
    rpcs.samp_off = (rpcs.samp_off + 0.5) * s_col + k_col - 0.5
    rpcs.line_scale, rpcs.samp_scale = rpcs.line_scale * s_row, rpcs.samp_scale * s_col
    return rpcs


def _carried_tags(
    description: Description, axes: tuple[Placement, ...], pinned: bool, has_classes: bool
) -> dict[str, str]:
    tags = {k: v for k, v in description.tags.items() if not _STALE.search(k)}
    for key, axis in (("TIFFTAG_XRESOLUTION", axes[1]), ("TIFFTAG_YRESOLUTION", axes[0])):
        if key in tags:
            tags[key] = _times(tags[key], float(axis.scale))
    if pinned:  # GDAL shifts control points of 'Point' files by a pixel when they are written
        tags["AREA_OR_POINT"] = "Area"
    for domain, items in sorted(description.domains.items()):  # the COG driver keeps the default domain only
        tags[f"{NOTE_PREFIX}DOMAIN_{domain}"] = json.dumps(dict(sorted(items.items())))
    if OVERVIEW_TAG in description.tags:  # of the product's own overviews
        tags[OVERVIEW_TAG] = "NEAREST" if has_classes else "AVERAGE"
    return tags


def _times(number: str, factor: float) -> str:
    try:
        return f"{float(number) * factor:.9g}"
    except ValueError:
        return number


def _bands(m: Meaning) -> tuple[BandLayout, ...]:
    result = []
    for b, kind in zip(m.bands, m.kinds, strict=True):
        colour = "undefined" if b.colour == "alpha" and kind != "alpha" else b.colour
        palette = b.palette if kind == "classes" and len(m.bands) == 1 else None
        if colour == "palette" and palette is None:
            colour = "undefined"
        tags = {k: v for k, v in b.tags.items() if not _STALE.search(k)}
        result.append(BandLayout(b.name, kind, colour, b.unit, b.scale, b.offset, tags, palette))
    return tuple(result)
