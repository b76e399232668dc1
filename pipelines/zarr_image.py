"""Images in zarr v3: what `ingest` writes, and a format to read from and write to.

IMAGE.zarr/zarr.json    attribute `truescale`: grid, channels and KEPT_FACTS (nothing else of the original's header)
IMAGE.zarr/samples      (c, *axes) float32 or float64, invalid samples 0
IMAGE.zarr/valid        (c, *axes) bool, only where samples can be invalid
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError, InputError, UsageError
from pipelines.grid import Box
from pipelines.image import SLAB_SAMPLES, Header, Source, header_from_json, header_to_json, slabs
from pipelines.store import COARSE_CHUNK, attempt, create_array, own_chunks, write_whole

if TYPE_CHECKING:
    import zarr

KEPT_FACTS = frozenset(
    (
        *("thickness_mm", "gap_mm", "slice_spacing_mm", "acquisition", "modality"),
        *("sensor", "degradation", "nodata", "validity", "refuse_networks", "crs", "area_or_point"),
    )
)
"""What super-resolving the image again needs; anything else of a header could, with other things, lead to a patient."""


BAND_SAMPLES = SLAB_SAMPLES
"""Samples of all channels that a band of whole chunks should have: what one process writes at a time."""

NEGATIVE_SHARE = 0.1
"""Negative samples up to this share of the largest are what resampling leaves beside edges."""

CT_BELOW = -500.0
"""Samples below are Hounsfield units of lung and air."""


class ZarrImage(Source):
    """A Source over a zarr group written by `ingest` or `ZarrSink`."""

    def __init__(self, path: Path) -> None:
        self._path = Path(path).absolute()
        try:
            text = (self._path / "zarr.json").read_bytes()
            data = json.loads(text)["attributes"]["truescale"]
            self._header = header_from_json(data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                what="the zarr folder was not written by truescale, or is incomplete",
                why="its samples have no known grid",
                fix="make it with 'truescale ingest'",
            ) from error
        self._identity = hashlib.sha256(text).hexdigest()[:16]
        self._arrays: tuple[zarr.Array[Any], zarr.Array[Any] | None] | None = None

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        return self._identity

    def blocks(self, max_samples: int) -> Iterator[Box]:
        yield from slabs(self._header.grid.shape, max_samples)

    def read(self, box: Box) -> NDArray[np.floating]:
        samples, valid = self._open()
        index = (slice(None), *box.slices)
        try:
            values = np.asarray(samples[index])
            if valid is not None:
                values = np.where(np.asarray(valid[index], bool), values, values.dtype.type(np.nan))
        except (ValueError, OSError) as error:  # a chunk whose checksum does not match
            raise InputError(what="a chunk of the zarr folder is damaged", fix="ingest the input again") from error
        return values

    def _open(self) -> tuple[zarr.Array[Any], zarr.Array[Any] | None]:
        import zarr

        if self._arrays is None:
            samples = zarr.open_array(str(self._path / "samples"), mode="r")
            has_mask = (self._path / "valid" / "zarr.json").exists()
            self._arrays = samples, zarr.open_array(str(self._path / "valid"), mode="r") if has_mask else None
        return self._arrays

    @property
    def anywhere(self) -> bool:
        return True

    def close(self) -> None:
        self._arrays = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]  # pickles by path: opening again is the definition


def open_zarr(path: Path) -> ZarrImage:
    """The image in a zarr group. Raises InputError if truescale did not write it."""
    return ZarrImage(path)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Per channel: valid samples, and the least and largest of them (None without any)."""

    valid: tuple[int, ...]
    minimum: tuple[float | None, ...]
    maximum: tuple[float | None, ...]


def doubts(header: Header, found: Statistics) -> list[str]:
    """What the samples say against the header, one line each."""
    low = min((v for v in found.minimum if v is not None), default=0.0)
    high = max((v for v in found.maximum if v is not None), default=0.0)
    if header.modality != "MR" or header.channels[0].kind != "image" or low >= -NEGATIVE_SHARE * abs(high):
        return []
    modality = header.facts.get("modality")
    if low <= CT_BELOW and modality and modality.origin == "assumed":
        told = 'with "Modality": "CT" in a JSON sidecar or ct in the name'
        return [f"samples down to {low:g} look like CT, but the volume was taken as MR: say so {told}"]
    return [f"samples down to {low:g}: magnitude MR has no negative ones, so its model of the noise does not hold"]


def write_image(source: Source, header: Header, path: Path) -> Statistics:
    """Copy a source into a new zarr group, band by band: whole chunks, so that each has one writer, wherever it is.

    `zarr.json` of the group comes last, so a folder without it is incomplete.
    """
    count, grid = len(header.channels), header.grid
    shape = (count, *grid.shape)
    chunks = tuple(min(c, n) for c, n in zip(COARSE_CHUNK[grid.ndim], grid.shape, strict=True))
    create_array(path, "samples", shape, header.working.name, (1, *chunks), None)
    if header.may_have_invalid:
        create_array(path, "valid", shape, "bool", (1, *chunks), None, fill=True)
    with attempt(path) as name:
        work = partial(_write_band, path.absolute(), name, header.may_have_invalid)
        parts = source.each(work, _bands(shape, chunks[0]))
    # the digest makes the identity of an image change with its samples
    digest = zlib.crc32(b"".join(part.digest.to_bytes(4, "little") for part in parts))
    kept = {name: fact for name, fact in header.facts.items() if name in KEPT_FACTS}
    public = replace(header, grid=header.grid.anonymous(), facts=kept)
    attributes = {"truescale": header_to_json(public), "crc32_of_samples": digest}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    write_whole(path / "zarr.json", json.dumps(group, indent=1, default=list) + "\n")
    return _statistics(parts, count)


def _bands(shape: Sequence[int], rows: int) -> list[Box]:
    """Whole rows of chunks of an array (c, *axes), as many as BAND_SAMPLES hold but at least one; rows: of a chunk."""
    _, length, *others = shape
    step = max(1, BAND_SAMPLES // (math.prod(shape) // length * rows)) * rows
    zeros = (0,) * len(others)
    return [Box((start, *zeros), (min(start + step, length), *others)) for start in range(0, length, step)]


@dataclass(frozen=True, slots=True)
class _Part:
    """What a band holds: the CRC-32 of its samples; per channel the valid ones, the least and the largest (or inf)."""

    digest: int
    valid: tuple[int, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]


def _write_band(path: Path, of: str, may_have_invalid: bool, source: Source, band: Box) -> _Part:
    """Copy one band, slab by slab, into chunks of its own, which take their place at the end. of: the attempt."""
    count = len(source.header.channels)
    number, low, high, digest = np.zeros(count, np.int64), np.full(count, np.inf), np.full(count, -np.inf), 0
    with own_chunks(path, of) as begun:
        for block in source.blocks(max(SLAB_SAMPLES // count, 1)):
            box = _common(block, band)
            if box is None:
                continue
            values = source.read(box)
            known = np.isfinite(values)
            whole = bool(known.all())
            if not (whole or may_have_invalid):
                raise InputError(
                    what="the input has invalid samples although its header rules them out", fix="set may_have_invalid"
                )
            digest = zlib.crc32(np.ascontiguousarray(values).tobytes(), digest)
            index = (slice(None), *box.slices)
            begun("samples")[index] = values if whole else np.where(known, values, 0)
            if not whole:
                begun("valid")[index] = known
            flat, known = values.reshape(count, -1), known.reshape(count, -1)
            number += known.sum(axis=1)
            low = np.minimum(low, np.where(known, flat, np.inf).min(axis=1))
            high = np.maximum(high, np.where(known, flat, -np.inf).max(axis=1))
    return _Part(digest, tuple(number.tolist()), tuple(low.tolist()), tuple(high.tolist()))


def _common(one: Box, other: Box) -> Box | None:
    """What lies in both boxes; None if nothing does."""
    start = tuple(max(a, b) for a, b in zip(one.start, other.start, strict=True))
    stop = tuple(min(a, b) for a, b in zip(one.stop, other.stop, strict=True))
    return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None


def _statistics(parts: Sequence[_Part], count: int) -> Statistics:
    """Of all bands together."""
    valid = tuple(sum(part.valid[c] for part in parts) for c in range(count))
    low = [min((part.minimum[c] for part in parts), default=math.inf) for c in range(count)]
    high = [max((part.maximum[c] for part in parts), default=-math.inf) for c in range(count)]
    return Statistics(
        valid,
        tuple(v if n else None for v, n in zip(low, valid, strict=True)),
        tuple(v if n else None for v, n in zip(high, valid, strict=True)),
    )


class ZarrSink:
    """Writes products as zarr."""

    def refuse(self, header: Header, path: Path) -> None:
        """Refuse nothing but an ending that is not `.zarr`."""
        del header
        if path.suffix != ".zarr":
            raise UsageError(what=f"'{path.name}' does not end with .zarr")

    def write(self, product: Source, original: Source | None, path: Path, note: dict[str, str]) -> dict[str, float]:
        """Write to a hidden folder beside `path`, then rename."""
        del original, note
        temporary = path.with_name(f".{path.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            write_image(product, replace(product.header, problems=()), temporary)
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
        except OSError as error:
            raise ExportError(
                what=f"the product could not be written ({error.strerror})", fix="free space and use --resume"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return {"clipped": 0}

    def overruling(self, path: Path) -> tuple[Path, ...]:
        """None."""
        del path
        return ()
