"""GeoTIFF in: a Source that reads windows, with validity per band, and the grid of a reference.

Only this package knows pixel corners, (x, y) order and CRS; everywhere else an index is the centre of a sample and
every tuple is in array order.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.windows import Window

from pipelines.errors import GeometryError, InputError, UsageError
from pipelines.grid import Box, Frame, Grid
from pipelines.image import SLAB_SAMPLES, Channel, Fact, Header, Source, ToldKind, working_dtype
from srgeo.admission import GDAL_ERRORS, admitted, gdal, opened, refuse_bombs
from srgeo.description import Description, describe
from srgeo.meaning import Meaning, meaning
from srgeo.sensors import DEFAULT_PROFILE

FILL = 1e30
"""Float samples beyond this are fill values (-3.4e38, 9.97e36...), declared or not: no radiometry reaches it."""

SIDECARS = (".aux.xml", ".msk", ".ovr")
"""Files beside NAME.tif that change what it says: NAME.tif + one of these."""

_UNITS = {"1": "m", "1000": "km", "0.3048": "ft", "0.30480061": "us-ft"}
"""Metres of a unit, nine digits -> its name: files spell 'us_survey_feet', 'US survey foot'..."""


def open_raster(
    path: str | Path,
    *,
    bands: tuple[int, ...] | None = None,
    nodata: float | None = None,
    kind: ToldKind | None = None,
) -> RasterSource:
    """The open raster at a local path; reads headers only.

    bands: numbers from 1, in the order wanted (None: all); nodata: told, wins over masks and headers; kind: told, wins
    over names. Raises UsageError for bands or a nodata value that cannot be, InputError for everything that is no sound
    GeoTIFF of imagery, GeometryError for an unusable transform.
    """
    return RasterSource(path, bands, nodata, kind)


def grid_of_reference(path: str | Path) -> Grid:
    """The grid of a raster, from its header alone. Raises InputError, GeometryError."""
    place = admitted(path)
    with gdal(), opened(place) as dataset:
        refuse_bombs(dataset, place.name)
        return grid_of(describe(dataset, place))


class RasterSource(Source):
    """A GeoTIFF as a Source. One GDAL handle per thread; pickles by path.

    description and meaning: what the file says of itself, for the writer of its product.
    """

    def __init__(
        self,
        path: str | Path,
        bands: tuple[int, ...] | None = None,
        nodata: float | None = None,
        kind: ToldKind | None = None,
    ) -> None:
        self.path = admitted(path)
        self._asked = (None if bands is None else tuple(bands), nodata, kind)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._handles: list[Any] = []
        dataset = self._dataset()
        try:
            with gdal():
                refuse_bombs(dataset, self.path.name)
                self.description = describe(dataset, self.path)
                self.meaning = meaning(self.description, self.path.stem, *self._asked)
                self._header = _header(self.description, self.meaning)
        except BaseException:
            self.close()
            raise

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        parts = [self.description.digest_text(), repr(self._asked)]
        for file in (self.path, *(self.path.with_name(self.path.name + end) for end in SIDECARS)):
            if file.exists():
                state = file.stat()
                parts.append(f"{state.st_size} {state.st_mtime_ns}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def blocks(self, max_samples: int) -> Iterator[Box]:
        """Row slabs of whole block rows; parts of one where it is larger than `max_samples`."""
        rows, columns = self.description.shape
        block_rows, block_columns = (min(b, n) for b, n in zip(self.description.block, (rows, columns), strict=True))
        limit = max(1, max_samples)
        if block_rows * columns <= limit:
            step, width = limit // (block_rows * columns) * block_rows, columns
        elif block_rows * block_columns <= limit and block_columns < columns:
            step, width = block_rows, limit // (block_rows * block_columns) * block_columns
        else:  # a strip larger than asked for: GDAL keeps it while its rows are read one after the other
            step, width = max(1, limit // columns), min(columns, max(1, limit))
        for top in range(0, rows, step):
            for left in range(0, columns, width):
                yield Box((top, left), (min(rows, top + step), min(columns, left + width)))

    def read(self, box: Box) -> NDArray[np.floating]:
        if box.clip(self._header.grid.shape) != box or box.size == 0:
            raise UsageError(what=f"rows and columns {box.start} to {box.stop} are not inside the raster")
        window = Window(box.start[1], box.start[0], box.shape[1], box.shape[0])
        dataset = self._dataset()
        indexes = [b.index for b in self.meaning.bands]
        try:
            with gdal():
                stored = dataset.read(indexes, window=window)
                valid = self._valid(dataset, stored, window)
        except GDAL_ERRORS as error:
            raise InputError(
                what=f"'{self.path.name}' is damaged in rows {box.start[0]} to {box.stop[0]}, "
                f"columns {box.start[1]} to {box.stop[1]}",
                why="GDAL cannot decode the blocks there",
                fix="fetch or write the file again",
            ) from error
        return _as_float(stored, valid, self.meaning)

    @property
    def anywhere(self) -> bool:
        """Not if a block is larger than what is read at a time: every process would decode it again."""
        return math.prod(self.description.block) <= SLAB_SAMPLES

    def close(self) -> None:
        with self._lock:
            handles, self._handles = self._handles, []
            self._local = threading.local()
        for handle in handles:
            handle.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return RasterSource, (str(self.path), *self._asked)

    def _dataset(self) -> Any:
        """The handle of the calling thread: GDAL datasets must not be shared."""
        dataset = getattr(self._local, "dataset", None)
        if dataset is None:
            dataset = opened(self.path)
            self._local.dataset = dataset
            with self._lock:
                self._handles.append(dataset)
        return dataset

    def _valid(self, dataset: Any, stored: NDArray[Any], window: Window) -> NDArray[np.bool_] | None:
        """Validity (bands, rows, columns) or (1, rows, columns), None if all are; alpha bands included."""
        m = self.meaning
        if m.validity == "mask":
            return np.asarray(dataset.read_masks(1, window=window) != 0)[None]
        if m.validity == "band masks":
            return np.asarray(dataset.read_masks([b.index for b in m.bands], window=window) != 0)
        if m.validity == "alpha":
            return np.asarray(dataset.read(m.alpha, window=window) > 0)[None]
        if m.validity == "nodata":
            return np.stack([_differs(band, value) for band, value in zip(stored, m.nodata, strict=True)])
        return None


def _differs(band: NDArray[Any], nodata: float | int | None) -> NDArray[np.bool_]:
    """Where samples are not nodata, compared in their stored type: -3.4e38 is rounded when stored."""
    if nodata is None:
        return np.ones(band.shape, bool)
    if math.isnan(nodata):
        return np.asarray(~np.isnan(band), bool)
    with np.errstate(over="ignore"):
        stored = np.asarray(nodata if band.dtype.kind == "f" else int(nodata)).astype(band.dtype)
    return np.asarray(band != stored, bool)


def _as_float(stored: NDArray[Any], valid: NDArray[np.bool_] | None, m: Meaning) -> NDArray[np.floating]:
    samples = stored.astype(working_dtype(m.bands[0].dtype))
    ok = np.broadcast_to(np.asarray(True), samples.shape) if valid is None else np.broadcast_to(valid, samples.shape)
    if stored.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            ok = ok & (np.abs(samples) < FILL)
    image = np.array([k != "alpha" for k in m.kinds])
    samples[~ok & image[:, None, None]] = np.nan
    return samples


def grid_of(description: Description) -> Grid:
    """Centres of the pixels in array order. Raises GeometryError unless the transform is finite and invertible."""
    t = description.grid_transform
    a, b, c, d, e, f = tuple(t)[:6]
    affine = np.array([[b, a, c + (a + b) / 2], [e, d, f + (d + e) / 2], [0.0, 0.0, 1.0]])
    try:
        return Grid("yx", description.shape, affine, _frame(description))
    except GeometryError as error:
        raise GeometryError(
            what=f"the transform ({', '.join(f'{v:.6g}' for v in tuple(t)[:6])}) is not finite or not invertible",
            why="its pixels have no place on the map",
            fix="repair the georeference first (gdal_edit.py -a_ullr)",
        ) from error


def _frame(description: Description) -> Frame:
    if not description.wkt:  # the same whether or not there is a transform: a product of such a file has one
        return Frame("pixel", "none", "")
    if description.crs.is_geographic:
        return Frame("degree", "map", description.wkt)
    if not description.crs.is_projected:  # engineering and geocentric systems
        return Frame(str(description.crs.linear_units or ""), "map", description.wkt)
    name, metres = description.crs.linear_units_factor
    return Frame(_UNITS.get(f"{float(metres):.9g}", str(name)), "map", description.wkt)


def corner_transform(grid: Grid) -> Affine:
    """The transform (column, row) of pixel corners of any grid."""
    (b, a, x), (e, d, y) = grid.affine[:2]
    return Affine(a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)


def _header(description: Description, m: Meaning) -> Header:
    channels, assumed = [], []
    for band, kind, guess in zip(m.bands, m.kinds, m.guesses, strict=True):
        name = band.name or band.tags.get("BANDNAME", "") or f"band {band.index}"
        own = m.sensor.profile(name) if m.sensor is not None else None
        if own is None and kind == "image":
            assumed.append(name)
        profile = own or DEFAULT_PROFILE
        channels.append(Channel(name, (profile, profile), kind, band.unit, guess=guess))
    facts = dict(m.facts)
    facts["sensor"] = Fact(m.sensor.name if m.sensor else None)
    if assumed:
        facts["degradation"] = Fact(str(DEFAULT_PROFILE), origin="assumed")
    else:
        facts["degradation"] = Fact(", ".join(f"{c.name} {c.profiles[0]}" for c in channels), origin="sensor")
    if description.wkt:
        facts["crs"] = Fact(_crs_name(description))
    if "AREA_OR_POINT" in description.tags:
        facts["area_or_point"] = Fact(description.tags["AREA_OR_POINT"])
    t = description.grid_transform
    return Header(
        grid=grid_of(description),
        channels=tuple(channels),
        dtype=m.bands[0].dtype,
        domain="geo",
        modality=m.modality,
        may_have_invalid=m.may_have_invalid,
        facts=facts,
        problems=m.problems,
        file_world=f"GDAL affine, (column, row) corners, {_crs_name(description) or 'no CRS'}",
        file_affine=((t.a, t.b, t.c), (t.d, t.e, t.f), (0.0, 0.0, 1.0)),
    )


def _crs_name(description: Description) -> str:
    if not description.crs:
        return ""
    code = description.crs.to_epsg()
    return f"EPSG:{code}" if code else description.wkt.split('"')[1] if '"' in description.wkt else "unnamed"
