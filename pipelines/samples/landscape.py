"""A numerical landscape in four bands with its truth at 5 m, and what a sensor of 10 m would deliver.

Fields with rows, tramlines and moist patches, hedges, roads, settlements, a meandering river, ponds, woods with crowns
and shaded relief, in UTM zone 32 north. Drawn at 2.5 m and averaged, so edges hold mixed pixels. Not a real place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.degradation import Degradation, Profile
from pipelines.grid import Frame, Grid
from pipelines.image import ArraySource, Channel, Fact, Header
from pipelines.samples import Sample
from pipelines.samples.drawing import DRAWN_M, SPECTRA, SUN, Canvas, bent, crowns, distance_to, hashed
from pipelines.samples.settlements import draw_towns
from pipelines.samples.texture import Field, band_limited, block_mean, coverage, fractal

SIZE = 1024
"""Truth samples per side."""

TRUTH_M = 5.0
"""Spacing of the truth; the input's is twice that."""

ORIGIN_M = (652_480.0, 5_327_680.0)
"""Easting and northing of the outer upper left corner."""

NOISE_DN = 6.0
"""Standard deviation of the input's noise: about 1/150 of bright soil, as in Sentinel-2."""

BANDS = ("B02", "B03", "B04", "B08")
"""Blue, green, red and near infrared, as Sentinel-2 calls them."""

UTM_32N = (
    'PROJCS["WGS 84 / UTM zone 32N",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,'
    'AUTHORITY["EPSG","7030"]],AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],'
    'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]],'
    'PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",9],'
    'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],PARAMETER["false_northing",0],'
    'UNIT["metre",1,AUTHORITY["EPSG","9001"]],AXIS["Easting",EAST],AXIS["Northing",NORTH],'
    'AUTHORITY["EPSG","32632"]]'
)
"""EPSG:32632 as WKT 1."""

CROPS = ("meadow", "maize", "beet", "wheat", "rape", "stubble", "soil", "dark soil", "meadow", "wheat")
"""What a field may carry; twice = twice as often."""


def landscape(seed: int = 11) -> Sample:
    """The phantom: truth (4, 1024, 1024) at 5 m, input (4, 512, 512) at 10 m; both uint16, reflectance x 10000."""
    rng = np.random.default_rng(seed)
    truth = np.stack([_quantised(band * 10_000.0) for band in _scene(rng)])
    fine = _grid(SIZE, TRUTH_M)
    coarse = _grid(SIZE // 2, 2 * TRUTH_M)
    profile = Profile("mtf", 0.3)
    degraded = Degradation.between(coarse, fine, (profile, profile)).forward(truth.astype(np.float32))
    measured = _quantised(degraded + rng.normal(scale=NOISE_DN, size=degraded.shape))
    return Sample(ArraySource(measured, _header(coarse)), ArraySource(truth, _header(fine)))


def _quantised(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    return np.asarray(np.clip(np.rint(values), 1, 65535), np.uint16)


def _grid(size: int, spacing_m: float) -> Grid:
    """North-up; the affine takes (row, column) of centres to easting and northing."""
    east, north = ORIGIN_M
    half = spacing_m / 2
    affine = np.array([[0.0, spacing_m, east + half], [-spacing_m, 0.0, north - half], [0.0, 0.0, 1.0]])
    return Grid("yx", (size, size), affine, Frame("m", "map", UTM_32N))


def _header(grid: Grid) -> Header:
    profile = Profile("mtf", 0.3)
    return Header(
        grid=grid,
        channels=tuple(Channel(name, (profile, profile)) for name in BANDS),
        dtype="uint16",
        domain="geo",
        modality="optical",
        facts={"reflectance_scale": Fact(1e-4, "", "phantom")},
    )


def _scene(rng: np.random.Generator) -> Field:
    """Reflectance (4, SIZE, SIZE)."""
    n = int(SIZE * TRUTH_M / DRAWN_M)
    metres = (np.arange(n, dtype=np.float32) + np.float32(0.5)) * np.float32(DRAWN_M)
    canvas = Canvas(np.empty((4, n, n), np.float32), metres[:, None], metres[None, :])
    height = fractal((n, n), 1400.0, 2.1, rng)
    _draw_fields(canvas, rng)
    towns = rng.uniform(450, n * DRAWN_M - 450, size=(9, 2))
    wood = _draw_woods(canvas, height, towns, rng)
    stream = _river(n, rng)
    _draw_tracks(canvas, rng)
    draw_towns(canvas, towns, stream, rng)
    _draw_water(canvas, stream, height, rng)
    _draw_roads(canvas, towns, rng)
    canvas.shade(_relief(height, wood))
    grain = 1 + 0.018 * band_limited((n, n), 3.2, rng, octaves=0.8) + 0.02 * fractal((n, n), 300.0, 1.2, rng)
    canvas.shade(grain)
    return np.stack([block_mean(band, int(TRUTH_M / DRAWN_M)) for band in canvas.bands])


def _relief(height: Field, wood: Field) -> Field:
    """Brightness of the slopes, about 1 on flat ground; woods stand on the steeper ones."""
    down, right = np.gradient(height * np.float32(55.0 / DRAWN_M))
    up = 1.0 / np.sqrt(1.0 + down**2 + right**2)
    lit = (SUN[0] * -down + SUN[1] * -right + SUN[2]) * up / SUN[2]
    return np.asarray(np.clip(1 + (lit - 1) * (0.8 + 0.3 * wood), 0.35, 1.6), np.float32)


def _parishes(canvas: Canvas, rng: np.random.Generator, count: int = 26) -> tuple[NDArray[np.int64], Field]:
    """(number of the nearest of some seeds, distance to the border between two) on wavy coordinates."""
    n = canvas.bands.shape[1]
    wavy = [60.0 * band_limited((n, n), 260.0, rng) for _ in range(2)]
    row, column = canvas.row + wavy[0], canvas.column + wavy[1]
    best: Field = np.full((n, n), np.inf, np.float32)
    second = best.copy()
    owner = np.zeros((n, n), np.int64)
    for number, (r, c) in enumerate(rng.uniform(0, n * DRAWN_M, size=(count, 2))):
        distance = np.hypot(row - np.float32(r), column - np.float32(c))
        closer = distance < best
        second = np.where(closer, best, np.minimum(second, distance))
        owner[closer] = number
        best = np.minimum(best, distance)
    return owner, np.asarray((second - best) / 2, np.float32)


def _draw_fields(canvas: Canvas, rng: np.random.Generator) -> None:
    """Parcels of every parish: strips of its own direction and width, cut at their own lengths."""
    owner, border = _parishes(canvas, rng)
    n = owner.shape[0]
    patches = fractal((n, n), 90.0, 1.4, rng)
    moist = band_limited((n, n), 70.0, rng, octaves=0.8)
    row, column = np.broadcast_arrays(canvas.row, canvas.column)
    for number in range(int(owner.max()) + 1):
        inside = np.nonzero(owner == number)
        if inside[0].size == 0:
            continue
        angle, width, length = rng.uniform(0, np.pi), rng.uniform(45, 170), rng.uniform(180, 420)
        u = row[inside] * np.cos(angle) + column[inside] * np.sin(angle)
        v = column[inside] * np.cos(angle) - row[inside] * np.sin(angle)
        u = u + 12 * np.sin(v / rng.uniform(180, 500))
        values, edge = _parcels(u, v, number, width, length, patches[inside], moist[inside])
        canvas.bands[:, inside[0], inside[1]] = values
        hedge = (edge < rng.uniform(1.5, 4.0)) & (patches[inside] > rng.uniform(-0.6, 1.0))
        at = tuple(i[hedge] for i in inside)
        gain = 1 + 0.25 * patches[at][None]
        canvas.bands[:, at[0], at[1]] = np.array(SPECTRA["wood"], np.float32)[:, None] * gain
    canvas.paint("track", coverage(np.float32(2.4) - border, DRAWN_M), 1.0)


def _parcels(
    u: NDArray[np.floating],
    v: NDArray[np.floating],
    parish: int,
    width: float,
    length: float,
    patches: Field,
    moist: Field,
) -> tuple[Field, Field]:
    """(reflectance (4, k), distance to the parcel's edge (k,) [m]) of samples k at (u, v) [m] in one parish."""
    strip, across = _cut(u, width, parish)
    parcel, along_m = _cut(v + 400 * hashed(strip, parish), length * (0.6 + 0.9 * hashed(strip, parish, 1)), strip)
    key = (strip, parcel, parish)
    crop = (hashed(*key) * len(CROPS)).astype(int)
    table = np.array([SPECTRA[name] for name in CROPS], np.float32)
    vigour = 0.85 + 0.3 * hashed(*key, 2)
    lengthwise = hashed(*key, 3) < 0.8
    period = 6.0 + 12.0 * hashed(*key, 4) ** 2
    position = np.where(lengthwise, u, v)
    rows = np.sin(2 * np.pi * position / period + 6.28 * hashed(*key, 5)) * (0.02 + 0.13 * hashed(*key, 6) ** 2)
    tram = 18.0 + 18.0 * hashed(*key, 7)
    tramline = np.clip(1.6 - np.abs((position / tram) % 1 - 0.5) * tram, 0, 1) * (0.22 * hashed(*key, 8))
    uneven = patches * (0.02 + 0.09 * hashed(*key, 9)) - 0.10 * np.clip(moist, 0, 2) * hashed(*key, 10)
    gain = vigour * (1 + rows - tramline + uneven)
    values = table[crop].T * gain
    values[3] *= 1 + 0.5 * (vigour - 1) - rows  # rows of green on soil: the infrared goes the other way
    return np.asarray(values, np.float32), np.asarray(np.minimum(across, along_m), np.float32)


def _cut(
    position: NDArray[np.floating], step: NDArray[np.floating] | float, salt: NDArray[np.int64] | int
) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """(number of the interval, distance to its nearer end) where ends lie about every `step`, shifted at random."""
    t = np.asarray(position, np.float64) / step
    base = np.floor(t).astype(np.int64)
    jitter = 0.35
    lower = base + jitter * (2 * hashed(base + 5000, salt) - 1)
    number = base - (t < lower)
    upper_edge = number + 1 + jitter * (2 * hashed(number + 5001, salt) - 1)
    lower_edge = number + jitter * (2 * hashed(number + 5000, salt) - 1)
    number = number + (t >= upper_edge)
    near = np.minimum(np.abs(t - lower_edge), np.abs(upper_edge - t)) * step
    return number + 10_000, np.asarray(near)


def _draw_woods(canvas: Canvas, height: Field, towns: NDArray[np.float64], rng: np.random.Generator) -> Field:
    """Woods on the hills and in patches; crowns of 6 to 12 m, lit on one side. Returns their share (n, n)."""
    n = height.shape[0]
    shape = 0.8 * height + 0.9 * band_limited((n, n), 210.0, rng, octaves=0.7) + 0.12 * fractal((n, n), 60.0, 1.0, rng)
    for r, c in towns:
        shape -= np.float32(2.5) * np.exp(
            -((canvas.row - r) ** 2 + (canvas.column - c) ** 2) / np.float32(2 * 330.0**2)
        )
    slope = np.hypot(*np.gradient(shape)) / DRAWN_M
    distance = (shape - np.float32(0.95)) / np.maximum(slope, np.float32(2e-3))
    share = coverage(distance, 2 * DRAWN_M)
    kind = coverage(band_limited((n, n), 130.0, rng) * 12, DRAWN_M)
    crown = crowns(n, 8.5, rng)
    shadow = coverage(ndimage.shift(distance, (3, -3), order=1, mode="nearest"), 2 * DRAWN_M) * (1 - share)
    canvas.shade(1 - np.float32(0.45) * shadow)
    canvas.paint("wood", share, crown)
    canvas.paint("conifer", share * kind, 0.15 + 0.85 * crown)
    paths = coverage(np.float32(2.5) - np.abs(band_limited((n, n), 190.0, rng)) * 90, DRAWN_M)
    canvas.paint("track", share * paths * 0.7, 0.8)
    return np.asarray(share)


def _river(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Centre line (k, 2) [m] of a meandering river: its direction swings like a sine (Langbein and Leopold 1966)."""
    s = np.arange(0.0, 2.6 * n * DRAWN_M, 1.0)
    swing = ndimage.gaussian_filter1d(rng.normal(size=s.size), 160.0)
    swing = swing / swing.std() * 0.75 + 0.75 * np.sin(2 * np.pi * s / 760.0 + 2.0 * np.sin(s / 1500.0))
    direction = 0.62 + swing
    line = np.stack([np.cumsum(np.sin(direction)), np.cumsum(np.cos(direction))], axis=1)
    line = line + np.array([0.12, -0.05]) * n * DRAWN_M
    return ndimage.gaussian_filter1d(line, 6.0, axis=0)


def _draw_water(canvas: Canvas, stream: NDArray[np.float64], height: Field, rng: np.random.Generator) -> None:
    """The river with sand bars and trees on its banks, two brooks and some ponds."""
    n = height.shape[0]
    distance = distance_to(stream, n) + 3.5 * band_limited((n, n), 24.0, rng)
    half = np.float32(17.0) + 5.0 * band_limited((n, n), 120.0, rng)
    trees = band_limited((n, n), 30.0, rng)
    bank = coverage(half + 16 + 6 * trees - distance, DRAWN_M) * coverage(trees * 10, DRAWN_M)
    canvas.paint("wood", bank, crowns(n, 8.0, rng))
    canvas.paint("gravel", coverage(half + 5.0 * band_limited((n, n), 50.0, rng) - distance, DRAWN_M), 1.0)
    water = 1 + 0.06 * band_limited((n, n), 90.0, rng, octaves=1.0)
    canvas.paint("water", coverage(half - distance, DRAWN_M), water)
    brooks = _brooks(n, rng)
    for brook in brooks:
        near = distance_to(brook, n)
        canvas.paint(
            "wood", coverage(9 + 5 * trees - near, DRAWN_M) * coverage(trees * 8 + 2, DRAWN_M), 1 + 0.2 * trees
        )
        canvas.paint("water", coverage(np.float32(2.6) - near, DRAWN_M), water)
    basin = band_limited((n, n), 240.0, rng) - 0.35 * height - 2.45 + 0.05 * band_limited((n, n), 40.0, rng)
    slope = np.hypot(*np.gradient(basin)) / DRAWN_M
    canvas.paint("water", coverage(basin / np.maximum(slope, np.float32(2e-3)), DRAWN_M), water)


def _brooks(n: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Centre lines (k, 2) [m] of two small streams."""
    lines = []
    for start, heading in (((0.05, 0.75), 1.9), ((0.95, 0.62), -2.2)):
        s = np.arange(0.0, 0.55 * n * DRAWN_M, 1.0)
        swing = ndimage.gaussian_filter1d(rng.normal(size=s.size), 45.0)
        direction = heading + 0.7 * swing / swing.std()
        line = np.stack([np.cumsum(np.sin(direction)), np.cumsum(np.cos(direction))], axis=1)
        lines.append(line + np.array(start) * n * DRAWN_M)
    return lines


def _draw_tracks(canvas: Canvas, rng: np.random.Generator, count: int = 26) -> None:
    """Farm tracks and lanes: pale lines of 3 to 5 m, in one pass per width."""
    n = canvas.bands.shape[1]
    extent = n * DRAWN_M
    for half in (1.5, 2.3):
        lines = []
        for _ in range(count // 2):
            a, b = rng.uniform(0, extent, size=(2, 2))
            lines.append(bent(a, a + (b - a) * rng.uniform(0.25, 0.6), 0.08, rng))
        canvas.paint("track", coverage(np.float32(half) - distance_to(np.concatenate(lines), n), DRAWN_M) * 0.85, 0.9)


def _draw_roads(canvas: Canvas, towns: NDArray[np.float64], rng: np.random.Generator) -> None:
    """Country roads between neighbouring settlements, and a motorway with two carriageways across all."""
    n = canvas.bands.shape[1]
    extent = n * DRAWN_M
    lines = []
    for i, a in enumerate(towns):
        order = np.argsort(np.linalg.norm(towns - a, axis=1))
        lines += [bent(a, towns[j], 0.06, rng) for j in order[1:3] if j > i or rng.uniform() < 0.3]
    near = distance_to(np.concatenate(lines), n)
    verge = 1 + 0.3 * band_limited((n, n), 25.0, rng)
    canvas.paint("meadow", coverage(np.float32(7.0) - near, DRAWN_M), verge)
    canvas.paint("asphalt", coverage(np.float32(3.6) - near, DRAWN_M), 1.0)
    motorway = bent(np.array([extent * 0.98, -20.0]), np.array([-20.0, extent * 0.83]), 0.05, rng)
    near = distance_to(motorway, n)
    canvas.paint("meadow", coverage(np.float32(21.0) - near, DRAWN_M), verge)
    for half, surface in ((14.0, "asphalt"), (2.2, "meadow")):
        canvas.paint(surface, coverage(np.float32(half) - near, DRAWN_M), 1.05)
