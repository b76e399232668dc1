"""Simulated pairs: what a sensor would have measured of a known scene, and the scene.

Pair n of a training is a pure function of (seed, n), so a training resumes exactly. Every patch is degraded as if it
were the whole image: its own edges, reflected for the network as at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from pipelines.degradation import Degradation, Profile, along, axis_matrix
from pipelines.errors import InputError
from pipelines.formats import open_source
from pipelines.grid import Box, Placement, fine_length
from pipelines.interpolation import matrix as interpolation_matrix
from pipelines.networks.consistency import Twin
from pipelines.networks.lattice import condition_features, locate
from pipelines.networks.shape import LatticeOptions
from pipelines.projection import Solver, Spectrum, project, stable_weight, stein_weight
from pipelines.tiles import reflected

Array = NDArray[np.float64]
Matrix = sparse.csr_array

PROTOCOL = ((3, 0), (4, 0), (4, 0), (4, 1), (4, 1), (5, 0), (5, 1))
"""Thickness and gap in fine samples of the evaluation protocol; 4|0 and 4|1 count twice."""

FLAT_SCENES = ("s2_l2a_p74721", "s2_l2a_p752389", "s2_l2a_p25630")
"""Nearly without texture (lake, sea, ice): drawn less often."""

DECIMATED_SCENES = ("s2_l2a_29rkh_decimated",)
"""Aliased, without a sensor's blur: not used."""

SHORTEST = 96
"""Bands with fewer samples on a side than this are not used."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """The one sensor that a scan is trained for, instead of many drawn at random. scale: coarse over fine spacing.

    profile: its blur on the axes that it makes coarse, a width in slices of 1 mm where it is a length; noise: standard
    deviation over the range. Of a volume the last axis holds the thick slices: planes are whole slices of it.
    """

    scale: Fraction
    profile: Profile
    noise: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A fine image in memory: (channel, *axes), scaled to about 0..1; thick_axes: those that may be made coarse."""

    name: str
    samples: NDArray[np.float32]
    thick_axes: tuple[int, ...]
    weight: float
    magnitude: bool = True
    sensor: Sensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One patch and what is known of it.

    coarse: (planes, rows, columns) with halo; rows, columns, phases: where fine samples lie on the lattice;
    phase_map: number of the phase of each fine pixel, of rasters; condition: (3,); cubic, floor, truth: fine images;
    unit: the error that counts as one; clean: without noise.
    """

    coarse: Tensor
    rows: Tensor
    columns: Tensor | None
    phases: Tensor
    phase_map: Tensor | None
    condition: Tensor
    twin: Twin
    cubic: Tensor
    floor: Tensor
    truth: Tensor
    unit: float
    clean: bool


NO_SUCH_VALUE = float("nan")
"""Told as nodata of whole numbers: no value is. Their collars are learned from as they are, edges and all."""


def generator(seed: int, number: int) -> np.random.Generator:
    """The random numbers of pair `number`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))


def load_volumes(folder: Path, hold_out: Sequence[str] = ()) -> list[Scene]:
    """All NIfTI volumes of a folder, (1, x, y, z) as stored."""
    scenes = []
    for path in sorted(folder.glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        if name in hold_out:
            continue
        with open_source(path) as source:
            spacing = np.array(source.header.grid.spacing[::-1])
            samples = source.read(Box.whole(source.header.grid.shape))[0].T.astype(np.float32)
        sharp = tuple(int(a) for a in np.flatnonzero(spacing < 1.3 * spacing.min()))
        scenes.append(Scene(name, _unit_range(samples)[None], sharp, float(samples.size) ** 0.4))
    return _some(scenes, folder)


def load_rasters(folder: Path, hold_out: Sequence[str] = ()) -> list[Scene]:
    """All GeoTIFFs of the places in a folder; each place weighs the same (Sentinel-2 alike, flat ones less)."""
    scenes = []
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        if place.name in DECIMATED_SCENES or place.name in hold_out:
            continue
        for path in sorted(place.glob("*.tif")):
            with open_source(path, nodata=NO_SUCH_VALUE) as source:
                if min(source.header.grid.shape) < SHORTEST:
                    continue
                stored = source.read(Box.whole(source.header.grid.shape)).astype(np.float32)
            samples = np.stack([_unit_range(band) for band in stored])
            weight = 0.15 if place.name in FLAT_SCENES else min(1.0, stored[0].size / 250**2) ** 0.5
            scenes.append(Scene(path.stem, samples, (1, 2), weight, magnitude=False))
            if min(stored.shape[1:]) >= 400 and not place.name.startswith(("s2", "l8", "l9")):
                # an aerial image is softer than its sampling: its half-size copy is not
                half = samples[:, : stored.shape[1] // 2 * 2, : stored.shape[2] // 2 * 2]
                half = half.reshape(len(half), half.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4))
                scenes.append(Scene(f"{path.stem} / 2", half, (1, 2), weight / 2, magnitude=False))
    return _some(scenes, folder)


def _some(scenes: list[Scene], folder: Path) -> list[Scene]:
    if not scenes:
        raise InputError(what="no training data found", why=f"{folder} holds none", fix="point to the data folder")
    return scenes


def _unit_range(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples scaled so that their 1st and 99th percentile are 0 and 1 (a constant: 0)."""
    low, high = np.percentile(samples, [1, 99])
    return np.asarray((samples - low) / (high - low if high > low else 1.0), np.float32)


def draw_scene(rng: np.random.Generator, scenes: Sequence[Scene]) -> Scene:
    """One scene by weight."""
    weights = np.array([s.weight for s in scenes])
    return scenes[int(rng.choice(len(scenes), p=weights / weights.sum()))]


def volume_pair(rng: np.random.Generator, scenes: Sequence[Scene], options: LatticeOptions, extent: int) -> Pair:
    """A plane (thick axis, in-plane axis) of a volume with its neighbours. extent: fine samples of a side at most."""
    scene = draw_scene(rng, scenes)
    axis = int(rng.choice(scene.thick_axes))
    across = [a for a in range(3) if a != axis]
    if scene.sensor is None:
        rng.shuffle(across)
    volume = scene.samples[0].transpose(axis, *across)
    scale, ratio = _draw_slices(rng) if scene.sensor is None else (scene.sensor.scale, Fraction(1))
    coarse = max(3, min(int(volume.shape[0] / scale), int(extent / scale), 36))
    fine = fine_length(coarse, scale)
    while fine > volume.shape[0]:
        coarse -= 1
        fine = fine_length(coarse, scale)
    block, margin = _draw_block(rng, volume, fine, extent, options)
    place = Placement(coarse, fine, scale, (scale - 1) / 2 + (fine - coarse * scale) / 2)
    if scene.sensor is None:
        block = _recontrast(rng, block)
        true, told, fwhm = _draw_profiles(rng, place, float(ratio * scale))
        sigma = _draw_noise(rng, 0.04)
    else:
        fwhm, sigma = scene.sensor.profile.fwhm_coarse(1.0, millimetres=True), scene.sensor.noise
        true = told = axis_matrix(place, scene.sensor.profile, fwhm * float(scale))
    measured = (true @ block.reshape(fine, -1)).reshape(coarse, *block.shape[1:])
    if sigma > 0:
        noise = rng.normal(0.0, sigma, (2, *measured.shape))
        measured = np.hypot(measured + noise[0], noise[1]) if scene.magnitude else measured + noise[0]
    centre = options.planes // 2
    core = slice(margin, block.shape[1] - margin)
    observed = np.ascontiguousarray(measured[:, core, centre])
    truth = block[:, core, centre]
    degradation = Degradation((coarse, observed.shape[1]), (fine, observed.shape[1]), (told, None))
    cubic, floor, twin = cubic_and_floor(observed, degradation, (place, None), sigma)
    halo = options.margin[0]
    index, phase = locate(place.coordinates())
    extended = measured[reflected(-halo, coarse + halo, coarse)].transpose(2, 0, 1)
    return Pair(
        coarse=_tensor(extended),
        rows=torch.tensor(index),
        columns=None,
        phases=torch.tensor([[float(p)] for p in phase]),
        phase_map=None,
        condition=torch.tensor(condition_features(float(scale), fwhm, sigma)),
        twin=twin,
        cubic=_tensor(cubic),
        floor=_tensor(floor),
        truth=_tensor(truth),
        unit=float(np.abs(floor - truth).mean()) + 0.004,
        clean=sigma == 0,
    )


def raster_pair(rng: np.random.Generator, scenes: Sequence[Scene], options: LatticeOptions, extent: int) -> Pair:
    """A window of one band. extent: coarse samples of a side at most."""
    scene = draw_scene(rng, scenes)
    band = scene.samples[int(rng.integers(len(scene.samples)))]
    scale = scene.sensor.scale if scene.sensor else _draw_scale(rng)
    coarse = [min(int(n / scale), extent) for n in band.shape]
    fine = [fine_length(m, scale) for m in coarse]
    coarse = [m - (f > n) for m, f, n in zip(coarse, fine, band.shape, strict=True)]
    fine = [fine_length(m, scale) for m in coarse]
    truth = _draw_window(rng, band, fine)
    if scene.sensor is None and rng.random() < 0.3:
        truth = 1.0 - truth if rng.random() < 0.3 else np.maximum(truth, 0.0) ** np.exp(rng.uniform(-0.4, 0.4))
    places = [
        Placement(m, n, scale, (scale - 1) / 2 + (n - m * scale) / 2) for m, n in zip(coarse, truth.shape, strict=True)
    ]
    told_mtf, true_mtf = (scene.sensor.profile,) * 2 if scene.sensor else _draw_mtf(rng)
    told = tuple(axis_matrix(p, told_mtf) for p in places)
    true = tuple(axis_matrix(p, true_mtf) for p in places)
    measured = Degradation(tuple(coarse), truth.shape, true).forward(truth)
    sigma = scene.sensor.noise if scene.sensor else _draw_noise(rng, 0.08)
    if sigma > 0:
        measured = measured + rng.normal(0.0, sigma, measured.shape)
    degradation = Degradation(tuple(coarse), truth.shape, told)
    cubic, floor, twin = cubic_and_floor(measured, degradation, (places[0], places[1]), sigma)
    halo = options.margin[0]
    rows, columns = (reflected(-halo, m + halo, m) for m in coarse)
    located = [locate(p.coordinates()) for p in places]
    phases, phase_map = distinct_phases(located[0][1], located[1][1])
    return Pair(
        coarse=_tensor(measured[rows][:, columns][None]),
        rows=torch.tensor(located[0][0]),
        columns=torch.tensor(located[1][0]),
        phases=phases,
        phase_map=phase_map,
        condition=torch.tensor(condition_features(float(scale), told_mtf.fwhm_coarse(1.0, millimetres=False), sigma)),
        twin=twin,
        cubic=_tensor(cubic),
        floor=_tensor(floor),
        truth=_tensor(truth),
        unit=float(np.abs(floor - truth).mean()) + 0.003,
        clean=sigma == 0,
    )


MAKERS: dict[str, Callable[[np.random.Generator, Sequence[Scene], LatticeOptions, int], Pair]] = {
    "volumes": volume_pair,
    "rasters": raster_pair,
}
"""Kind of training data -> how a pair is made of it."""


def distinct_phases(rows: Sequence[Fraction], columns: Sequence[Fraction]) -> tuple[Tensor, Tensor]:
    """The distinct (row, column) phases (n, 2), and for each fine pixel (ny, nx) the number of its own."""
    ys, xs = sorted(set(rows)), sorted(set(columns))
    table = torch.tensor([[float(y), float(x)] for y in ys for x in xs], dtype=torch.float64)
    y = torch.tensor([ys.index(p) for p in rows])
    x = torch.tensor([xs.index(p) for p in columns])
    return table.float(), y[:, None] * len(xs) + x


def _draw_scale(rng: np.random.Generator) -> Fraction:
    """Of a raster: most often 2."""
    return Fraction(int(rng.choice([4, 4, 4, 4, 4, 4, 4, 6, 8, 8, int(rng.integers(4, 9))])), 2)


def _draw_slices(rng: np.random.Generator) -> tuple[Fraction, Fraction]:
    """Scale, and thickness over spacing."""
    if rng.random() < 0.55:
        thickness, gap = PROTOCOL[int(rng.integers(len(PROTOCOL)))]
        return Fraction(thickness + gap), Fraction(thickness, thickness + gap)
    scale = Fraction(round(12 * float(np.exp(rng.uniform(np.log(1.5), np.log(8.0))))), 12)
    ratio = 1.0 if rng.random() < 0.4 else rng.uniform(0.5, 1.2)
    return scale, Fraction(round(100 * float(ratio)), 100)


def _draw_profiles(rng: np.random.Generator, place: Placement, width: float) -> tuple[Matrix, Matrix, float]:
    """True and told matrix, and the told width in coarse samples."""
    kind = str(rng.choice(["slice", "slice", "slice", "slice", "cosine", "box"]))
    error = rng.uniform(0.8, 1.25) if rng.random() < 0.35 else 1.0
    told_kind = kind if rng.random() < 0.85 else "slice"
    true = axis_matrix(place, Profile(kind, width * error), width * error)
    told = axis_matrix(place, Profile(told_kind, width), width)
    return true, told, width / float(place.scale)


def _draw_mtf(rng: np.random.Generator) -> tuple[Profile, Profile]:
    """Told and true blur of a raster."""
    told = 0.3 if rng.random() < 0.6 else float(rng.uniform(0.15, 0.45))
    true = float(np.clip(told * rng.uniform(0.7, 1.3), 0.08, 0.6)) if rng.random() < 0.3 else told
    return Profile("mtf", told), Profile("mtf", true)


def _draw_noise(rng: np.random.Generator, most: float) -> float:
    """Standard deviation over the range of the scene: none in more than half of the pairs."""
    return 0.0 if rng.random() < 0.58 else float(np.exp(rng.uniform(np.log(0.002), np.log(most))))


def _draw_block(
    rng: np.random.Generator, volume: NDArray[np.float32], fine: int, extent: int, options: LatticeOptions
) -> tuple[Array, int]:
    """(fine, columns with margin, planes) of a volume, not all air; the margin per side."""
    margin = options.margin[1] * options.fold
    columns = min(volume.shape[1], extent) // options.fold * options.fold
    for _ in range(4):
        z = int(rng.integers(volume.shape[0] - fine + 1))
        x = int(rng.integers(volume.shape[1] - columns + 1))
        c = int(rng.integers(volume.shape[2]))
        half = options.planes // 2
        xs = reflected(x - margin, x + columns + margin, volume.shape[1])
        cs = reflected(c - half, c + half + 1, volume.shape[2])
        core = volume[z : z + fine, x : x + columns, c]
        if (core > 0.08).mean() > 0.3:
            break
    block = volume[z : z + fine][:, xs][:, :, cs].astype(np.float64)
    if rng.random() < 0.5:
        block = block[::-1]
    if rng.random() < 0.5:
        block = block[:, ::-1]
    if rng.random() < 0.5:
        block = block[:, :, ::-1]
    return np.ascontiguousarray(block), margin


def _draw_window(rng: np.random.Generator, band: NDArray[np.float32], shape: Sequence[int]) -> Array:
    """A window of a band, turned and flipped, preferably not flat."""
    for _ in range(3):
        y, x = (int(rng.integers(n - m + 1)) for n, m in zip(band.shape, shape, strict=True))
        window = band[y : y + shape[0], x : x + shape[1]].astype(np.float64)
        if window.std() > 0.02:
            break
    if rng.random() < 0.5:
        window = window[::-1]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    if window.shape[0] == window.shape[1] and rng.random() < 0.5:
        window = window.T
    return np.ascontiguousarray(window)


def _recontrast(rng: np.random.Generator, block: Array) -> Array:
    """Another contrast of the same anatomy: gamma, inversion or a random curve, and a smooth bias field."""
    kind = rng.choice(["same", "gamma", "invert", "rising", "any"], p=[0.45, 0.25, 0.1, 0.12, 0.08])
    if kind == "gamma":
        block = np.maximum(block, 0.0) ** np.exp(rng.uniform(-0.6, 0.6))
    elif kind == "invert":
        block = np.maximum(1.2 - block, 0.0)
    elif kind in ("rising", "any"):
        knots = int(rng.integers(6, 11))
        values = rng.random(knots)
        values = np.cumsum(values) / values.sum() if kind == "rising" else values
        curve = np.interp(block, np.linspace(-0.1, 1.2, knots), values)
        share = rng.uniform(0.3, 1.0)
        block = share * curve + (1 - share) * block
    if rng.random() < 0.3:
        z, x = (np.linspace(-1, 1, n) for n in block.shape[:2])
        a = rng.normal(0, 0.12, 5)
        field = a[0] * z[:, None] + a[1] * x + a[2] * z[:, None] * x + a[3] * z[:, None] ** 2 + a[4] * x**2
        block = block * np.exp(field)[:, :, None]
    return block


def cubic_and_floor(
    observed: Array, degradation: Degradation, places: tuple[Placement | None, ...], sigma: float
) -> tuple[Array, Array, Twin]:
    """Cubic, its projection and the projection's twin, with the weight that suits the noise."""
    interpolations = tuple(None if p is None else interpolation_matrix(p, "cubic") for p in places)
    cubic = observed
    for axis, w in enumerate(interpolations):
        if w is not None:
            cubic = along(w, cubic, axis)
    weight = stable_weight(degradation)
    if sigma > 0:
        weights, risk, _ = stein_weight(observed, degradation, interpolations, sigma)
        weight = max(weight, float(weights[int(np.argmin(risk))]))
    spectra = [Spectrum.of(m) for m in degradation.matrices if m is not None]
    twin = Twin.of(degradation, weight, spectra)
    floor = project(cubic, observed, degradation, solver=Solver(degradation, weight, spectra)).image
    return cubic, floor, twin


def _tensor(array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
