"""A numerical MR head (T2-weighted) with its truth at 1 mm, and the thick slices a 2-D scan would deliver.

Skull and scalp, folded cortex, ventricles, deep nuclei, cerebellum, vessels of 0.7 to 2.5 mm, perivascular spaces and
lesions of 2 to 6 mm. Painted at half a millimetre and averaged, so edges have partial volume. Not a model of anyone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.degradation import Degradation, Profile
from pipelines.grid import Frame, Grid
from pipelines.image import IN_PLANE, ArraySource, Channel, Fact, Header
from pipelines.samples import Sample, anatomy
from pipelines.samples.texture import Field, band_limited, blended, block_mean, coverage, refined

SLICE_MM = 4.0
"""Thickness and spacing of the input's slices: no gap."""

NOISE = 0.01
"""Standard deviation of each of the two channels of the Rician noise, over the 99.9th percentile of the truth."""

FULL_SCALE = 1000.0
"""Stored value of cerebrospinal fluid, before the bias field."""

SLAB = 8
"""Slices of 1 mm painted at once: bounds the memory."""

ANGLES_DEG = (8.0, -3.0, 4.0)
"""Tilt of the scan about the left, posterior and head axes."""

FINE_MM = 0.5
"""Samples on which tissue is painted."""

AIR, BONE, MARROW, FAT, SKIN, MUSCLE = 0.0, 0.04, 0.34, 0.56, 0.36, 0.20
CSF, GREY, WHITE, NUCLEI, PALLIDUM, LESION, VESSEL = 1.0, 0.53, 0.33, 0.47, 0.27, 0.74, 0.05
"""Signal of each tissue, cerebrospinal fluid = 1."""


def head(seed: int = 7) -> Sample:
    """The phantom: truth (160, 192, 160) at 1 mm, input (40, 192, 160) of 4 mm slices; both int16, LPS mm."""
    rng = np.random.default_rng(seed)
    scene = _scene(rng)
    truth = np.rint(scene * FULL_SCALE).astype(np.int16)
    fine = Grid("zyx", truth.shape, _affine(truth.shape), Frame("mm", "patient", ""))
    coarse = _slices(fine)
    degraded = Degradation.between(coarse, fine, (Profile("slice", SLICE_MM), IN_PLANE, IN_PLANE)).forward(truth)
    sigma = NOISE * float(np.percentile(truth, 99.9))
    real, imaginary = (rng.normal(scale=sigma, size=degraded.shape) for _ in range(2))
    measured = np.rint(np.hypot(degraded + real, imaginary)).astype(np.int16)
    sidecar: dict[str, str | float] = {
        "Modality": "MR",
        "SliceThickness": SLICE_MM,
        "SpacingBetweenSlices": SLICE_MM,
        "SliceEncodingDirection": "k",
        "ImageComments": "numerical phantom",
    }
    return Sample(
        input=ArraySource(measured, _header(coarse, SLICE_MM)),
        truth=ArraySource(truth, _header(fine, 1.0)),
        sidecar=sidecar,
    )


def _affine(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Index (z, y, x) to LPS mm: 1 mm samples, slightly tilted, the middle of the volume near the isocentre."""
    a, b, c = np.deg2rad(ANGLES_DEG)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (about_z @ about_y @ about_x)[:, ::-1]  # columns: z is superior, y posterior, x left
    affine[:3, 3] = np.array([2.5, -14.0, 21.0]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _slices(fine: Grid) -> Grid:
    """The grid of whole thick slices over the same field of view."""
    step = np.eye(4)
    step[0, 0], step[0, 3] = SLICE_MM, (SLICE_MM - 1) / 2
    return Grid("zyx", (int(fine.shape[0] // SLICE_MM), *fine.shape[1:]), fine.affine @ step, fine.frame)


def _header(grid: Grid, thickness_mm: float) -> Header:
    channel = Channel("T2w", (Profile("slice", thickness_mm), IN_PLANE, IN_PLANE), noise_model="rician")
    return Header(
        grid=grid,
        channels=(channel,),
        dtype="int16",
        domain="med",
        modality="MR",
        slice_axis=0,
        facts={"thickness_mm": Fact(thickness_mm, "mm", "phantom")},
        anatomical_axes=("foot-head", "anterior-posterior", "right-left"),
    )


@dataclass(frozen=True, slots=True)
class _Shapes:
    """Signed distances [mm] and textures (Z, Y, X) at 1 mm, in the order of painting."""

    scalp: Field
    skull: Field
    brain: Field
    walls: Field
    depth: Field
    fissure: Field
    cerebellum: Field
    folia: Field
    ventricles: Field
    nuclei: Field
    pallidum: Field
    brainstem: Field
    lesions: Field
    eyes: Field
    cavities: Field
    thickness: Field
    texture: Field


def _scene(rng: np.random.Generator) -> Field:
    """Signal (160, 192, 160), cerebrospinal fluid about 1."""
    shapes = _shapes(rng)
    vessels = _vessels(shapes, rng)
    spaces = _perivascular(shapes, rng)
    length = anatomy.SHAPE[0]
    result: Field = np.empty(anatomy.SHAPE, np.float32)
    for start in range(0, length, SLAB):
        low, high = max(0, start - 1), min(length, start + SLAB + 1)
        inner = slice(2 * (start - low), 2 * (start - low) + 2 * SLAB)
        part = _Shapes(**{n: refined(getattr(shapes, n)[low:high])[inner] for n in _Shapes.__slots__})
        rows = slice(2 * start, 2 * (start + SLAB))
        result[start : start + SLAB] = block_mean(_painted(part, vessels[rows], spaces[rows]), 2)
    fine_texture = band_limited(anatomy.SHAPE, 3.0, rng)
    bias = 1 + np.float32(0.05) * ndimage.zoom(band_limited((20, 24, 20), 24.0, rng), 8, order=1)
    result *= 1 + 0.012 * fine_texture
    result *= bias
    return np.maximum(result, 0.0, out=result)


def _shapes(rng: np.random.Generator) -> _Shapes:
    c = anatomy.coordinates()
    cerebrum = anatomy.cerebrum(c, rng)
    cerebellum = anatomy.ellipsoid(c, *anatomy.CEREBELLUM)
    cerebellum -= np.float32(5.0) * np.exp(-((c.x / 7) ** 2)) * (c.y > 52)  # the notch behind the vermis
    walls, depth = anatomy.sulci(c, rng)
    grey, pale = anatomy.nuclei(c)
    brain = anatomy.union(cerebrum, cerebellum, 6.0)
    stem = anatomy.brainstem(c)
    return _Shapes(
        scalp=_scalp(c, rng),
        skull=anatomy.union(brain, stem, 8.0) + np.float32(0.7) * band_limited(anatomy.SHAPE, 30.0, rng),
        brain=cerebrum,
        walls=walls,
        depth=depth,
        fissure=anatomy.fissure(c, rng),
        cerebellum=cerebellum,
        folia=anatomy.folia(c, rng),
        ventricles=anatomy.ventricles(c) + np.float32(0.5) * band_limited(anatomy.SHAPE, 14.0, rng),
        nuclei=grey + np.float32(0.8) * band_limited(anatomy.SHAPE, 16.0, rng),
        pallidum=pale,
        brainstem=stem,
        lesions=_lesions(c, cerebrum, walls, depth, rng),
        eyes=_eyes(c),
        cavities=_cavities(c, rng),
        thickness=np.asarray(2.5 + 0.35 * band_limited(anatomy.SHAPE, 20.0, rng), np.float32),
        texture=band_limited(anatomy.SHAPE, 8.0, rng, octaves=0.8),
    )


def _scalp(c: anatomy.Coordinates, rng: np.random.Generator) -> Field:
    """The skin: head, face and neck."""
    top = anatomy.ellipsoid(c, (8.0, 0.0, 0.0), (69.0, 92.0, 74.0))
    face = anatomy.ellipsoid(c, (-46.0, -46.0, 0.0), (56.0, 44.0, 52.0))
    neck = anatomy.tubes(c, [(-30.0, 22.0, 0.0, 52.0), (-90.0, 26.0, 0.0, 52.0)], both_sides=False)
    far = anatomy.ellipsoid(c, (-75.0, 20.0, 0.0), (90.0, 56.0, 54.0))
    head_shape = anatomy.union(anatomy.union(top, face, 16.0), np.maximum(neck, far), 14.0)
    return head_shape + np.float32(0.9) * band_limited(anatomy.SHAPE, 40.0, rng)


def _eyes(c: anatomy.Coordinates) -> Field:
    return np.maximum(*(anatomy.ellipsoid(c, (-29.0, -73.0, s * 31.0), (11.5, 12.0, 11.5)) for s in (-1.0, 1.0)))


def _cavities(c: anatomy.Coordinates, rng: np.random.Generator) -> Field:
    """Air of nose, sinuses and mastoid: with thin walls between the cells."""
    nose = anatomy.ellipsoid(c, (-52.0, -58.0, 0.0), (20.0, 30.0, 13.0))
    cheeks = (anatomy.ellipsoid(c, (-56.0, -62.0, s * 28.0), (14.0, 15.0, 11.0)) for s in (-1.0, 1.0))
    ears = (anatomy.ellipsoid(c, (-42.0, 22.0, s * 52.0), (13.0, 11.0, 8.0)) for s in (-1.0, 1.0))
    shape = np.maximum(nose, np.maximum(*cheeks))
    cells = anatomy.sheets(band_limited(anatomy.SHAPE, 17.0, rng), 0.03)
    small = anatomy.sheets(band_limited(anatomy.SHAPE, 9.0, rng), 0.05)
    shape = np.minimum(shape, np.abs(cells) - np.float32(1.6))
    return np.asarray(np.maximum(shape, np.minimum(np.maximum(*ears), np.abs(small) - np.float32(1.0))), np.float32)


def _lesions(
    c: anatomy.Coordinates, brain: Field, walls: Field, depth: Field, rng: np.random.Generator, count: int = 34
) -> Field:
    """Irregular spots of 2 to 6 mm in the white matter."""
    white = np.argwhere((brain > 12) & (np.hypot(walls, np.maximum(brain - depth, 0)) > 4.5))
    result: Field = np.full(anatomy.SHAPE, -16.0, np.float32)
    for z, y, x in white[rng.choice(len(white), count, replace=False)]:
        radii = rng.uniform(1.0, 3.0) * rng.uniform(0.75, 1.35, 3)
        window = tuple(slice(max(0, i - 8), i + 9) for i in (z, y, x))
        local = anatomy.Coordinates(c.z[window[0]], c.y[:, window[1]], c.x[:, :, window[2]])
        centre = (float(c.z[z, 0, 0]), float(c.y[0, y, 0]), float(c.x[0, 0, x]))
        result[window] = np.maximum(result[window], anatomy.ellipsoid(local, centre, tuple(radii)))
    return result + np.float32(0.35) * band_limited(anatomy.SHAPE, 6.0, rng)


def _painted(s: _Shapes, vessels: NDArray[np.uint8], spaces: NDArray[np.uint8]) -> Field:
    """One slab of signal at half a millimetre, from the skin inwards."""
    image = _outside(s)
    pia = np.minimum(s.brain, np.hypot(s.walls, np.maximum(s.brain - s.depth, 0.0)) - _gap(s))
    pia = np.minimum(pia, s.fissure - np.float32(0.9))
    image = _layered(image, pia, s.thickness, GREY * (1 + 0.03 * s.texture), WHITE * (1 + 0.035 * s.texture))
    furrow = np.hypot(s.folia, np.maximum(s.cerebellum - 2.0 - 0.55 * s.depth, 0.0)) - np.float32(0.32)
    leaf = np.minimum(s.cerebellum, furrow)
    bark = np.float32(1.15)
    image = _layered(image, leaf, bark, GREY * (1 + 0.03 * s.texture), (WHITE + 0.04) * (1 + 0.03 * s.texture))
    image = blended(image, (WHITE + 0.06) * (1 + 0.04 * s.texture), coverage(s.brainstem, 2 * FINE_MM))
    image = blended(image, NUCLEI * (1 + 0.03 * s.texture), coverage(s.nuclei, 3 * FINE_MM))
    image = blended(image, PALLIDUM, coverage(s.pallidum, 3 * FINE_MM))
    inside = coverage(s.brain - 6.0, FINE_MM)
    image = blended(image, LESION, coverage(s.lesions, 2 * FINE_MM) * inside)
    image = blended(image, 0.9, spaces.astype(np.float32) / 255 * inside)
    image = blended(image, CSF, coverage(s.ventricles, FINE_MM))
    return blended(image, VESSEL, vessels.astype(np.float32) / 255)


def _gap(s: _Shapes) -> Field:
    """Half the width of a sulcus [mm]: wider at the surface."""
    return np.asarray(0.42 + 0.1 * s.texture + 0.55 * np.exp(-np.maximum(s.brain, 0.0) / 3.0), np.float32)


def _layered(image: Field, depth: Field, thickness: Field | np.float32, bark: Field, core: Field) -> Field:
    image = blended(image, bark, coverage(depth, FINE_MM))
    return blended(image, core, coverage(depth - thickness, 2 * FINE_MM))


def _outside(s: _Shapes) -> Field:
    """Everything around the brain: skin, fat, muscle, bone, marrow, fluid; eyes and air cavities."""
    air: Field = np.zeros(s.scalp.shape, np.float32)
    image = blended(air, SKIN * (1 + 0.1 * s.texture), coverage(s.scalp, FINE_MM))
    image = blended(image, FAT * (1 + 0.08 * s.texture), coverage(s.scalp - 2.0, FINE_MM))
    muscle = MUSCLE * (1 + 0.25 * s.texture)
    image = blended(image, muscle, coverage(np.minimum(s.scalp - 5.5 - 0.8 * s.texture, 40.0), 2 * FINE_MM))
    septa = coverage(np.float32(0.8) - np.abs(s.walls), FINE_MM)  # fat between the muscles
    image = blended(image, FAT, septa * coverage(s.scalp - 5.0, FINE_MM) * coverage(-s.skull - 14.0, FINE_MM))
    image = blended(image, BONE, coverage(s.skull + 10.0, FINE_MM) * coverage(s.scalp - 3.0, FINE_MM))
    marrow = coverage(s.skull + 8.0 + 0.6 * s.texture, FINE_MM) * coverage(s.scalp - 5.0, FINE_MM)
    image = blended(image, MARROW * (1 + 0.2 * s.texture), marrow)
    image = blended(image, BONE, coverage(s.skull + 5.2, FINE_MM))
    image = blended(image, CSF * (1 - 0.06 * np.abs(s.texture)), coverage(s.skull + 3.2, FINE_MM))
    image = blended(image, AIR, coverage(s.cavities, FINE_MM) * coverage(-s.skull - 5.0, FINE_MM))
    image = blended(image, BONE, coverage(s.eyes + 1.2, FINE_MM))
    return blended(image, 0.97, coverage(s.eyes, FINE_MM))


def _vessels(s: _Shapes, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Coverage (2Z, 2Y, 2X) of arteries: trunks from the base, and branches that run along the sulci."""
    paths = [_trunk(p) for p in TRUNKS]
    slope = np.stack(list(np.gradient(s.walls)), axis=-1)
    wet = np.argwhere((np.abs(s.walls) < 0.7) & (s.brain > 0) & (s.brain < s.depth))
    seeds = wet[rng.choice(len(wet), 330, replace=False)].astype(float)
    paths += [_walk(seed, s, slope, rng) for seed in seeds]
    return _stamped(np.concatenate(paths))


TRUNKS: tuple[tuple[tuple[float, float, float, float], ...], ...] = (
    ((-80.0, 2.0, 9.0, 1.25), (-50.0, 0.0, 5.0, 1.25), (-38.0, -4.0, 0.5, 1.2), (-16.0, -7.0, -0.5, 1.1)),
    ((-80.0, 2.0, -9.0, 1.2), (-52.0, 0.0, -5.0, 1.2), (-38.0, -4.0, 0.5, 1.2)),
    ((-80.0, -8.0, 24.0, 1.9), (-40.0, -10.0, 20.0, 1.8), (-18.0, -20.0, 12.0, 1.7), (-12.0, -20.0, 14.0, 1.5)),
    ((-80.0, -8.0, -24.0, 1.9), (-40.0, -9.0, -20.0, 1.8), (-18.0, -20.0, -12.0, 1.7), (-12.0, -20.0, -14.0, 1.5)),
    ((-12.0, -20.0, 14.0, 1.3), (-9.0, -22.0, 28.0, 1.1), (-2.0, -16.0, 40.0, 0.9), (14.0, 4.0, 47.0, 0.6)),
    ((-12.0, -20.0, -14.0, 1.3), (-8.0, -22.0, -28.0, 1.1), (0.0, -17.0, -41.0, 0.9), (12.0, 2.0, -48.0, 0.6)),
    ((-12.0, -22.0, 12.0, 1.1), (-8.0, -36.0, 1.5, 1.0), (18.0, -52.0, 0.6, 0.9), (40.0, -38.0, 0.8, 0.7)),
    ((-12.0, -22.0, -12.0, 1.1), (-8.0, -36.0, -1.5, 1.0), (20.0, -50.0, -1.0, 0.9), (38.0, -20.0, -0.5, 0.6)),
    ((-16.0, -7.0, 0.0, 1.0), (-14.0, 2.0, 14.0, 0.9), (-8.0, 20.0, 17.0, 0.8), (2.0, 44.0, 10.0, 0.6)),
    ((-16.0, -7.0, 0.0, 1.0), (-15.0, 3.0, -14.0, 0.9), (-7.0, 21.0, -17.0, 0.8), (4.0, 46.0, -9.0, 0.5)),
)
"""Centre lines (z, y, x) and radii [mm] of the arteries: vertebral, carotid, middle, anterior, posterior."""


def _trunk(points: tuple[tuple[float, float, float, float], ...]) -> NDArray[np.float64]:
    """Points (n, 4) every 0.3 mm in index units of the 1 mm lattice, and radii."""
    p = np.array(points)
    t = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(p[:, :3], axis=0), axis=1))])
    s = np.arange(0.0, t[-1], 0.3)
    dense = np.stack([np.interp(s, t, column) for column in p.T], axis=1)
    dense = ndimage.gaussian_filter1d(dense, 15, axis=0, mode="nearest")
    dense[:, 1] += 1.2 * np.sin(s / 7.0)
    dense[:, :3] += (np.array(anatomy.SHAPE) - 1) / 2
    return np.asarray(dense)


def _walk(
    start: NDArray[np.float64], s: _Shapes, slope: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float64]:
    """A vessel (n, 4) that wanders within the sulcus it starts in, thinning from up to 1 mm to 0.35 mm radius."""
    steps, step = int(rng.integers(30, 130)), 0.4
    radius = np.linspace(rng.uniform(0.45, 1.0), 0.35, steps)
    direction, at = rng.normal(size=3), start.copy()
    path = np.empty((steps, 4))
    limit = np.array(anatomy.SHAPE) - 2
    for n in range(steps):
        z, y, x = np.clip(np.rint(at).astype(int), 1, limit)
        normal = slope[z, y, x].astype(float)
        normal /= np.linalg.norm(normal) + 1e-6
        direction += 0.35 * rng.normal(size=3)
        direction -= normal * (normal @ direction + 0.3 * float(s.walls[z, y, x]))  # back to the middle of the sulcus
        direction /= np.linalg.norm(direction) + 1e-6
        at = at + step * direction
        path[n] = (*at, radius[n])
    return path


def _perivascular(s: _Shapes, rng: np.random.Generator, count: int = 420) -> NDArray[np.uint8]:
    """Coverage (2Z, 2Y, 2X) of fluid-filled spaces: fine, nearly straight lines from the cortex to the ventricles."""
    white = np.argwhere((s.brain > 14) & (s.brain < 34) & (np.abs(s.walls) > 3) & (s.nuclei < -2))
    middle = np.array([86.0, 95.0, 79.5])
    paths = []
    for seed in white[rng.choice(len(white), count, replace=False)]:
        inwards = middle - seed + rng.normal(scale=12, size=3)
        inwards /= np.linalg.norm(inwards)
        t = np.arange(0.0, rng.uniform(4.0, 14.0), 0.3)[:, None]
        sway = rng.normal(size=3) * np.sin(t / 4.0)
        radius = np.full_like(t, rng.uniform(0.28, 0.5))
        paths.append(np.concatenate([seed + t * inwards + 0.6 * sway, radius], axis=1))
    return _stamped(np.concatenate(paths))


def _stamped(points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Balls (n, 4: index at 1 mm, radius) as coverage 0..255 on the lattice of half a millimetre."""
    shape = tuple(2 * n for n in anatomy.SHAPE)
    result = np.zeros(shape, np.uint8)
    where = 2 * points[:, :3] + 0.5
    radius = points[:, 3] / FINE_MM
    corner = np.rint(where).astype(int)
    reach = int(np.ceil(radius.max() + 0.5))
    span = np.arange(-reach, reach + 1)
    for offset in np.stack(np.meshgrid(span, span, span, indexing="ij"), -1).reshape(-1, 3):
        index = corner + offset
        share = np.clip(radius + 0.5 - np.linalg.norm(index - where, axis=1), 0.0, 1.0)
        keep = (share > 0) & ((index >= 0) & (index < shape)).all(axis=1)
        i = tuple(index[keep].T)
        np.maximum.at(result, i, (255 * share[keep]).astype(np.uint8))
    return result
