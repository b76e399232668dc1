"""Running a lattice network on boxes of samples: planes of volumes in both views, bands of images in blocks."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipelines.card import BETWEEN, ModelCard, finest
from pipelines.errors import ModelError
from pipelines.grid import Box, Placement
from pipelines.networks import Condition
from pipelines.networks.certificate import certify
from pipelines.networks.lanes import Lanes
from pipelines.networks.lattice import LatticeNet, condition_features, locate, place_pixels, place_rows
from pipelines.networks.shape import BLOCK, LEAST_ERROR, LatticeOptions
from pipelines.networks.weights import fill, misfit, prepare

BATCH_SAMPLES = {"cpu": 32768, "cuda": 1 << 20}
"""Lattice samples of planes a network sees at once: features stay near a processor's caches, and fill a GPU."""

BLOCKS = {"cpu": BLOCK, "cuda": 1152}
"""Lattice samples per side of a block of an image, at most, for the same reasons: with CUDA a tile at once."""

MOST_PHASES = 64
"""Of the distinct positions of fine samples between coarse ones: a head for each of more costs more than it saves."""

Array = NDArray[np.float32]


def load(card: ModelCard, device: str = "cpu", threads: int | None = None, precision: str = "fp32") -> LatticePredictor:
    """The predictor of a card.

    Raises ModelError if the weights are not those of the card or do not fit it, or if the receptive field is another.
    """
    card.verify()
    prepare(device, precision, threads)
    try:
        options = LatticeOptions.of(card.options)
        net = LatticeNet(options, mixed=precision == "bf16")
    except (TypeError, RuntimeError) as error:
        raise misfit(card, error) from error
    fill(net, card)
    certify(LatticePredictor(net, batch_samples=1), card)
    return LatticePredictor(net, device)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Fine samples of a write box on one upsampled axis: nearest global lattice index, and which phase each has."""

    rows: NDArray[np.int64]
    which: NDArray[np.int64]
    phases: tuple[Fraction, ...]

    @classmethod
    def of(cls, place: Placement, start: int, stop: int) -> _Axis:
        """Phases repeat: after as many fine samples as the scale's numerator, as many lattice samples as its other."""
        period, step = place.scale.numerator, place.scale.denominator
        if period <= MOST_PHASES:
            rows, phases = locate(place.coordinates(0, period))
            turn, which = np.divmod(np.arange(start, stop), period)
            return cls(np.array(rows)[which] + turn * step, which, tuple(phases))
        rows, phases = locate(place.coordinates(start, stop))
        distinct = sorted(set(phases))
        number = {p: n for n, p in enumerate(distinct)}
        return cls(np.array(rows), np.array([number[p] for p in phases]), tuple(distinct))

    def part(self, cut: slice) -> _Axis:
        """Some of them."""
        return _Axis(self.rows[cut], self.which[cut], self.phases)

    def blocks(self, most: int) -> Iterator[tuple[slice, range]]:
        """Runs of fine samples, and the at most so many lattice indices that each is made of: always as many."""
        length = self.high + 1 - self.low
        count = math.ceil(length / most)
        size = math.ceil(length / count)
        edges = np.searchsorted(self.rows, [*(self.low + size * np.arange(count)), self.high + 1])
        for n, (first, last) in enumerate(pairwise(edges)):
            start = min(self.low + n * size, self.high + 1 - size)  # the last one is shifted inwards
            yield slice(int(first), int(last)), range(start, start + size)

    @property
    def low(self) -> int:
        return int(self.rows[0])

    @property
    def high(self) -> int:
        return int(self.rows[-1])


@dataclass(frozen=True, slots=True)
class _Between:
    """How a residual on lattice indices first, first + 1, ... is interpolated on an axis: Catmull-Rom, 4 taps.

    At the lattice points themselves it changes nothing.
    """

    first: int
    weights: Array

    @classmethod
    def of(cls, axis: _Axis) -> _Between:
        first, last = axis.low - BETWEEN, axis.high + BETWEEN
        weights = np.zeros((len(axis.rows), last - first + 1), np.float32)
        for n, (row, number) in enumerate(zip(axis.rows, axis.which, strict=True)):
            phase = axis.phases[number]
            low = row if phase >= 0 else row - 1
            t = float(phase if phase >= 0 else phase + 1)
            taps = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
            weights[n, low - 1 - first : low + 3 - first] = np.array(taps) / 2
        return cls(first, weights)

    def applied(self, image: Array, axis: int) -> Array:
        return np.asarray(np.moveaxis(np.tensordot(self.weights, image, (1, axis)), 0, axis))


def _replaced(write: Box, between: dict[int, _Between]) -> Box:
    """The box with lattice indices on the axes that are interpolated afterwards."""
    start, stop = list(write.start), list(write.stop)
    for a, own in between.items():
        start[a], stop[a] = own.first, own.first + own.weights.shape[1]
    return Box(tuple(start), tuple(stop))


class LatticePredictor:
    """A Predictor (see `pipelines.networks`) of one network on one device."""

    def __init__(self, net: LatticeNet, device: str = "cpu", *, batch_samples: int | None = None) -> None:
        self.options: LatticeOptions = net.options
        self.device = device
        self._batch_samples = batch_samples or BATCH_SAMPLES[device]
        self._block = BLOCKS[device]
        self._own = threading.local()  # each thread has lanes of its own
        self._basis = copy.deepcopy(net.basis).double().cpu().eval()  # phases are exact, so their weights should be
        # the weights in the order of the samples: else they are put into it for every batch
        self._net = net.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device == "cuda":
            torch.cuda.synchronize()  # lanes wait for no other stream

    @property
    def _lanes(self) -> Lanes:
        if not hasattr(self._own, "lanes"):
            self._own.lanes = Lanes(self.device)
        return cast(Lanes, self._own.lanes)

    @property
    def halo(self) -> tuple[int, ...]:
        """Coarse samples per side; of a volume the upsampled axis first."""
        first, second = self.options.halo
        return (first, second, second) if self.options.phases == 1 else (first, second)

    @property
    def multiple_of(self) -> tuple[int, ...]:
        """Any box will do: folding starts at even global indices."""
        return (1,) * len(self.halo)

    def reach(self, places: tuple[Placement, ...]) -> tuple[int, ...]:
        """Halo per axis of the array that `places` describe.

        A volume's other axes may be cut, shifted or refined less: there the residual is interpolated.
        """
        changed = sum(p.changed for p in places)
        of_volume = self.options.phases == 1
        axis = finest([p.scale for p in places])
        fits = axis is not None if of_volume else changed == 2
        if len(places) != len(self.halo) or not fits:
            kind = "one axis of a volume most" if of_volume else "both axes of an image"
            raise ModelError(
                what=f"this network upsamples {kind}, not {changed} of {len(places)} axes",
                fix="choose another model or scale",
            )
        if not of_volume:
            return self.halo
        return tuple(
            self.halo[0] if a == axis else self.halo[1] + BETWEEN * place.changed for a, place in enumerate(places)
        )

    def residual(
        self, samples: Array, read: Box, write: Box, places: tuple[Placement, ...], condition: Condition
    ) -> Array:
        """See `Predictor.residual`."""
        try:
            return self._residual(samples, read, write, places, condition)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                what="the device has no memory left for a tile",
                why="others use it, or its tiles are too large",
                fix="give a smaller --memory for smaller tiles (a new run), or --device cpu",
            ) from error

    def _residual(
        self, samples: Array, read: Box, write: Box, places: tuple[Placement, ...], condition: Condition
    ) -> Array:
        halo = self.reach(places)
        axes = {a: _Axis.of(p, write.start[a], write.stop[a]) for a, p in enumerate(places) if p.changed}
        self._refuse_short(read, write, axes, halo)
        axis = finest([p.scale for p in places])
        result = np.empty((len(samples), *write.shape), np.float32)
        with torch.inference_mode(), self._lanes.computing():
            for c, (blur, noise) in enumerate(zip(condition.blur_fwhm_coarse, condition.noise_over_scale, strict=True)):
                scale = float(max(p.scale for p in places))
                told = torch.tensor(condition_features(scale, blur, noise), dtype=torch.float64)
                if self.options.phases == 1:
                    assert axis is not None
                    between = {a: _Between.of(own) for a, own in axes.items() if a != axis}
                    inner = _replaced(write, between)
                    target = np.empty(inner.shape, np.float32) if between else result[c]
                    self._volume(samples[c], read, inner, (axis, axes[axis]), told, target)
                    for a, own in between.items():
                        target = own.applied(target, a)
                    result[c] = target
                else:
                    self._image(samples[c], read, axes[0], axes[1], told, result[c])
            self._lanes.finish()
        return result

    def _refuse_short(self, read: Box, write: Box, axes: dict[int, _Axis], halo: tuple[int, ...]) -> None:
        for a, h in enumerate(halo):
            low, high = (axes[a].low, axes[a].high) if a in axes else (write.start[a], write.stop[a] - 1)
            if read.start[a] > low - h or read.stop[a] <= high + h:
                raise ModelError(
                    what=f"samples {read.start[a]} to {read.stop[a]} on axis {a} are too few for the network",
                    why=f"it needs {h} on each side of {low} to {high}",
                )

    def _volume(
        self, samples: Array, read: Box, write: Box, changed: tuple[int, _Axis], told: Tensor, result: Array
    ) -> None:
        """Write the mean of both views to `result` (*write.shape)."""
        a, axis = changed
        for n, (b, c) in enumerate(_others(a)):
            order = (c, b, a)  # planes, columns, rows
            view = self._view(samples.transpose(order), _part(read, order), _part(write, (c, b)), axis, told)
            target = result.transpose(c, a, b)
            if n == 0:
                np.multiply(view, np.float32(0.5), out=target)
            else:
                target += np.float32(0.5) * view

    def _view(self, samples: Array, read: Box, write: Box, axis: _Axis, told: Tensor) -> Array:
        """The residual (planes, fine rows, columns) of samples (planes, columns, rows); write: (planes, columns)."""
        o = self.options
        margin_rows, margin_columns = o.margin
        fold = o.fold
        first = write.start[1] // fold * fold - fold * margin_columns  # folding starts at global multiples
        last = -(-write.stop[1] // fold) * fold + fold * margin_columns
        low, high = axis.low - margin_rows, axis.high + 1 + margin_rows
        region = samples[:, first - read.start[1] : last - read.start[1], low - read.start[2] : high - read.start[2]]
        half = o.planes // 2
        start = write.start[0] - half - read.start[0]
        count = write.shape[0]
        size = max(1, self._batch_samples * fold // (region.shape[1] * region.shape[2]))
        size = math.ceil(count / math.ceil(count / size))
        place = self._rows_placed(axis, told)
        skip = write.start[1] - write.start[1] // fold * fold
        result = np.empty((count, len(axis.rows), write.shape[1]), np.float32)
        condition = self._lanes.put(told.float().numpy())
        for n in range(0, count, size):
            # the last batch is filled up by repetition: a batch of another size would round differently
            wanted = np.minimum(np.arange(n, n + size), count - 1)[:, None] + np.arange(o.planes) + start
            maps = self._net(self._lanes.put(region[wanted].transpose(0, 1, 3, 2)), condition)
            placed = place(maps)[:, :, skip : skip + write.shape[1]]
            self._lanes.fetch(self._signed(placed[: min(size, count - n)]), result[n : n + size])
        self._lanes.finish()
        return result

    def _signed(self, values: Tensor) -> Tensor:
        return values.abs() + LEAST_ERROR if self.options.positive else values

    def _rows_placed(self, axis: _Axis, told: Tensor) -> Callable[[Tensor], Tensor]:
        """What makes fine rows (b, n, columns) of the basis maps (b, K, rows, columns) of a view."""
        table = torch.tensor([[float(p)] for p in axis.phases], dtype=torch.float64)
        weights = self._lanes.put(self._basis(table, told).float().numpy())  # (phases, K)
        rows, which = (self._lanes.put(v) for v in (axis.rows - axis.low, axis.which))
        if len(axis.phases) > MOST_PHASES:
            return lambda maps: place_rows(maps, rows, weights[which])
        return lambda maps: functional.conv2d(maps, weights[:, :, None, None])[:, which, rows]

    def _image(self, samples: Array, read: Box, y: _Axis, x: _Axis, told: Tensor, result: Array) -> None:
        """Write the residual of one band to `result` (fine rows, fine columns), block by block."""
        for rows, lattice_y in y.blocks(self._block):
            for columns, lattice_x in x.blocks(self._block):
                lattice = Box((lattice_y.start, lattice_x.start), (lattice_y.stop, lattice_x.stop))
                values = self._block_of(samples, read, lattice, y.part(rows), x.part(columns), told)
                self._lanes.fetch(self._signed(values), result[rows, columns])

    def _block_of(self, samples: Array, read: Box, lattice: Box, y: _Axis, x: _Axis, told: Tensor) -> Tensor:
        margin = self.options.margin[0]
        area = samples[lattice.grow((margin, margin)).within(read).slices]
        maps = self._net(self._lanes.put(area)[None, None], self._lanes.put(told.float().numpy()))
        rows, columns = (self._lanes.put(axis.rows - start) for axis, start in zip((y, x), lattice.start, strict=True))
        (ys, which_y), (xs, which_x) = (np.unique(axis.which, return_inverse=True) for axis in (y, x))
        table = torch.tensor([[float(y.phases[p]), float(x.phases[q])] for p in ys for q in xs], dtype=torch.float64)
        weights = self._lanes.put(self._basis(table, told).float().numpy())  # (phases of y and x, K)
        number = self._lanes.put(which_y * len(xs))[:, None] + self._lanes.put(which_x)
        if len(weights) > MOST_PHASES:
            return place_pixels(maps, rows, columns, weights.T[:, number])[0]
        heads = functional.conv2d(maps, weights[:, :, None, None])[0]  # every phase at every lattice sample
        return heads[number, rows[:, None], columns]


def _others(axis: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two views of a volume: (columns, planes) and the other way round."""
    b, c = (n for n in range(3) if n != axis)
    return (c, b), (b, c)


def _part(box: Box, order: tuple[int, ...]) -> Box:
    """The box with its axes in another order, or some of them."""
    return Box(tuple(box.start[n] for n in order), tuple(box.stop[n] for n in order))
