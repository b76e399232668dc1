"""Villages of a made landscape: gardens, bent streets, houses along them with shadows, a few halls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.samples.drawing import DRAWN_M, SUN, Canvas, bent, distance_to, rectangle
from pipelines.samples.texture import band_limited, coverage, fractal


def draw_towns(
    canvas: Canvas, towns: NDArray[np.float64], stream: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Villages: gardens, bent streets, houses along them with shadows, a few halls and farms."""
    n = canvas.bands.shape[1]
    gardens, outline = fractal((n, n), 40.0, 1.0, rng), band_limited((n, n), 70.0, rng)
    for r, c in towns:
        size, angle = rng.uniform(130, 330), rng.uniform(0, np.pi)
        ground = np.float32(size * 1.1) - np.hypot(canvas.row - r, canvas.column - c) + 40 * outline + 10 * gardens
        canvas.paint("garden", coverage(ground, 4 * DRAWN_M) * 0.85, 1 + 0.3 * gardens)
        streets = []
        for k in range(int(size / 15)):
            middle = np.array([r, c]) + rng.normal(scale=size * 0.45, size=2)
            heading = angle + (np.pi / 2 if k % 2 else 0.0) + rng.normal(scale=0.12)
            reach = rng.uniform(0.5, 1.1) * size * np.array([np.sin(heading), np.cos(heading)])
            streets.append(bent(middle - reach / 2, middle + reach / 2, 0.07, rng))
        for street in streets:
            _draw_houses(canvas, street, stream, rng)
        _draw_street(canvas, np.concatenate(streets))


def _draw_street(canvas: Canvas, points: NDArray[np.float64]) -> None:
    """Streets of 6 m: distance taken in their window only."""
    n = canvas.bands.shape[1]
    low = np.clip((points.min(0) / DRAWN_M).astype(int) - 6, 0, n)
    high = np.clip((points.max(0) / DRAWN_M).astype(int) + 7, 0, n)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    size = int(max(high - low))
    near = distance_to(points - low * DRAWN_M, size)[: high[0] - low[0], : high[1] - low[1]]
    part = Canvas(canvas.bands[(slice(None), *window)], canvas.row[window[0]], canvas.column[:, window[1]])
    part.paint("asphalt", coverage(np.float32(3.0) - near, DRAWN_M), 1.0)


def _draw_houses(
    canvas: Canvas, street: NDArray[np.float64], stream: NDArray[np.float64], rng: np.random.Generator
) -> None:
    step = np.gradient(street, axis=0)
    heading = np.arctan2(step[:, 0], step[:, 1])
    at = int(rng.uniform(5, 20))
    while at < len(street):
        for side in (-1.0, 1.0):
            if rng.uniform() < 0.2:
                continue
            large = rng.uniform() < 0.07
            length = rng.uniform(25, 60) if large else rng.uniform(9, 18)
            width = rng.uniform(14, 28) if large else rng.uniform(7, 11)
            away = side * (5 + width / 2 + rng.uniform(1, 7))
            across = np.array([np.cos(heading[at]), -np.sin(heading[at])])
            middle = street[at] + away * across
            if np.min(np.abs(stream - middle).sum(axis=1)) > 70:
                roof = rng.choice(["metal", "slate"]) if large else rng.choice(["tiles", "tiles", "tiles", "slate"])
                turn = heading[at] + rng.normal(scale=0.06) + (np.pi / 2 if rng.uniform() < 0.35 else 0)
                _draw_house(canvas, middle, (length, width), turn, str(roof), rng)
        at += int(rng.uniform(16, 34))


def _draw_house(
    canvas: Canvas,
    middle: NDArray[np.float64],
    size_m: tuple[float, float],
    angle: float,
    roof: str,
    rng: np.random.Generator,
) -> None:
    """A gabled roof with a lit and a dark side, and its shadow."""
    n = canvas.bands.shape[1]
    reach = max(size_m) * 0.75 + 12
    low = np.clip(((middle - reach) / DRAWN_M).astype(int), 0, n)
    high = np.clip(((middle + reach) / DRAWN_M).astype(int), 0, n)
    if (high - low < 3).any():
        return
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    part = Canvas(canvas.bands[(slice(None), *window)], canvas.row[window[0]], canvas.column[:, window[1]])
    inside, across = rectangle(part, middle, size_m, angle)
    shadow, _ = rectangle(part, middle - 4.0 * np.array(SUN[:2]), size_m, angle)
    part.shade(1 - np.float32(0.55) * coverage(shadow, DRAWN_M))
    side = np.sign(across) * np.sign(SUN[0] * np.cos(angle) - SUN[1] * np.sin(angle))
    part.paint(roof, coverage(inside, DRAWN_M), rng.uniform(0.8, 1.2) * (1 + 0.22 * side))
