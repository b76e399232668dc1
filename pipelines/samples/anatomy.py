"""Shapes of a numerical head at 1 mm: signed distances in mm (positive inside) that `head` paints at half a millimetre.

Coordinates are mm from the middle of the volume: z to the head, y to the back, x to the left. Sizes are those of an
adult head to about a centimetre. A sulcus is a surface where band-limited noise, drawn on the brain's surface and
carried inwards, is zero: such surfaces wind and branch as convolutions do.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

from pipelines.samples.texture import Field, band_limited

SHAPE = (160, 192, 160)
"""Samples of 1 mm, (z, y, x)."""

CEREBRUM = ((12.0, -2.0, 0.0), (56.0, 77.0, 61.0))
"""Centre and half axes (z, y, x) [mm]."""

CEREBELLUM = ((-35.0, 42.0, 0.0), (21.0, 27.0, 46.0))
FOLIUM_MM = 4.6
"""Distance of neighbouring folia of the cerebellum."""

GYRUS_WAVELENGTH_MM = 21.0
"""Period of the convolutions: two sulci."""


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Open coordinates z (Z,1,1), y (1,Y,1), x (1,1,X) [mm]."""

    z: Field
    y: Field
    x: Field


def coordinates(shape: tuple[int, ...] = SHAPE) -> Coordinates:
    """Of the centres of all samples."""
    z, y, x = (np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2) for n in shape)
    return Coordinates(z[:, None, None], y[None, :, None], x[None, None, :])


def ellipsoid(c: Coordinates, centre: tuple[float, ...], radii: tuple[float, ...]) -> Field:
    """Approximate signed distance to an ellipsoid, exact at its surface to first order."""
    z, y, x = c.z - np.float32(centre[0]), c.y - np.float32(centre[1]), c.x - np.float32(centre[2])
    az, ay, ax = (np.float32(1.0 / r) for r in radii)
    k0 = np.sqrt((z * az) ** 2 + (y * ay) ** 2 + (x * ax) ** 2)
    k1 = np.sqrt((z * az * az) ** 2 + (y * ay * ay) ** 2 + (x * ax * ax) ** 2)
    return np.asarray(k0 * (1.0 - k0) / np.maximum(k1, np.float32(1e-3)), np.float32)


def union(a: Field, b: Field, smooth_mm: float) -> Field:
    """Union of two shapes with a rounded seam (polynomial smooth maximum)."""
    h = np.clip(0.5 + 0.5 * (a - b) / np.float32(smooth_mm), 0.0, 1.0)
    return np.asarray(b + (a - b) * h + np.float32(smooth_mm) * h * (1.0 - h), np.float32)


def tubes(c: Coordinates, points: list[tuple[float, float, float, float]], both_sides: bool = True) -> Field:
    """Signed distance to a chain of round cones through points (z, y, x, radius), mirrored in x if asked."""
    path = np.array(points)
    dense = np.concatenate([np.linspace(a, b, 24, endpoint=False) for a, b in pairwise(path)] + [path[-1:]])
    for column in range(4):
        dense[:, column] = ndimage.gaussian_filter1d(dense[:, column], 6, mode="nearest")
    if both_sides:
        dense = np.concatenate([dense, dense * [1, 1, -1, 1]])
    low, high = dense[:, :3].min(0) - 14, dense[:, :3].max(0) + 14
    axes = (c.z.ravel(), c.y.ravel(), c.x.ravel())
    window = tuple(
        slice(int(np.searchsorted(a, lo)), int(np.searchsorted(a, hi)))
        for a, lo, hi in zip(axes, low, high, strict=True)
    )
    grid = np.stack(np.meshgrid(*(a[w] for a, w in zip(axes, window, strict=True)), indexing="ij"), axis=-1)
    distance, nearest = spatial.cKDTree(dense[:, :3]).query(grid, distance_upper_bound=16.0)
    radius = np.append(dense[:, 3], 0.0)[nearest]
    result: Field = np.full(tuple(len(a) for a in axes), -16.0, np.float32)
    result[window] = np.maximum(radius - np.minimum(distance, 16.0), -16.0)
    return result


def cerebrum(c: Coordinates, rng: np.random.Generator) -> Field:
    """Both hemispheres without their fissure: an egg with temporal lobes and a hollow base."""
    egg = ellipsoid(c, *CEREBRUM)
    base = c.z + np.float32(16.0) + 0.0022 * c.x**2 - np.float32(0.10) * c.y * (c.y > 0)
    egg = -union(-egg, -np.broadcast_to(base, SHAPE), 14.0)
    for side in (-1.0, 1.0):
        lobe = ellipsoid(c, (-18.0, -14.0, side * 37.0), (19.0, 36.0, 20.0))
        egg = union(egg, lobe, 9.0)
    return egg + np.float32(1.2) * band_limited(SHAPE, 60.0, rng)


def on_surface(
    c: Coordinates, noise: NDArray[np.float32], step_mm: float, bend: tuple[Field, ...] | None = None
) -> Field:
    """Noise of a coarser lattice (centred, `step_mm`), read where the ray from the brain's centre leaves its surface.

    A part of the depth is kept, so that the walls bend on their way inwards; bend: more of that, one offset [mm] per
    axis (z, y, x), growing from the surface.
    """
    (cz, cy, cx), (rz, ry, rx) = CEREBRUM
    z, y, x = c.z - np.float32(cz - 6), c.y - np.float32(cy), c.x - np.float32(cx)
    rho = np.sqrt((z / rz) ** 2 + (y / ry) ** 2 + (x / rx) ** 2)
    stretch = (np.float32(0.6) + np.float32(0.4) * rho) / np.maximum(rho, np.float32(0.05)) / np.float32(step_mm)
    where = [np.asarray(u * stretch + np.float32(n / 2)) for u, n in zip((z, y, x), noise.shape, strict=True)]
    if bend is not None:
        inwards = np.clip((1.0 - rho) * np.float32(3.0 / step_mm), 0.0, 1.0 / step_mm)
        where = [w + inwards * b for w, b in zip(where, bend, strict=True)]
    return np.asarray(ndimage.map_coordinates(noise, where, order=1, mode="wrap", output=np.float32))


def sheets(field: Field, steepness: float) -> Field:
    """Signed distance [mm] to the zero surfaces of a field, from its gradient; tamed where the field is flat."""
    slope = np.sqrt(sum(np.square(g) for g in np.gradient(field)))
    return np.asarray(np.clip(field / np.maximum(slope, np.float32(steepness)), -16.0, 16.0), np.float32)


def sulci(c: Coordinates, rng: np.random.Generator) -> tuple[Field, Field]:
    """(signed distance to the walls of the sulci, depth down to which each sulcus reaches) [mm]."""
    step = 2.0
    lattice = (88, 104, 88)
    noise = band_limited(lattice, GYRUS_WAVELENGTH_MM / step, rng, octaves=0.38)
    noise += np.float32(0.18) * band_limited(lattice, 9.0 / step, rng)  # the wiggle of single walls
    # smoother than linear: a kink every 2 mm would show in the folds
    fine = ndimage.gaussian_filter(ndimage.zoom(noise, 2, order=3, mode="grid-wrap", grid_mode=True), 0.7, mode="wrap")
    bend = tuple(np.float32(5.0) * band_limited(SHAPE, 34.0, rng) for _ in range(3))
    walls = ndimage.gaussian_filter(on_surface(c, fine, step / 2, bend), 0.6)
    depth = on_surface(c, band_limited(lattice, 36.0 / step, rng), step)
    return sheets(walls, 0.05), np.clip(16.5 + 5.0 * depth, 5.0, 26.0).astype(np.float32)


def fissure(c: Coordinates, rng: np.random.Generator) -> Field:
    """Signed distance to the sheet between the hemispheres; beyond its lower end, distance to that end."""
    wander = np.float32(1.1) * band_limited(SHAPE[:2], 45.0, rng)[:, :, None]
    lower = np.float32(30.0) - 0.012 * (c.y - 2.0) ** 2  # it ends on the corpus callosum
    below = np.maximum(lower - c.z, 0.0) * (np.abs(c.y - 2.0) < 46)
    return np.asarray(np.hypot(c.x - wander, below), np.float32)


def folia(c: Coordinates, rng: np.random.Generator) -> Field:
    """Signed distance to the fissures between folia: a fan of sheets around the fourth ventricle, bent by noise."""
    dy, dz = c.y - np.float32(20.0), c.z + np.float32(33.0)
    angle = np.arctan2(dz, dy)
    bend = band_limited(SHAPE, 26.0, rng) + np.float32(0.45) * band_limited(SHAPE, 11.0, rng)
    phase = angle * np.float32(30.0 / FOLIUM_MM) + np.float32(0.55) * bend + np.float32(0.002) * c.x**2
    off = phase - np.round(phase)
    radius = np.maximum(np.hypot(dy, dz), np.float32(6.0))
    return np.asarray(off * radius * np.float32(FOLIUM_MM / 30.0), np.float32)


def ventricles(c: Coordinates) -> Field:
    """Lateral ventricles with their horns, third, aqueduct and fourth."""
    body = [
        (17.0, -34.0, 9.0, 2.0),
        (21.0, -22.0, 8.0, 5.0),
        (24.0, 0.0, 10.0, 4.6),
        (20.0, 22.0, 18.0, 5.5),
        (10.0, 32.0, 25.0, 6.0),
        (-2.0, 24.0, 31.0, 3.4),
        (-13.0, 4.0, 33.0, 2.2),
        (-16.0, -8.0, 31.0, 1.2),
    ]
    horn = [(12.0, 32.0, 24.0, 5.0), (9.0, 46.0, 22.0, 3.2), (7.0, 56.0, 19.0, 1.0)]
    middle = [(-6.0, 12.0, 0.0, 1.0), (-18.0, 17.0, 0.0, 1.0), (-30.0, 22.0, 0.0, 4.0), (-44.0, 23.0, 0.0, 1.2)]
    third = ellipsoid(c, (4.0, 0.0, 0.0), (11.0, 14.0, 1.9))
    shapes = (tubes(c, horn), third, tubes(c, middle, both_sides=False))
    result = tubes(c, body)
    for shape in shapes:
        result = union(result, shape, 2.0)
    return result


def nuclei(c: Coordinates) -> tuple[Field, Field]:
    """(grey nuclei: thalamus, caudate, putamen; pallidum), both sides."""
    grey: Field = np.full(SHAPE, -16.0, np.float32)
    pale = grey.copy()
    for side in (-1.0, 1.0):
        for centre, radii in (
            ((8.0, 7.0, 11.0), (9.0, 15.0, 8.0)),
            ((19.0, -22.0, 15.0), (8.0, 12.0, 5.0)),
            ((6.0, -6.0, 27.0), (10.0, 17.0, 6.0)),
        ):
            grey = np.maximum(grey, ellipsoid(c, (centre[0], centre[1], side * centre[2]), radii))
        pale = np.maximum(pale, ellipsoid(c, (3.0, -4.0, side * 20.0), (7.0, 10.0, 4.5)))
    return grey, pale


def brainstem(c: Coordinates) -> Field:
    """Midbrain, pons and medulla."""
    stem = [(-2.0, 8.0, 0.0, 13.0), (-14.0, 9.0, 0.0, 12.0), (-28.0, 8.0, 0.0, 12.5), (-46.0, 12.0, 0.0, 8.0)]
    return tubes(c, [*stem, (-62.0, 19.0, 0.0, 6.0), (-82.0, 24.0, 0.0, 5.5)], both_sides=False)
