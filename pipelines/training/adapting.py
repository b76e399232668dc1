"""Per-scan training: a network learns from the scan that it will refine, by the scan's own sensor.

Through-plane from in-plane: the planes of a volume, made coarse along one of their axes as the slices were, are pairs
whose truth is known (Zhao et al., SMORE, IEEE TMI 2021, https://doi.org/10.1109/TMI.2020.3037187). Of an image: what
the same sensor would make of the image itself (Shocher et al., ZSSR, CVPR 2018). A part of the scan is held back; what
was learned is kept only if it is better there.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import runner
from pipelines.calibration import noise_sigma, window_samples
from pipelines.card import ModelCard
from pipelines.degradation import Profile
from pipelines.errors import ModelError, StoppedError
from pipelines.grid import Box, Orientation
from pipelines.image import Source
from pipelines.job import Job
from pipelines.networks.lattice import LatticeNet
from pipelines.networks.weights import fill
from pipelines.planning import Plan
from pipelines.store import write_whole
from pipelines.training.config import TrainingConfig
from pipelines.training.lattice import LatticeTask, error_of, write_bundle
from pipelines.training.pairs import MAKERS, Pair, Scene, Sensor, generator

Progress = Callable[[str, int, int], None]

SELF = "self"
"""The model that knows nothing but the scan."""

RATE = 3e-4
FROM_NOTHING_RATE = 2e-3
"""Of Adam: of a trained network, which is only to be adapted, and of an untrained one."""

BATCH = 6
LOOKS = 5
"""Looks at the part held back, after equal times."""

PATIENCE = 2
"""Looks without a gain after which the training of a trained network ends."""

HELD_OUT_PAIRS = 16
FIRST_HELD_OUT = 2**40
"""Number of the first of them: no training gets there."""

WARM_UP = 20
"""Steps in which the rate rises."""

LEAST_GAIN_DB = 0.02
"""On the part held back; less is chance."""

MOST_SAMPLES = 1 << 25
"""Of a scan, that are read to learn from."""

EXTENT = {"volumes": 128, "rasters": 60}
"""Of a patch: see `TrainingConfig`."""

SMALL = {
    "volumes": {"channels": 48, "blocks": 4, "basis": 12, "planes": 1, "fold": 2, "thin": True, "phases": 1},
    "rasters": {"channels": 32, "blocks": 4, "basis": 16, "phases": 2},
}
"""Networks that learn from one scan alone."""


OUTCOME = "outcome.json"
"""In the folder of a bundle: what came of the training, for the call that goes on with it."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """What came of it. card: the model to use; gain_db: over the start on the part held back; kept: if it is new."""

    card: ModelCard
    gain_db: float
    kept: bool
    steps: int
    seconds: float

    def told(self) -> str:
        """One line for people."""
        if not self.steps:
            return f"taken over: {self.card.id if self.card.network else self.card.name}"
        what = f"{self.steps} steps in {self.seconds:.0f} s, {self.gain_db:+.2f} dB on the part of the scan held back"
        return what if self.kept else f"{what}: not kept, {self.card.id if self.card.network else self.card.name} stays"


def adapt(
    job: Job,
    seconds: float,
    folder: Path,
    *,
    resume: bool = False,
    most_steps: int | None = None,
    progress: Progress = lambda _stage, _done, _all: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Adapted:
    """Train the network of a job for `seconds` on the job's own input and write its bundle to `folder`.

    resume: take over what an earlier call has written there for the same input and start; most_steps: end after so
    many, which gives the same weights each time if the time suffices. The job's model `self` begins with an untrained
    network. What is not better than the start on the part held back is not kept; the start, or the floor, stays. Raises
    ModelError where there is nothing to adapt, and what planning raises.
    """
    began = time.monotonic()
    alone = job.request.model == SELF
    made = runner.planned(replace(job, request=replace(job.request, model="floor")) if alone else job)
    start = made.card
    if start.network != "lattice" and not alone:
        raise ModelError(
            what=f"{start.id if start.network else start.name} cannot learn from the scan",
            why="only networks of the lattice family do",
            fix="use --model self, or a lattice network",
        )
    asked: dict[str, object] = {
        "of": made.identity,
        "start": start.digest,
        "degradation": [list(c.spec) for c in made.channels],
    }
    if resume and (before_card := _taken_over(folder, asked, start)):
        return Adapted(before_card, 0.0, kept=before_card is not start, steps=0, seconds=0.0)
    kind = "volumes" if made.fine.ndim == 3 else "rasters"
    with job.open() as opened:
        learned, held = scenes_of(opened, made, kind)
    config = _config(start, kind, alone=alone)
    net = LatticeNet(config.options)
    if not alone:
        fill(net, start)
    before = gain_db(net, held, config)
    rate, bounds = FROM_NOTHING_RATE if alone else RATE, (began + seconds, most_steps)
    (after, weights), steps = _trained(net, learned, held, config, before, bounds, rate, progress, stopped)
    kept, card = after >= before + LEAST_GAIN_DB, start
    passed = time.monotonic() - began
    folder.mkdir(parents=True, exist_ok=True)
    if kept:
        net.load_state_dict(weights)
        told = {"steps": steps, "seconds": round(passed), "start": start.id}
        card = write_bundle(net.eval(), config, folder, {**told, "gain_db_held_back": round(after - before, 3)})
    write_whole(folder / OUTCOME, json.dumps({**asked, "card": f"{card.id}.json" if kept else ""}) + "\n")
    return Adapted(card, after - before, kept=kept, steps=steps, seconds=passed)


def _taken_over(folder: Path, asked: dict[str, object], start: ModelCard) -> ModelCard | None:
    """What an earlier call ended with; None if there is none, or of something else."""
    try:
        found = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
        name = found.pop("card")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    if found != asked:
        return None
    return ModelCard.read(folder / name) if name else start


def _config(start: ModelCard, kind: str, *, alone: bool) -> TrainingConfig:
    """Of the adapted network: the start's card, but for what training says."""
    values = {
        "name": "self" if alone else f"{start.name}-adapted",
        "version": "1.0" if alone else start.version,
        "kind": kind,
        "steps": 1,
        "network": SMALL[kind] if alone else start.options,
        "extent": EXTENT[kind],
        "card": _alone(kind) if alone else _kept(start),
    }
    return TrainingConfig.of(values)


def _kept(start: ModelCard) -> dict[str, object]:
    names = ("domain", "axes", "scales", "noise_over_scale", "blur_fwhm_coarse", "channels", "trained_on", "licence")
    return {name: getattr(start, name) for name in (*names, "bytes_per_sample", "bytes_fixed")}


def _alone(kind: str) -> dict[str, object]:
    volume = kind == "volumes"
    return {
        "domain": "med" if volume else "geo",
        "axes": "through-plane" if volume else "image",
        "scales": [1.0, 16.0],
        "trained_on": "the input alone",
        "bytes_per_sample": 12 if volume else 20,
        "bytes_fixed": 1e8,
    }


def scenes_of(source: Source, made: Plan, kind: str) -> tuple[list[Scene], list[Scene]]:
    """(what is learned from, the middle part that is held back) of an input, over the range of its samples."""
    if kind == "volumes":
        return _of_volume(source, made)
    return _of_image(source, made)


def _of_volume(source: Source, made: Plan) -> tuple[list[Scene], list[Scene]]:
    axis = made.slice_axis or 0
    orientation = Orientation.upright(made.coarse, made.slice_axis)
    box = _bounded(made.coarse.shape, axis)
    volume = orientation.array(source.read(box))[0]  # slices, y, x
    place, spacing = made.places[axis], made.coarse.spacing[axis]
    profile = Profile.parse(made.channels[0].spec[axis])
    if profile.in_mm and profile.value is not None:
        profile = replace(profile, value=profile.value / spacing)  # over the spacing of the slices
    unit, noise = _normal(volume, rician=made.channels[0].noise_model == "rician", told=made.noise)
    sensor = Sensor(place.scale, profile, noise)
    unit = unit.transpose(1, 2, 0)  # planes are slices: the last axis
    count = unit.shape[2]
    low, high = int(0.4 * count), max(int(0.4 * count) + 1, int(0.6 * count))
    parts = [unit[:, :, :low], unit[:, :, high:]]
    learned = [_scene(f"learned {n}", p[None], (0, 1), sensor, made) for n, p in enumerate(parts) if p.shape[2]]
    return learned, [_scene("held back", unit[None, :, :, low:high], (0, 1), sensor, made)]


def _of_image(source: Source, made: Plan) -> tuple[list[Scene], list[Scene]]:
    box = _bounded(made.coarse.shape, 0)
    learned, held = [], []
    samples = source.read(box)
    for number, channel in enumerate(made.channels):
        if channel.treatment == "nearest":
            continue
        unit, noise = _normal(samples[number], rician=False, told=made.noise)
        sensor = Sensor(made.places[0].scale, Profile.parse(channel.spec[0]), noise)
        rows = unit.shape[0]
        low, high = int(0.4 * rows), int(0.6 * rows)
        for name, part in (("above", unit[:low]), ("below", unit[high:])):
            learned.append(_scene(f"{channel.name} {name}", part[None], (1, 2), sensor, made))
        held.append(_scene(channel.name, unit[None, low:high], (1, 2), sensor, made))
    return learned, held


def _scene(name: str, samples: NDArray[np.float32], axes: tuple[int, ...], sensor: Sensor, made: Plan) -> Scene:
    return Scene(name, samples, axes, float(samples.size), made.modality == "MR", sensor)


def _bounded(shape: tuple[int, ...], axis: int) -> Box:
    """The whole, or the middle of the first of its axes that leaves no more than MOST_SAMPLES."""
    rest = int(np.prod([n for a, n in enumerate(shape) if a != axis]))
    length = max(1, min(shape[axis], MOST_SAMPLES // rest))
    start = tuple((n - length) // 2 if a == axis else 0 for a, n in enumerate(shape))
    return Box(start, tuple(a + length if k == axis else n for k, (a, n) in enumerate(zip(start, shape, strict=True))))


def _normal(samples: NDArray[np.floating], *, rician: bool, told: str | float) -> tuple[NDArray[np.float32], float]:
    """Samples over their range, 1st to 99th percentile, invalid ones at the median; the noise over it."""
    valid = np.isfinite(samples)
    low, middle, high = np.quantile(samples[valid], [0.01, 0.5, 0.99])
    scale = float(high - low) or 1.0

    def read(box: Box) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        return samples[None][(slice(None), *box.slices)], valid[None][(slice(None), *box.slices)]

    if told == "auto":
        values, mask = window_samples(samples.shape, read)
        sigma = noise_sigma(values[:, 0].astype(np.float64), mask[:, 0], rician=rician)[0]
    else:
        sigma = float(told)
    return ((np.where(valid, samples, middle) - low) / scale).astype(np.float32), sigma / scale


def gain_db(net: LatticeNet, held: Sequence[Scene], config: TrainingConfig) -> float:
    """Mean over the floor on pairs of the part held back."""
    gains = []
    with torch.inference_mode():
        for number in range(HELD_OUT_PAIRS):
            pair = _pair(FIRST_HELD_OUT + number, held, config)
            errors = (pair.floor - pair.truth, error_of(net, pair))
            before, after = (max(float(torch.mean(e**2)), 1e-12) for e in errors)
            gains.append(10 * np.log10(before / after))
    return float(np.mean(gains))


def _pair(number: int, scenes: Sequence[Scene], config: TrainingConfig) -> Pair:
    extent = config.extent
    assert isinstance(extent, int)
    return MAKERS[config.kind](generator(config.seed, number), scenes, config.options, extent)


def _trained(
    net: LatticeNet,
    learned: list[Scene],
    held: Sequence[Scene],
    config: TrainingConfig,
    before: float,
    bounds: tuple[float, int | None],
    rate: float,
    progress: Progress,
    stopped: Callable[[], bool],
) -> tuple[tuple[float, dict[str, torch.Tensor]], int]:
    """((best gain on the part held back, its weights), steps). The rate falls to nothing over the time or the steps."""
    task = LatticeTask(config, learned)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, betas=(0.9, 0.99))
    averaged = copy.deepcopy(net)
    best, since, step = (before, copy.deepcopy(net.state_dict())), 0, 0
    began, looked, (until, most_steps) = time.monotonic(), 0, bounds
    length = max(1.0, until - began)
    patience = PATIENCE if before > 0 else LOOKS  # an untrained network is the floor, and slow to leave it
    while (share := (time.monotonic() - began) / length) < 1.0 and step != most_steps and since < patience:
        passed = step / most_steps if most_steps else share
        if stopped():
            raise StoppedError(what="stopped while learning from the scan", fix="the same call begins again")
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP) * (1.0 - passed)
        pairs = [_pair(step * BATCH + k, learned, config) for k in range(BATCH)]
        optimizer.zero_grad()
        task.step(net, pairs).loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs lack it
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip)
        optimizer.step()
        step += 1
        with torch.no_grad():
            decay = min(0.99, (1 + step) / (10 + step))
            for mean, now in zip(averaged.parameters(), net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        progress("adapt", int(length * passed), int(length))
        if passed * LOOKS >= looked + 1:
            looked = int(passed * LOOKS)
            gain = gain_db(averaged, held, config)
            since = 0 if gain > best[0] else since + 1
            if gain > best[0]:
                best = (gain, copy.deepcopy(averaged.state_dict()))
    gain = gain_db(averaged, held, config)
    if gain > best[0]:
        best = (gain, copy.deepcopy(averaged.state_dict()))
    return best, step
