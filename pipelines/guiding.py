"""A finer image that guides: cut to the product's grid, ingested beside the input, and how both go together.

WORK/guide.zarr holds its samples on the product's grid, WORK/lowered.zarr the same as the input's sensor would have
measured them: `pipelines.injection` compares those with the input.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipelines import interpolation
from pipelines.calibration import windows
from pipelines.degradation import Degradation
from pipelines.errors import InputError
from pipelines.filling import fill_invalid
from pipelines.grid import Box
from pipelines.image import Header, Source, slabs
from pipelines.injection import REACH, Lifting, Relating
from pipelines.planning import Calibration, GuideCalibration, Plan
from pipelines.store import Store
from pipelines.zarr_image import ZarrImage, write_image

FAR = interpolation.REACH["cubic"] + REACH
"""Coarse samples from the side of a window within which its samples know that it was cut out of the image."""


EXTRAPOLATED = 3
"""Scale up to which a kernel that was fitted on the coarse grid holds on the fine one.

A polynomial of the frequency: seen to hold at twice those it was fitted to, and to ring at six times.
"""


class CutSource(Source):
    """A part of another Source: the box that begins at `start`, on the grid of `header`; some of its channels."""

    def __init__(self, source: Source, header: Header, start: tuple[int, ...], channels: tuple[int, ...]) -> None:
        self._source, self._header, self._start, self._channels = source, header, start, channels

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        return self._source.identity

    def blocks(self, max_samples: int) -> Iterator[Box]:
        yield from slabs(self._header.grid.shape, max_samples)

    def read(self, box: Box) -> NDArray[np.floating]:
        start = tuple(a + s for a, s in zip(box.start, self._start, strict=True))
        stop = tuple(b + s for b, s in zip(box.stop, self._start, strict=True))
        return self._source.read(Box(start, stop))[list(self._channels)]


class LoweredSource(Source):
    """A fine image as a sensor on a coarse grid would measure it. Samples that it cannot see are like their neighbours.

    model: between the coarse grid, that of `header`, and the fine one.
    """

    def __init__(self, fine: Source, header: Header, model: Degradation) -> None:
        self._fine, self._header, self._model = fine, header, model
        seeing = [np.flatnonzero(model.sees(a)) for a in range(header.grid.ndim)]
        self._row_of = [
            seen[np.abs(seen - np.arange(n)[:, None]).argmin(axis=1)]
            for seen, n in zip(seeing, header.grid.shape, strict=True)
        ]

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        return self._fine.identity

    def blocks(self, max_samples: int) -> Iterator[Box]:
        step = self._model.fine_shape[0] // self._model.coarse_shape[0] + 1
        yield from slabs(self._header.grid.shape, max(1, max_samples // step**2))

    def read(self, box: Box) -> NDArray[np.floating]:
        rows = [own[a:b] for own, a, b in zip(self._row_of, box.start, box.stop, strict=True)]
        coarse = Box(tuple(int(r.min()) for r in rows), tuple(int(r.max()) + 1 for r in rows))
        fine = self._model.fine_box(coarse)
        made = self._model.crop(coarse, fine).forward(self._fine.read(fine))
        for a, (r, first) in enumerate(zip(rows, coarse.start, strict=True), start=1):
            made = made.take(r - first, axis=a)
        return made.astype(self._header.working)


def ingest(store: Store, guide: Source, made: Plan) -> None:
    """Copy the guide of a plan into its work folder, unless it is there. Raises InputError if it has changed."""
    told = made.guide
    assert told is not None
    if guide.identity != told.identity:
        raise InputError(
            what="the guide has changed since the plan was made", fix="run again once nothing writes to it"
        )
    if (store.read_json("guide.json") or {}).get("run") == made.run_hash:
        return
    for group in (store.guide, store.lowered):
        shutil.rmtree(group, ignore_errors=True)
    channels = tuple(guide.header.channels[c] for c in told.channels)
    header = replace(guide.header, grid=made.fine, channels=channels, problems=(), facts={})
    found = write_image(CutSource(guide, header, told.start, told.channels), header, store.guide)
    if min(found.valid) == 0:
        raise InputError(what="a band of the guide has no valid sample where the input lies", fix="check the guide")
    if header.may_have_invalid:
        with ZarrImage(store.guide) as image:
            fill_invalid(store.folder, image, store.guide)
    coarse = replace(header, grid=made.coarse, may_have_invalid=False, dtype="float32")
    filled = _Filled(store, replace(header, may_have_invalid=False))
    write_image(LoweredSource(filled, coarse, made.degradation(_first_image(made))), coarse, store.lowered)
    store.write_json("guide.json", {"run": made.run_hash})


def _first_image(made: Plan) -> int:
    """The channel whose blur makes a guide coarse: those of one sensor differ little."""
    return next(c for c, channel in enumerate(made.channels) if channel.treatment == "network")


class _Filled(Source):
    """The ingested guide with its holes filled."""

    def __init__(self, store: Store, header: Header) -> None:
        self._array, self._header = store.array(store.guide), header

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        return ""

    def blocks(self, max_samples: int) -> Iterator[Box]:
        yield from slabs(self._header.grid.shape, max_samples)

    def read(self, box: Box) -> NDArray[np.floating]:
        return np.asarray(self._array[(slice(None), *box.slices)])


def related(
    made: Plan, calibration: Calibration, read: Callable[[Box], NDArray[np.floating]], store: Store
) -> GuideCalibration:
    """How the guide goes with every channel, from the windows of the calibration. read: box -> samples (c, *box)."""
    lowered = store.array(store.lowered)
    boxes = list(windows(made.coarse.shape))
    guides = [np.asarray(lowered[(slice(None), *box.slices)], np.float64) for box in boxes]
    low, middle, high = np.quantile(
        np.concatenate([g.reshape(len(g), -1) for g in guides], axis=1), [0.01, 0.5, 0.99], axis=1
    )
    scale = np.where(high > low, high - low, 1.0)
    guides = [(g - middle[:, None, None]) / scale[:, None, None] for g in guides]
    measured = [np.asarray(read(box), np.float64) for box in boxes]
    fitted = []
    for c, own in enumerate(calibration.channels):
        relating = Relating(len(scale))
        channels = [(m[c] - own.centre) / own.scale for m in measured]
        for channel, g in zip(channels, guides, strict=True):
            relating.first(channel, g)
        near = max(place.scale for place in made.places) <= EXTRAPOLATED
        for box, channel, g in zip(boxes, channels, guides, strict=True):
            lifting, inner = _lifting(made, box)
            if near and all(part.stop > part.start for part in inner):
                relating.second(channel, g, lifting, inner)
        fitted.append(relating.relation)
    return GuideCalibration(tuple(middle.tolist()), tuple(scale.tolist()), tuple(fitted))


def _lifting(made: Plan, box: Box) -> tuple[Lifting, tuple[slice, ...]]:
    """From a window to the fine samples around it; which of these lie far enough from where it was cut out."""
    matrices, inner = [], []
    for place, start, stop in zip(made.places, box.start, box.stop, strict=True):
        u = place.positions()
        fine = np.flatnonzero((u >= start - 0.5) & (u <= stop - 0.5))
        low = start - 0.5 if start == 0 else start + FAR
        high = stop - 0.5 if stop == place.coarse else stop - 1 - FAR
        kept = np.flatnonzero((u[fine] >= low) & (u[fine] <= high))
        rows = slice(int(fine[0]), int(fine[-1]) + 1)
        matrices.append([interpolation.matrix(place, kind)[rows, start:stop].tocsr() for kind in ("cubic", "linear")])
        inner.append(slice(int(kept[0]), int(kept[-1]) + 1) if len(kept) else slice(0, 0))
    cubic, linear = (tuple(m[k] for m in matrices) for k in (0, 1))
    return Lifting(cubic, linear), tuple(inner)
