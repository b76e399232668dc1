"""One tile: read, interpolate, refine, project, write, record.

A pure function of the plan, the calibration and the coarse samples, so any worker, in any order, makes the same bytes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipelines import interpolation
from pipelines.degradation import Degradation, Profile, along
from pipelines.errors import StoreError, TruescaleError, UsageError
from pipelines.grid import Box, Placement
from pipelines.networks import Condition, Guidance, GuidedPredictor, Predictor, load, load_guided
from pipelines.networks.ensemble import Ensemble
from pipelines.networks.guided_shape import GuidedOptions
from pipelines.planning import Calibration, Plan, libraries, solved
from pipelines.projection import Residual, Solver, Spectrum
from pipelines.sizing import SPECTRA_BYTES, process_bytes
from pipelines.store import Ledger, Record, Store
from pipelines.tiles import Tile, reflected

TRIM_SHARE = 0.9
"""Of the memory that a process was planned to have: beyond, what lies unused in the heap is given back."""


@dataclass(frozen=True, slots=True, eq=False)
class GuideWindow:
    """Samples of a guide: lowered (g, *coarse box) beside those of a Window, fine (g, *box)."""

    box: Box
    fine: NDArray[np.floating]
    lowered: NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Coarse samples of a tile: box (inside the image), samples and valid (c, *box), seconds it took to read them."""

    box: Box
    samples: NDArray[np.floating]
    valid: NDArray[np.bool_]
    seconds: float
    guide: GuideWindow | None = None


class Worker:
    """What all tiles of one run share: plan, calibration, arrays, network, matrices. Thread-safe.

    Raises UsageError where the libraries are not those of the plan.
    """

    def __init__(self, folder: Path, device: str = "cpu", threads: int | None = None) -> None:
        self.store = Store(folder)
        data, calibration = self.store.read_json("plan.json"), self.store.read_json("calibration.json")
        if data is None or calibration is None:
            raise StoreError(what="the work folder holds no plan", fix="start the run again")
        self.plan = Plan.from_json(data)
        _refuse_other_libraries(self.plan)
        self.calibration = Calibration.from_json(calibration)
        self.card = self.plan.card
        self.cover, self.solved = self.plan.cover(self.card), solved(self.plan)
        self.places = self.plan.places
        self.models = [self.plan.degradation(c) for c in range(len(self.plan.channels))]
        self._coarse, self._fine = self.store.array(self.store.coarse), self.store.array(self.store.fine)
        self._valid = self.store.array(self.store.coarse, "valid") if self.store.has_mask() else None
        self._guide = self.store.array(self.store.guide) if self.plan.guide else None
        self._lowered = self.store.array(self.store.lowered) if self.plan.guide else None
        self._device, self._threads = device, threads
        self.trim_bytes = int(TRIM_SHARE * process_bytes(self.plan, self.card, self.plan.shard))
        self._axis = lru_cache(maxsize=512)(self._axis_uncached)
        self._spectra = _Spectra()

    @cached_property
    def predictor(self) -> Predictor | GuidedPredictor | None:
        """The network, loaded once; None for interpolations."""
        if not self.card.network:
            return None
        if self.card.guided:
            return load_guided(self.card, device=self._device, threads=self._threads, precision=self.plan.precision)
        network = load(self.card, device=self._device, threads=self._threads, precision=self.plan.precision)
        return Ensemble(network) if self.plan.ensemble else network

    def read(self, tile: Tile) -> Window:
        """The coarse samples that a tile needs, inside the image."""
        started = time.perf_counter()
        hulls = [
            reflected(a, b, n) for a, b, n in zip(tile.read.start, tile.read.stop, self.plan.coarse.shape, strict=True)
        ]
        box = Box(tuple(int(h.min()) for h in hulls), tuple(int(h.max()) + 1 for h in hulls))
        samples = np.asarray(self._coarse[(slice(None), *box.slices)])
        if self._valid is None:
            valid = np.ones(samples.shape, bool)
        else:
            valid = np.asarray(self._valid[(slice(None), *box.slices)], bool)
        return Window(box, samples, valid, time.perf_counter() - started, self._read_guide(tile, box))

    def _read_guide(self, tile: Tile, coarse: Box) -> GuideWindow | None:
        if self._guide is None or self._lowered is None:
            return None
        box = tile.estimate.grow(GuidedOptions.of(self.card.options).guide_halo).clip(self.plan.fine.shape)
        fine, lowered = (
            np.asarray(array[(slice(None), *own.slices)])
            for array, own in ((self._guide, box), (self._lowered, coarse))
        )
        return GuideWindow(box, fine, lowered)

    def compute(self, tile: Tile, window: Window) -> tuple[NDArray[np.floating], Record]:
        """The fine samples (c, *write) of a tile and its record, still without a checksum."""
        started = time.perf_counter()
        residual = self._network(tile, window)
        seconds = {"read": window.seconds, "network": time.perf_counter() - started}
        started = time.perf_counter()
        result = np.empty((len(self.plan.channels), *tile.write.shape), self.plan.working)
        before = []
        for c in range(len(self.plan.channels)):
            found = Residual()
            for part in self.solved.parts(tile):
                own = part.estimate.within(tile.estimate).slices
                refined = residual[c][own] if residual is not None and c in residual else None
                image, first = self._estimate(part, window, c, refined)
                image = image[part.write.within(part.estimate).slices]
                if not np.isfinite(image).all():
                    raise TruescaleError(what="the result is not finite", why="the samples or the weights are damaged")
                result[c][part.write.within(tile.write).slices] = image
                found = found.merged(first)
            before.append((found.sum_squares, found.count, found.maximum))
        seconds["projection"] = time.perf_counter() - started
        threads = self._threads if self._threads and self._device != "cuda" else 1
        return result, Record(tile.index, self.plan.run_hash, 0, seconds, tuple(before), threads)

    def write(self, tile: Tile, values: NDArray[np.floating], record: Record, ledger: Ledger, writer: str) -> Record:
        """Write the shard, then its record: in that order."""
        started = time.perf_counter()
        checksum = self.store.write_shard(self._fine, values, self.cover.position(tile.index))
        done = replace(record, checksum=checksum, seconds={**record.seconds, "write": time.perf_counter() - started})
        ledger.append(writer, done)
        return done

    def _network(self, tile: Tile, window: Window) -> dict[int, NDArray[np.float32]] | None:
        """Channel -> residual on `estimate`, over the channel's scale; None without a network."""
        chosen = [c for c, channel in enumerate(self.calibration.channels) if channel.refined]
        if self.predictor is None or not chosen:
            return None
        folded = [
            reflected(a, b, n) - o
            for a, b, n, o in zip(
                tile.read.start, tile.read.stop, self.plan.coarse.shape, window.box.start, strict=True
            )
        ]
        if window.guide is not None:
            return self._guided(tile, window, window.guide, chosen, folded)
        extended = window.samples[np.ix_(np.array(chosen), *folded)]
        shape = (-1,) + (1,) * self.plan.coarse.ndim
        numbers = [self.calibration.channels[c] for c in chosen]
        centre = np.array([n.centre for n in numbers]).reshape(shape)
        scale = np.array([n.scale for n in numbers]).reshape(shape)
        condition = Condition(
            blur_fwhm_coarse=tuple(self._blur(c) for c in chosen),
            noise_over_scale=tuple(n.noise_sigma / n.scale for n in numbers),
        )
        normal = np.subtract(extended, centre, dtype=np.float64)
        normal /= scale
        normal = normal.astype(np.float32)
        del extended
        network = cast(Predictor, self.predictor)
        refined = network.residual(normal, tile.read, tile.estimate, self.places, condition)
        return {c: refined[k] for k, c in enumerate(chosen)}

    def _guided(
        self, tile: Tile, window: Window, guide: GuideWindow, chosen: Sequence[int], folded: Sequence[NDArray[np.intp]]
    ) -> dict[int, NDArray[np.float32]]:
        """The same from a guide. folded: where the reflected coarse samples lie in the window."""
        told = self.calibration.guide
        assert told is not None
        every = np.arange(len(guide.fine))
        numbers = [self.calibration.channels[c] for c in chosen]
        samples = window.samples[np.ix_(np.array(chosen), *folded)]
        guidance = Guidance(
            lowered=_normal(guide.lowered[np.ix_(every, *folded)], told.centre, told.scale),
            fine=_normal(guide.fine, told.centre, told.scale),
            box=guide.box,
            relations=tuple(told.relations[c] for c in chosen),
        )
        normal = _normal(samples, [n.centre for n in numbers], [n.scale for n in numbers])
        network = cast(GuidedPredictor, self.predictor)
        refined = network.residual(normal, tile.read, tile.estimate, self.places, guidance)
        return {c: refined[k] for k, c in enumerate(chosen)}

    def _blur(self, channel: int) -> float:
        """Full width at half maximum of the blur of the axis that is refined most, in coarse samples."""
        scales = [place.scale for place in self.places]
        axis, grid = scales.index(max(scales)), self.plan.coarse
        profile = Profile.parse(self.plan.channels[channel].spec[axis])
        return profile.fwhm_coarse(grid.spacing[axis], millimetres=grid.frame.unit == "mm")

    def _estimate(
        self, part: Tile, window: Window, channel: int, refined: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float64], Residual]:
        """The finished samples of a part on its `estimate`, in input units; their residual before the projection.

        refined: what a network adds to the interpolation, over the channel's scale.
        """
        planned = self.plan.channels[channel]
        image = self._interpolate(
            part, window, channel, "nearest" if planned.treatment == "nearest" else self.card.interpolation
        )
        if refined is not None:
            image += np.multiply(refined, self.calibration.channels[channel].scale, dtype=np.float64)
            if self.card.estimates == "error":  # where it was interpolated it may swing below zero
                np.maximum(image, 0.0, out=image)
        if not planned.project or 0 in part.rows.shape:  # far outside the input nothing was measured
            return image, Residual()
        return self._project(part, window, channel, image)

    def _interpolate(self, part: Tile, window: Window, channel: int, kind: str) -> NDArray[np.float64]:
        """The base estimate on `estimate`, in input units."""
        if kind == "none":
            return np.zeros(part.estimate.shape)
        seen = _nearest_box(part.read, window.box)
        image = np.array(window.samples[channel][seen.within(window.box).slices], np.float64)
        for a, place in reversed(list(enumerate(self.places))):  # so the last result lies in order
            start, stop = part.estimate.start[a], part.estimate.stop[a]
            if place.changed:
                rows = interpolation.matrix(place, kind)[start:stop, seen.start[a] : seen.stop[a]]
                image = along(rows.tocsr(), image, a)
            else:
                cut = [slice(None)] * image.ndim
                cut[a] = slice(start - seen.start[a], stop - seen.start[a])
                image = image[tuple(cut)]
        return image

    def _project(
        self, part: Tile, window: Window, channel: int, image: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], Residual]:
        """The projected estimate, and the residual of the part's own rows before."""
        model = self.models[channel]
        matrices: list[sparse.csr_array | None] = [None] * len(self.places)
        spectra = []
        # channels of one blur share their matrices
        twin = next(c for c, other in enumerate(self.plan.channels) if other.spec == self.plan.channels[channel].spec)
        for a in model.changed:
            rows, fine = (part.rows.start[a], part.rows.stop[a]), (part.estimate.start[a], part.estimate.stop[a])
            matrices[a], spectrum = self._axis(twin, a, rows, fine)
            spectra.append(spectrum)
        local = Degradation(part.rows.shape, part.estimate.shape, tuple(matrices))
        own = part.rows.within(window.box).slices
        residual = window.samples[channel][own].astype(np.float64) - local.forward(image)
        counted = np.zeros(residual.shape, bool)
        counted[_own_rows(part, self.places).within(part.rows).slices] = True
        counted &= window.valid[channel][own]
        image += Solver(local, self.calibration.channels[channel].weight, spectra).correction(residual)
        return image, Residual.of(residual[counted])

    def _axis_uncached(
        self, channel: int, axis: int, rows: tuple[int, int], fine: tuple[int, int]
    ) -> tuple[sparse.csr_array, Spectrum]:
        """Rows of one axis on the estimate's samples, with their eigenvectors: shared by a whole row of tiles."""
        whole = self.models[channel]
        one = Degradation((whole.coarse_shape[axis],), (whole.fine_shape[axis],), (whole.matrices[axis],))
        matrix = one.crop(Box((rows[0],), (rows[1],)), Box((fine[0],), (fine[1],))).matrices[0]
        assert matrix is not None
        return matrix, self._spectra.of(matrix)


def _normal(samples: NDArray[np.floating], centre: Sequence[float], scale: Sequence[float]) -> NDArray[np.float32]:
    """(samples - centre) / scale of (n, y, x), one of each per image."""
    middle, width = (np.array(each, np.float64)[:, None, None] for each in (centre, scale))
    return np.asarray((samples - middle) / width, np.float32)


class _Spectra:
    """Eigenvectors by the content of their matrix (most tiles of a large image share one), within SPECTRA_BYTES."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Spectrum] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, matrix: sparse.csr_array) -> Spectrum:
        digest = hashlib.sha256()
        for part in (matrix.indptr, matrix.indices, matrix.data):
            digest.update(part.tobytes())
        key = digest.digest()
        with self._lock:  # held while computing: two threads want the same one more often than two different ones
            found = self._kept.pop(key, None)
            if found is None:
                found = Spectrum.of(matrix)
                self._bytes += found.vectors.nbytes
            self._kept[key] = found
            while self._bytes > SPECTRA_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].vectors.nbytes
        return found


def _nearest_box(box: Box, inside: Box) -> Box:
    """The part of a box that lies inside another; if there is none, the samples nearest to it."""
    start = tuple(min(max(a, low), high - 1) for a, low, high in zip(box.start, inside.start, inside.stop, strict=True))
    stop = tuple(max(min(b, high), a + 1) for a, b, high in zip(start, box.stop, inside.stop, strict=True))
    return Box(start, stop)


def _refuse_other_libraries(plan: Plan) -> None:
    here = libraries(plan.libraries)
    other = [f"{name} {here[name]}, not {told}" for name, told in plan.libraries.items() if here[name] != told]
    if other:
        raise UsageError(
            what=f"a process has other libraries than the run was planned with ({'; '.join(other)})",
            why="other versions round differently, and the product would be a mixture",
            fix="install the same versions wherever its tiles are made",
        )


def _own_rows(tile: Tile, places: Sequence[Placement]) -> Box:
    """Coarse samples whose centre lies in the write box: they partition the image over the tiles."""
    start, stop = [], []
    for a, place in enumerate(places):
        low, high = tile.write.start[a], tile.write.stop[a]
        first = -(-(2 * (low - place.first) - 1) // (2 * place.scale))  # smallest j with centre >= low - 1/2
        last = -(-(2 * (high - place.first) - 1) // (2 * place.scale))
        start.append(max(tile.rows.start[a], int(first)))
        stop.append(max(start[-1], min(tile.rows.stop[a], int(last))))
    return Box(tuple(start), tuple(stop))
