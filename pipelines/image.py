"""What an image says about itself, and the two seams to file formats: Source and Sink.

A Header is enough to plan without reading a pixel; it never holds what could identify a patient. A Source reads boxes
of samples; a Sink pulls boxes of a product, in the order its format likes, from anything that is a Source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.degradation import Degradation, Profile
from pipelines.errors import InputError, UsageError
from pipelines.grid import Box, Grid, Orientation

T = TypeVar("T")

ChannelKind = Literal["image", "classes", "alpha"]
"""image: super-resolved; classes: replicated (nearest), never interpolated; alpha: validity, replicated."""

ToldKind = Literal["image", "labels"]
"""What a user can say of channels whose kind the file does not declare."""

IN_PLANE = Profile("gaussian", 1.2)
"""Default blur of the in-plane axes of a volume, should they be upsampled (forward model)."""


MIN_SLICES = 4
"""Below this many slices there is next to nothing to learn about what lies between them."""


def working_dtype(stored: str) -> np.dtype[np.floating]:
    """float32, or float64 for stored types whose values float32's 24 bits do not hold."""
    wide = stored in ("float64", "int32", "uint32", "int64", "uint64")
    return np.dtype(np.float64 if wide else np.float32)


@dataclass(frozen=True, slots=True)
class Fact:
    """A value, its unit and where it came from ('header', 'sidecar', 'assumed', 'told', 'positions'...)."""

    value: str | float | int | bool | None
    unit: str = ""
    origin: str = "header"


@dataclass(frozen=True, slots=True)
class Channel:
    """One band or series. profiles: the sensor's blur, one per axis.

    guess: why it is taken for classes although the file does not declare it, '' if it does or is none.
    """

    name: str
    profiles: tuple[Profile, ...]
    kind: ChannelKind = "image"
    unit: str = ""
    noise_model: Literal["gaussian", "rician"] = "gaussian"
    guess: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What the user says about the degradation; wins over headers. `profile` wins over `thickness_mm`."""

    profile: Profile | None = None
    thickness_mm: float | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """Grid, channels and everything else that planning needs, without a pixel.

    dtype: of the stored samples ('uint16'); domain: 'med', 'geo' or '' (bare arrays); modality: 'MR', 'CT',
    'optical'...; slice_axis: the through-plane axis of a volume, else None; may_have_invalid: whether samples can be
    NaN; facts: name -> Fact (thickness_mm, nodata...); problems: what a user should know, one line each;
    anatomical_axes: e.g. 'foot-head' per axis; file_world and file_affine: the affine as the file itself states it, in
    its own axis order and world ('NIfTI RAS+ mm, (i, j, k) centres'), for people and reports only.
    """

    grid: Grid
    channels: tuple[Channel, ...]
    dtype: str = "float32"
    domain: Literal["med", "geo", ""] = ""
    modality: str = ""
    slice_axis: int | None = None
    may_have_invalid: bool = False
    facts: dict[str, Fact] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    anatomical_axes: tuple[str, ...] = ()
    file_world: str = ""
    file_affine: tuple[tuple[float, ...], ...] = ()

    @property
    def working(self) -> np.dtype[np.floating]:
        """What samples are read, computed between and kept as: see `working_dtype`."""
        return working_dtype(self.dtype)

    def profiles(self, channel: int, told: Told | None = None) -> tuple[Profile, ...]:
        """The blur of one channel per axis: what was told, else what the header knows.

        A profile whose width is a length ('slice', 'cosine', 'box') speaks of the slice axis of a volume, any other
        of every axis. A thickness alone keeps the kind of the header's profile.
        """
        told = told or Told()
        own = self.channels[channel].profiles
        if told.profile is not None:
            if told.profile.in_mm and self.slice_axis is not None:
                return tuple(told.profile if a == self.slice_axis else p for a, p in enumerate(own))
            return (told.profile,) * len(own)
        if told.thickness_mm is not None:
            if self.slice_axis is None:
                raise InputError(what="the input has no slices", why="a slice thickness says nothing about it")
            kind = own[self.slice_axis].kind if own[self.slice_axis].in_mm else "slice"
            thick = Profile(kind, told.thickness_mm)
            return tuple(thick if a == self.slice_axis else p for a, p in enumerate(own))
        return own

    def of_kind(self, kind: ToldKind | None) -> Header:
        """With all channels of the kind told; what the file itself declares as classes or alpha stays so."""
        if kind is None:
            return self
        if kind not in ("image", "labels"):
            raise UsageError(what=f"the kind '{kind}' is unknown", fix="say image or labels")
        wanted: ChannelKind = "image" if kind == "image" else "classes"
        guessed = (c if c.kind != "image" and not c.guess else replace(c, kind=wanted, guess="") for c in self.channels)
        return replace(self, channels=tuple(guessed))

    def turned(self, orientation: Orientation) -> Header:
        """What the same image says of itself along other axes; not the file's own affine, which no longer holds."""
        slice_axis = None if self.slice_axis is None else orientation.order.index(self.slice_axis)
        return replace(
            self,
            grid=orientation.grid(self.grid),
            channels=tuple(replace(c, profiles=orientation.axes(c.profiles)) for c in self.channels),
            slice_axis=slice_axis,
            anatomical_axes=orientation.names(self.anatomical_axes) if self.anatomical_axes else (),
            file_world="",
            file_affine=(),
        )

    def degradation(self, fine: Grid, channel: int = 0, told: Told | None = None) -> Degradation:
        """The forward model of one channel from `fine` to this header's grid."""
        return Degradation.between(self.grid, fine, self.profiles(channel, told))


def header_to_json(header: Header) -> dict[str, Any]:
    """Plain values; `header_from_json` gives the same header back."""
    data: dict[str, Any] = {name: getattr(header, name) for name in header.__dataclass_fields__}
    data["grid"] = header.grid.to_json()
    data["channels"] = [
        {**asdict(channel), "profiles": [str(p) for p in channel.profiles]} for channel in header.channels
    ]
    data["facts"] = {name: asdict(fact) for name, fact in header.facts.items()}
    return data


def header_from_json(data: dict[str, Any]) -> Header:
    """The header that `header_to_json` wrote."""
    channels = tuple(
        Channel(**{**c, "profiles": tuple(Profile.parse(p) for p in c["profiles"])}) for c in data["channels"]
    )
    return Header(
        **{
            **data,
            "grid": Grid.from_json(data["grid"]),
            "channels": channels,
            "facts": {name: Fact(**fact) for name, fact in data["facts"].items()},
            "problems": tuple(data["problems"]),
            "anatomical_axes": tuple(data["anatomical_axes"]),
            "file_affine": tuple(tuple(row) for row in data["file_affine"]),
        }
    )


class Source(Protocol):
    """An open image, to inherit from. Opening reads headers only; it pickles by path; use as a context manager."""

    @property
    def header(self) -> Header:
        """What is known without a pixel."""
        ...

    @property
    def identity(self) -> str:
        """A text that changes whenever the samples may have changed; holds no path and nothing of a patient."""
        ...

    def blocks(self, max_samples: int) -> Iterator[Box]:
        """Boxes of at most about `max_samples` per channel that hold each sample once, in the cheapest order."""
        ...

    def read(self, box: Box) -> NDArray[np.floating]:
        """Samples (channel, *box.shape) in file units, as `header.working`; NaN = invalid. No memory of earlier reads.

        Raises InputError if the file is damaged there.
        """
        ...

    @property
    def anywhere(self) -> bool:
        """Whether another process could read any box of it as cheaply as this one: no stream, nothing in memory."""
        return False

    def each(self, work: Callable[[Source, Box], T], boxes: Sequence[Box]) -> list[T]:
        """What `work(source, box)` returns for every box: called here in turn; another Source may know other places.

        work: picklable, and what it returns is small.
        """
        return [work(self, box) for box in boxes]

    def close(self) -> None:
        """Release the file, if one is held."""
        return

    def __enter__(self) -> Self:
        """The open image itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


class Sink(Protocol):
    """Writes products of one format. `original` is the open input, re-read for its tags; None for bare arrays."""

    def refuse(self, header: Header, path: Path) -> None:
        """Raise UsageError or InputError now if this format cannot hold such an image at `path`."""
        ...

    def write(self, product: Source, original: Source | None, path: Path, note: dict[str, str]) -> dict[str, float]:
        """Write `product` to a temporary name beside `path`, then rename. Same input, same bytes.

        note: provenance to carry where the format can (software, model, weights, degradation). Returns counts worth
        reporting: 'clipped' (samples outside the dtype). Raises ExportError; nothing half-written stays.
        """
        ...

    def overruling(self, path: Path) -> tuple[Path, ...]:
        """Files beside `path`, there or not, that readers believe more than the product itself."""
        ...


SLAB_SAMPLES = 4 << 20
"""Samples of all channels that are read, written or compared at a time."""


def slabs(shape: tuple[int, ...], max_samples: int) -> Iterator[Box]:
    """Boxes that cover an array along its slowest axis, each at most `max_samples` (or one slice thick)."""
    per_slice = int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, max_samples // max(1, per_slice))
    for start in range(0, shape[0], step):
        yield Box((start,) + (0,) * (len(shape) - 1), (min(shape[0], start + step), *shape[1:]))


class ArraySource(Source):
    """A Source over an array in memory: for tests, for the Python interface, for truths and products.

    samples: (channel, *grid.shape) or (*grid.shape), NaN = invalid.
    """

    def __init__(self, samples: NDArray[np.generic], header: Header) -> None:
        d = header.grid.ndim
        array = np.asarray(samples)
        if np.iscomplexobj(array):
            raise InputError(
                what="the array is complex",
                why="super-resolution speaks of one value per sample",
                fix="give its magnitude",
            )
        array = array[None] if array.ndim == d else array
        if array.shape != (len(header.channels), *header.grid.shape):
            raise InputError(
                what=f"an array of shape {array.shape} is not {len(header.channels)} channels of {header.grid.shape}",
                fix="give (channel, *shape) in array order, slowest axis first",
            )
        self._samples, self._header = array, header

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._samples).tobytes()).hexdigest()[:16]

    def blocks(self, max_samples: int) -> Iterator[Box]:
        yield from slabs(self._header.grid.shape, max_samples)

    def read(self, box: Box) -> NDArray[np.floating]:
        return np.array(self._samples[(slice(None), *box.slices)], self._header.working)


class TurnedSource(Source):
    """Another Source along other axes: a product with the axes of its reference, an input with those of its product."""

    def __init__(self, source: Source, orientation: Orientation) -> None:
        self._source, self._orientation = source, orientation
        self._header = source.header.turned(orientation)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        return self._source.identity

    def blocks(self, max_samples: int) -> Iterator[Box]:
        yield from slabs(self._header.grid.shape, max_samples)

    def read(self, box: Box) -> NDArray[np.floating]:
        own = self._orientation.inverse.box(box, self._header.grid.shape)
        return self._orientation.array(self._source.read(own))

    @property
    def anywhere(self) -> bool:
        return self._source.anywhere

    def close(self) -> None:
        self._source.close()
