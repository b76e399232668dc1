"""Pairs for textbook networks: patches of a scene, what a sensor would have measured of them, cubic and floor.

Pair n of a training is a pure function of (seed, n), whoever makes it. A patch is degraded and projected as if it were
the whole image; the loss leaves out its margin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from pipelines.degradation import Degradation, Profile, along, axis_matrix
from pipelines.grid import Placement
from pipelines.interpolation import matrix as interpolation_matrix
from pipelines.networks.consistency import Twin
from pipelines.projection import Solver, Spectrum, stable_weight, stein_weight
from pipelines.training import contrasts
from pipelines.training.config import NOTHING, Augmentation, TrainingConfig
from pipelines.training.pairs import generator
from pipelines.training.scenes import Scene, placed

Array = NDArray[np.float64]

TRIES = 8
"""Places that are looked at for one with valid samples and contrast."""

FLAT = 0.02
"""Standard deviation over the range of the scene below which another place is looked at."""

NOMINAL_MTF = 0.3

IN_PLANE_FWHM = 1.2
"""Of the other axes of a volume, in coarse samples (forward model)."""

STEPS = 40
"""Widths and modulations are drawn in steps of one over this, so that matrices are made once."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Pairs of one shape. coarse: (b, 1, *coarse), cubic, floor, truth: (b, 1, *fine), all over the scene's range.

    twin: their projections; clean: (b,), whether there is no noise.
    """

    coarse: Tensor
    cubic: Tensor
    floor: Tensor
    truth: Tensor
    clean: Tensor
    twin: Twin

    @classmethod
    def of(cls, pairs: Sequence[Self]) -> Self:
        """Many as one; each of them holds one pair."""
        tensors = {f.name: torch.cat([getattr(p, f.name) for p in pairs]) for f in fields(cls) if f.name != "twin"}
        return cls(**tensors, twin=Twin.stacked([p.twin for p in pairs]))

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[list[NDArray[np.generic] | None]]]:
        """As arrays: what a reader makes is one message then, and not a file of shared memory for each tensor."""
        tensors = [self.coarse, self.cubic, self.floor, self.truth, self.clean, self.twin.inverse]
        tensors += [*self.twin.matrices, *self.twin.vectors]  # type: ignore[list-item]  # None for an axis that is shared
        return _rebuilt, ([None if t is None else t.numpy() for t in tensors],)

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def _rebuilt(arrays: list[NDArray[np.generic] | None]) -> Batch:
    tensors = [a if a is None else torch.from_numpy(a) for a in arrays]
    coarse, cubic, floor, truth, clean, inverse = (cast(Tensor, t) for t in tensors[:6])
    half = (len(tensors) - 6) // 2
    return Batch(coarse, cubic, floor, truth, clean, Twin(tuple(tensors[6:-half]), tuple(tensors[-half:]), inverse))


def pair(rng: np.random.Generator, scenes: Sequence[Scene], config: TrainingConfig, augment: Augmentation) -> Batch:
    """One pair; its twin is that of a single image."""
    scene, order, channel, is_labels = _draw_scene(rng, scenes, config, augment)
    truth = _draw_window(rng, scene, channel, order, config.fine_patch, is_labels=is_labels)
    truth = _turned(rng, truth, config.scale, augment)
    truth, centre, span = _recontrast(rng, truth, scene.quantiles[channel], augment, is_labels=is_labels)
    if rng.random() < augment.bias:
        truth = truth * contrasts.bias_field(rng, truth.shape)
    truth = (truth - centre) / span
    true, told = _draw_blur(rng, config, augment)
    places = _places(config)
    degradation = Degradation(config.patch, truth.shape, tuple(None if t is None else t.matrix for t in told))
    made = Degradation(config.patch, truth.shape, tuple(None if t is None else t.matrix for t in true))
    black = -centre / span  # of a magnitude or a count: where there is no signal
    measured, sigma = _noisy(rng, made.forward(truth), black, scene, augment)
    cubic, floor, twin = _floor(measured, degradation, places, told, sigma)
    return Batch(
        coarse=_tensor(measured),
        cubic=_tensor(cubic),
        floor=_tensor(floor),
        truth=_tensor(truth),
        clean=torch.tensor([sigma == 0]),
        twin=twin,
    )


def batch(scenes: Sequence[Scene], config: TrainingConfig, numbers: Sequence[int]) -> Batch:
    """The pairs of these numbers."""
    return Batch.of([pair(generator(config.seed, n), scenes, config, config.augment) for n in numbers])


def judging(scenes: Sequence[Scene], config: TrainingConfig, first: int) -> Iterator[Batch]:
    """Clean pairs with the nominal blur, the same each time, that a training is judged by."""
    imaged = [s for s in scenes if s.channels]
    for start in range(0, config.checked if imaged else 0, config.batch):
        numbers = range(start, min(start + config.batch, config.checked))
        yield Batch.of([pair(generator(config.seed, first + n), imaged, config, NOTHING) for n in numbers])


def _draw_scene(
    rng: np.random.Generator, scenes: Sequence[Scene], config: TrainingConfig, augment: Augmentation
) -> tuple[Scene, tuple[int, ...], int, bool]:
    """A scene by weight, the order of its axes, a channel and whether that holds labels."""
    rising = np.cumsum([s.weight for s in scenes])
    scene = scenes[int(np.searchsorted(rising, rng.random() * rising[-1], side="right"))]
    orders = placed(scene, config)
    order = orders[int(rng.integers(len(orders)))]
    of_labels = bool(scene.labels) and (not scene.channels or rng.random() < augment.synthetic)
    channels = scene.labels if of_labels else scene.channels
    return scene, order, channels[int(rng.integers(len(channels)))], of_labels


def _draw_window(
    rng: np.random.Generator,
    scene: Scene,
    channel: int,
    order: tuple[int, ...],
    shape: tuple[int, ...],
    *,
    is_labels: bool,
) -> Array:
    """A window (*shape) over the scene's range (labels as they are), valid and not flat if there is one near."""
    low, high = _range(scene.quantiles[channel])
    best: Array | None = None
    for _ in range(TRIES):
        start, length = [0] * len(shape), [0] * len(shape)
        for own, axis in enumerate(order):
            start[axis] = int(rng.integers(scene.shape[axis] - shape[own] + 1))
            length[axis] = shape[own]
        stored = scene.read(channel, start, length).astype(np.float64).transpose(order)
        valid = bool(np.isfinite(stored).all())
        window = stored if is_labels else (stored - low) / (high - low)
        if valid and window.std() > FLAT:
            return np.ascontiguousarray(window)
        if valid:
            best = window
    if best is None:  # what is invalid becomes the median: the pair stays finite, and says little
        middle = (np.median(scene.quantiles[channel]) - low) / (high - low)
        best = np.where(np.isfinite(window), window, 0.0 if is_labels else middle)
    return np.ascontiguousarray(best)


def _range(quantiles: Sequence[float]) -> tuple[float, float]:
    low, high = np.interp([0.01, 0.99], np.linspace(0, 1, len(quantiles)), quantiles)
    return float(low), float(high) if high > low else float(low) + 1.0


def _turned(rng: np.random.Generator, window: Array, scale: Sequence[int], augment: Augmentation) -> Array:
    """Flipped on every axis; axes of one scale and length exchanged, which with flips makes right-angle turns."""
    d = window.ndim
    if augment.flips:
        window = window[tuple(slice(None, None, -1 if rng.random() < 0.5 else 1) for _ in range(d))]
    if augment.turns:
        order = list(range(d))
        for a in range(d):
            alike = [b for b in range(a, d) if (scale[b], window.shape[b]) == (scale[a], window.shape[a])]
            b = alike[int(rng.integers(len(alike)))]
            order[a], order[b] = order[b], order[a]
        window = window.transpose(order)
    return np.ascontiguousarray(window)


def _recontrast(
    rng: np.random.Generator, window: Array, stored: Sequence[float], augment: Augmentation, *, is_labels: bool
) -> tuple[Array, float, float]:
    """Another contrast, and the median and range of the whole scene in it, as a product's would be measured."""
    if is_labels:
        image = contrasts.of_labels(rng, window)
        return image, *_statistics(image)
    low, high = _range(stored)
    quantiles = (np.asarray(stored) - low) / (high - low)
    change: contrasts.Curve | None = None
    draw = rng.random()
    if draw < augment.synthetic:
        change = contrasts.regions(rng, [float(q) for q in quantiles])
    elif draw < augment.synthetic + augment.contrast:
        change = contrasts.curve(rng)
    if change is None:
        return window, *_statistics(quantiles)
    return change(window), *_statistics(change(quantiles))


def _statistics(values: Array) -> tuple[float, float]:
    low, middle, high = np.quantile(values, [0.01, 0.5, 0.99])
    return float(middle), max(float(high - low), 1e-3)


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """The blur along one axis, ready to use."""

    matrix: sparse.csr_array
    spectrum: Spectrum


@lru_cache(maxsize=1024)
def _axis(place: Placement, kind: str, number: int | None, width: bool) -> _Axis:
    """number: in steps; width: whether it is one in fine samples over the scale."""
    value = None if number is None else number / STEPS
    matrix = axis_matrix(place, Profile(kind, value), value * float(place.scale) if width and value else None)
    return _Axis(matrix, Spectrum.of(matrix))


@lru_cache(maxsize=16)
def _placement(coarse: int, scale: int) -> Placement:
    return Placement(coarse, coarse * scale, Fraction(scale), Fraction(scale - 1, 2))


def _places(config: TrainingConfig) -> tuple[Placement | None, ...]:
    return tuple(None if s == 1 else _placement(n, s) for n, s in zip(config.patch, config.scale, strict=True))


def _draw_blur(
    rng: np.random.Generator, config: TrainingConfig, augment: Augmentation
) -> tuple[tuple[_Axis | None, ...], tuple[_Axis | None, ...]]:
    """(true, told) blur per axis, None where the axis stays as it is.

    A volume's first or, if several are refined, one of them is that of the slices.
    """
    refined = [a for a, s in enumerate(config.scale) if s > 1]
    nominal, wrong = rng.random() < augment.nominal, rng.random() < augment.blur
    slices = refined[0] if config.scale[0] > config.scale[-1] else refined[int(rng.integers(len(refined)))]
    error = rng.uniform(0.8, 1.25) if wrong else 1.0
    if config.kind == "rasters":
        told = NOMINAL_MTF if nominal else float(rng.uniform(*augment.mtf))
        kinds = dict.fromkeys(refined, ("mtf", _steps(told), "mtf", _steps(min(0.9, told**error**2)), False))
    else:
        width = 1.0 if nominal else float(rng.uniform(*augment.width))
        sort = str(rng.choice(["slice", "slice", "slice", "cosine", "box"])) if wrong else "slice"
        flat = _steps(IN_PLANE_FWHM)
        kinds = dict.fromkeys(refined, ("gaussian", flat, "gaussian", _steps(IN_PLANE_FWHM * error), False))
        kinds[slices] = ("slice", _steps(width), sort, _steps(width * error), True)
    told_axes: list[_Axis | None] = [None] * len(config.scale)
    true_axes = told_axes.copy()
    for a, (told_kind, told_number, true_kind, true_number, width_given) in kinds.items():
        place = _placement(config.patch[a], config.scale[a])
        told_axes[a] = _axis(place, told_kind, told_number, width_given)
        true_axes[a] = _axis(place, true_kind, true_number, width_given)
    return tuple(true_axes), tuple(told_axes)


def _steps(value: float) -> int:
    return max(1, round(value * STEPS))


def _noisy(
    rng: np.random.Generator, measured: Array, black: float, scene: Scene, augment: Augmentation
) -> tuple[Array, float]:
    """Measured samples with noise, and its standard deviation (of Poisson noise at the 99th percentile)."""
    if rng.random() >= augment.noise:
        return measured, 0.0
    sigma = float(np.exp(rng.uniform(np.log(min(0.002, augment.noise_most)), np.log(augment.noise_most))))
    kinds = augment.noises or (("rician" if scene.magnitude else "gaussian"),)
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "rician":
        noise = rng.normal(0.0, sigma, (2, *measured.shape))
        return np.hypot(measured - black + noise[0], noise[1]) + black, sigma
    if kind == "poisson":
        counts = 1 / sigma**2  # of a signal of one range
        signal = np.maximum(measured - black, 0.0)
        made = rng.poisson(signal * counts) / counts + black
        return made, sigma * float(np.sqrt(signal.mean()))
    return measured + rng.normal(0.0, sigma, measured.shape), sigma


def _floor(
    measured: Array,
    degradation: Degradation,
    places: tuple[Placement | None, ...],
    told: tuple[_Axis | None, ...],
    sigma: float,
) -> tuple[Array, Array, Twin]:
    """Cubic, its projection, and the projection's twin with the weight that suits the noise."""
    splines = tuple(None if p is None else interpolation_matrix(p, "cubic") for p in places)
    cubic = measured
    for axis, spline in enumerate(splines):
        if spline is not None:
            cubic = along(spline, cubic, axis)
    weight = _least_weight(told)
    spectra = [axis.spectrum for axis in told if axis is not None]
    if sigma > 0:
        weights, risk, _ = stein_weight(measured, degradation, splines, sigma, spectra=spectra, least=weight)
        weight = float(weights[int(np.argmin(risk))])
    floor = cubic + Solver(degradation, weight, spectra).correction(measured - degradation.forward(cubic))
    return cubic, floor, Twin.of(degradation, weight, spectra)


@lru_cache(maxsize=1024)
def _least_weight(told: tuple[_Axis | None, ...]) -> float:
    matrices = tuple(None if axis is None else axis.matrix for axis in told)
    shape = tuple(1 if m is None else m.shape[0] for m in matrices)
    return stable_weight(Degradation(shape, tuple(1 if m is None else m.shape[1] for m in matrices), matrices))


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
