"""Training the guided family: pairs of a coarse band and finer bands of the same place, and its card."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines import interpolation
from pipelines.card import ModelCard
from pipelines.degradation import Degradation, Profile, axis_matrix
from pipelines.errors import GeometryError, InputError, UsageError
from pipelines.formats import open_source
from pipelines.grid import Box, Grid, Placement, fine_length
from pipelines.injection import Lifting, Relating, detail
from pipelines.networks.consistency import Twin
from pipelines.networks.guided import GuidedNet
from pipelines.tiles import reflected
from pipelines.training.config import TrainingConfig
from pipelines.training.pairs import (
    DECIMATED_SCENES,
    FLAT_SCENES,
    NO_SUCH_VALUE,
    SHORTEST,
    cubic_and_floor,
    generator,
)
from pipelines.training.task import Judgement, Step

Array = NDArray[np.float64]

WALD = Profile("wald")
"""The blur of the protocol: how a finer raster becomes a guide for a truth."""

MOST_GUIDES = 5
"""Of a pair."""

LEAST_TEXTURE = 0.02
"""Standard deviation of a window, over the range of its band, below which another one is looked for."""

UNIT_FLOOR = 0.003
"""Of the error that counts as one, over the range of the band: noise of flat scenes is nothing to learn."""

CHARBONNIER = 1.0
"""Where the loss turns from quadratic to linear, in units of the mean error that the guides' detail leaves."""

CHECKED = 60
"""Pairs that say what a training reached."""

FRESH = 2**40
"""Number of the first of them: no training gets there."""


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Bands of one place on one grid, (n, y, x), each over its range. aimed: those to restore when told `guided_by`.

    guided_by: bands that guide them, as the sensor would; empty where any guides any other.
    """

    name: str
    samples: NDArray[np.float32]
    aimed: tuple[int, ...]
    guided_by: tuple[int, ...]
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class FusionPair:
    """One window.

    shared, of_guides: see `injection.detail`, reflected by the network's margin; floor: (fine), of the interpolation
    alone; added: the guides' detail; truth: (fine); unit: the error that counts as one.
    """

    shared: Tensor
    of_guides: Tensor
    twin: Twin
    floor: Tensor
    added: Tensor
    truth: Tensor
    unit: float


def load_stacks(folder: Path, hold_out: Sequence[str] = ()) -> list[Stack]:
    """Stacks of all places of a folder: each raster with the finer ones of its place, made as coarse, and alone.

    Raises InputError if there are none.
    """
    stacks: list[Stack] = []
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        if place.name not in DECIMATED_SCENES and place.name not in hold_out:
            stacks += _of_place(place)
    if not stacks:
        raise InputError(what="no training data found", why=f"{folder} holds none", fix="point to the data folder")
    return stacks


def _of_place(place: Path) -> Iterator[Stack]:
    found: list[tuple[str, Grid, NDArray[np.float32]]] = []
    for path in sorted(place.glob("*.tif")):
        with open_source(path, nodata=NO_SUCH_VALUE) as source:
            grid = source.header.grid
            if min(grid.shape) >= SHORTEST:
                found.append((path.stem, grid, source.read(Box.whole(grid.shape)).astype(np.float32)))
    weight = 0.15 if place.name in FLAT_SCENES else 1.0
    for name, grid, own in found:
        guides = [made for _, finer, samples in found if (made := _as_coarse(finer, grid, samples)) is not None]
        if guides:
            bands = np.concatenate([own, *guides])
            yield Stack(name, _ranged(bands), tuple(range(len(own))), tuple(range(len(own), len(bands))), 8 * weight)
        elif len(own) > 2 and not place.name.startswith(("s2", "l8", "l9")) and min(grid.shape) >= 4 * SHORTEST:
            # an aerial image is softer than its sampling: its half-size copy is not
            half = own[:, : grid.shape[0] // 2 * 2, : grid.shape[1] // 2 * 2]
            half = half.reshape(len(half), half.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4))
            yield Stack(name, _ranged(half), tuple(range(len(half))), (), weight)
        elif len(own) > 2:
            yield Stack(name, _ranged(own), tuple(range(len(own))), (), weight)


def _as_coarse(finer: Grid, grid: Grid, samples: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """A finer raster on a coarser grid by Wald's protocol; None if it is not finer or does not cover it."""
    if finer.frame != grid.frame or not all(f < 0.8 * g for f, g in zip(finer.spacing, grid.spacing, strict=True)):
        return None
    try:
        model = Degradation.between(grid, finer, (WALD, WALD))
    except (GeometryError, UsageError):
        return None
    seen = [model.sees(a) for a in range(2)]
    if any(s.mean() < 0.98 for s in seen):
        return None
    made = model.forward(samples)
    for a, s in enumerate(seen, start=1):  # a row that a shifted grid cuts takes its neighbour's place
        nearest = np.flatnonzero(s)
        made = made.take(nearest[np.abs(nearest - np.arange(len(s))[:, None]).argmin(axis=1)], axis=a)
    return made.astype(np.float32)


def _ranged(bands: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.percentile(bands, [1, 99], axis=(1, 2))
    scale = np.where(high > low, high - low, 1.0)
    return np.asarray((bands - low[:, None, None]) / scale[:, None, None], np.float32)


def fusion_pair(rng: np.random.Generator, stacks: Sequence[Stack], margin: int, extent: int) -> FusionPair:
    """A window of a band, or of a mixture of bands, and of its guides. extent: fine samples of a side at most."""
    weights = np.array([s.weight for s in stacks])
    stack = stacks[int(rng.choice(len(stacks), p=weights / weights.sum()))]
    scale = _draw_scale(rng)
    coarse = [int(min(n, extent) / scale) for n in stack.samples.shape[1:]]
    fine = [fine_length(m, scale) for m in coarse]
    window = _draw_window(rng, stack.samples, fine)
    truth, guides = _draw_bands(rng, stack, window)
    places = tuple(
        Placement(m, n, scale, (scale - 1) / 2 + (n - m * scale) / 2) for m, n in zip(coarse, fine, strict=True)
    )
    profile = WALD if rng.random() < 0.8 else Profile("mtf", float(rng.uniform(0.15, 0.45)))
    model = Degradation(tuple(coarse), tuple(fine), tuple(axis_matrix(p, profile) for p in places))
    sigma = 0.0 if rng.random() < 0.8 else float(np.exp(rng.uniform(np.log(0.002), np.log(0.03))))
    measured = model.forward(truth)
    if sigma > 0:
        measured = measured + rng.normal(0.0, sigma, measured.shape)
    _, floor, twin = cubic_and_floor(measured, model, places, sigma)
    lowered = model.forward(guides)
    lifting = Lifting(*(tuple(interpolation.matrix(p, kind) for p in places) for kind in ("cubic", "linear")))
    whole = (slice(None), slice(None))
    relating = Relating(len(guides))
    relating.first(measured, lowered)
    relating.second(measured, lowered, lifting, whole)
    found = detail(measured, lowered, guides, lifting, relating.relation, held=whole)
    rows, columns = (reflected(-margin, n + margin + n % 2, n) for n in fine)
    error = found.added - (truth - floor)
    error = error - _explained(twin, error)
    return FusionPair(
        shared=_tensor(found.shared[:, rows[:, None], columns]),
        of_guides=_tensor(found.of_guides[:, :, rows[:, None], columns]),
        twin=twin,
        floor=_tensor(floor),
        added=_tensor(found.added),
        truth=_tensor(truth),
        unit=float(np.abs(error).mean()) + UNIT_FLOOR,
    )


def _explained(twin: Twin, image: Array) -> Array:
    return cast(Array, twin.correction(twin.forward(_tensor(image))).numpy().astype(np.float64))


def _draw_scale(rng: np.random.Generator) -> Fraction:
    """2 in most pairs, else between 1.5 and 6."""
    if rng.random() < 0.9:
        return Fraction(2)
    return Fraction(int(rng.choice([3, 5, 6, 8, 12])), 2)


def _draw_window(rng: np.random.Generator, bands: NDArray[np.float32], shape: Sequence[int]) -> Array:
    """A window of all bands (n, *shape), turned and flipped, preferably not flat."""
    for _ in range(3):
        y, x = (int(rng.integers(n - m + 1)) for n, m in zip(bands.shape[1:], shape, strict=True))
        window = bands[:, y : y + shape[0], x : x + shape[1]].astype(np.float64)
        if np.median(window.std(axis=(1, 2))) > LEAST_TEXTURE:
            break
    if rng.random() < 0.5:
        window = window[:, ::-1]
    if rng.random() < 0.5:
        window = window[:, :, ::-1]
    if window.shape[1] == window.shape[2] and rng.random() < 0.5:
        window = window.transpose(0, 2, 1)
    return np.ascontiguousarray(window)


def _draw_bands(rng: np.random.Generator, stack: Stack, window: Array) -> tuple[Array, Array]:
    """(truth (y, x), guides (g, y, x)): as the sensor has them, or any bands and mixtures of them."""
    aim = int(rng.choice(stack.aimed))
    if stack.guided_by and rng.random() < 0.75:
        return window[aim], window[list(stack.guided_by)]
    others = [n for n in range(len(window)) if n != aim]
    chosen = rng.permutation(others)[: int(rng.integers(1, MOST_GUIDES + 1))]
    truth, guides = window[aim], window[chosen]
    if rng.random() < 0.4:  # a band that no sensor has, and whose detail goes with others again
        truth = truth + float(rng.normal(0, 0.5)) * window[int(rng.choice(others))]
    if len(guides) > 1 and rng.random() < 0.4:
        guides = np.tensordot(np.eye(len(guides)) + 0.4 * rng.normal(size=(len(guides),) * 2), guides, 1)
    if rng.random() < 0.3:
        guides = np.sign(guides) * np.abs(guides) ** np.exp(rng.uniform(-0.3, 0.3))
    return truth, guides


@dataclass(frozen=True, slots=True, eq=False)
class FusionTask:
    """See `Task`."""

    config: TrainingConfig
    stacks: list[Stack]

    @classmethod
    def of(cls, config: TrainingConfig, data: Path) -> FusionTask:
        """With the training scenes in memory."""
        return cls(config, load_stacks(data / config.data, config.hold_out))

    def network(self) -> nn.Module:
        return GuidedNet(self.config.guided, mixed=self.config.mixed)

    def pair(self, number: int) -> FusionPair:
        """The pair of this number."""
        c = self.config
        return fusion_pair(generator(c.seed, number), self.stacks, c.guided.margin, cast(int, c.extent))

    def batch(self, numbers: Sequence[int]) -> list[FusionPair]:
        return [self.pair(n) for n in numbers]

    def step(self, net: nn.Module, batch: list[FusionPair]) -> Step:
        losses, gains = [], []
        for pair in batch:
            error = left(net, pair)
            losses.append(_charbonnier(error / pair.unit))
            before = float(torch.mean((pair.floor + pair.twin.unseen(pair.added) - pair.truth) ** 2))
            if before > 0:
                gains.append(10 * math.log10(before / max(float(torch.mean(error.detach() ** 2)), 1e-20)))
        return Step(torch.stack(losses).mean(), {"gain_db_over_detail": sum(gains) / len(gains)} if gains else {})

    def judged(self, net: nn.Module) -> Judgement | None:
        del net
        return None

    def bundle(self, net: nn.Module, folder: Path, training: dict[str, Any]) -> ModelCard:
        return _write_bundle(cast(GuidedNet, net), self, folder, training)


def left(net: nn.Module, pair: FusionPair) -> Tensor:
    """Product - truth (*fine) of one pair."""
    weights = torch.ones(1, len(pair.of_guides))
    r = net(pair.shared[None], pair.of_guides[None], weights)[0, 0]
    r = r[: pair.truth.shape[0], : pair.truth.shape[1]]
    return pair.floor + pair.twin.unseen(pair.added + r) - pair.truth


def _charbonnier(error: Tensor) -> Tensor:
    return torch.mean(torch.sqrt(error * error + CHARBONNIER**2) - CHARBONNIER)


def _reached(net: GuidedNet, task: FusionTask) -> dict[str, float]:
    """Mean gains [dB] on fresh pairs of the training scenes, over the floor and over the guides' detail alone."""
    over: dict[str, list[float]] = {"gain_db_over_floor": [], "gain_db_over_detail": []}
    with torch.inference_mode():
        for number in range(CHECKED):
            pair = task.pair(FRESH + number)
            error, floor = left(net, pair), pair.floor - pair.truth
            plain = floor + pair.twin.unseen(pair.added)
            for name, other in zip(over, (floor, plain), strict=True):
                before, after = (float(torch.mean(e**2)) for e in (other, error))
                if min(before, after) > 0:
                    over[name].append(10 * math.log10(before / after))
    return {name: round(sum(gains) / max(1, len(gains)), 2) for name, gains in over.items()}


def _write_bundle(net: GuidedNet, task: FusionTask, out: Path, training: dict[str, Any]) -> ModelCard:
    """The weights and their card in `out`."""
    config, options = task.config, task.config.guided
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{config.name}-{config.version}"
    tensors = {k: v.detach().contiguous().clone() for k, v in sorted(net.state_dict().items())}
    save_file(tensors, out / f"{stem}.safetensors")
    least = float(config.card.get("scales", (2.0,))[0])
    card = ModelCard.from_json(
        {
            "name": config.name,
            "version": config.version,
            "network": "guided",
            "guided": True,
            "options": options.to_json(),
            "halo": [options.halo(least)] * 2,
            "multiple_of": [1, 1],
            "channels": "any number, each alone; any number of guides",
            "normalisation": "(x - median) / (99th - 1st percentile), guides alike",
            "sha256": hashlib.sha256((out / f"{stem}.safetensors").read_bytes()).hexdigest(),
            "weights_file": f"{stem}.safetensors",
            "training": {**training, "reached": _reached(net, task)},
            **config.card,
        },
        out,
    )
    card.write(out / f"{stem}.json")
    return card


def _tensor(array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
