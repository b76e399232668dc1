"""A canvas of reflectance and what is drawn on it: surfaces, lines, crowns, houses. Lengths in metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.samples.texture import Field, blended

DRAWN_M = 2.5
"""Spacing of the canvas on which everything is drawn."""

SPECTRA: dict[str, tuple[float, float, float, float]] = {
    "water": (0.045, 0.052, 0.034, 0.018),
    "wood": (0.022, 0.040, 0.026, 0.270),
    "conifer": (0.018, 0.030, 0.020, 0.180),
    "meadow": (0.042, 0.082, 0.058, 0.350),
    "maize": (0.034, 0.072, 0.042, 0.420),
    "beet": (0.030, 0.080, 0.034, 0.480),
    "wheat": (0.075, 0.115, 0.150, 0.290),
    "rape": (0.060, 0.150, 0.130, 0.400),
    "stubble": (0.105, 0.140, 0.185, 0.260),
    "soil": (0.080, 0.105, 0.138, 0.190),
    "dark soil": (0.055, 0.072, 0.092, 0.130),
    "track": (0.130, 0.160, 0.195, 0.250),
    "asphalt": (0.090, 0.096, 0.102, 0.125),
    "tiles": (0.070, 0.085, 0.165, 0.215),
    "slate": (0.105, 0.110, 0.118, 0.135),
    "metal": (0.300, 0.310, 0.320, 0.335),
    "garden": (0.040, 0.068, 0.052, 0.300),
    "gravel": (0.155, 0.175, 0.195, 0.230),
}
"""Reflectance of each surface in the four bands; typical values of atmospherically corrected summer scenes."""

SUN = (-0.55, 0.45, 0.70)
"""Direction to the sun (row, column, up), about unit length."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """Four bands (4, n, n) of reflectance, drawn over in place; row, column: open coordinates [m]."""

    bands: Field
    row: Field
    column: Field

    def paint(self, surface: str, share: Field, gain: Field | float = 1.0) -> None:
        """Draw one surface with opacity `share` and brightness `gain`."""
        for band, value in zip(self.bands, SPECTRA[surface], strict=True):
            band[...] = blended(band, np.float32(value) * np.asarray(gain, np.float32), share)

    def shade(self, gain: Field) -> None:
        """Multiply all bands."""
        self.bands[...] *= gain


def hashed(*keys: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """A number in 0..1 that depends on whole numbers and on nothing else."""
    state = np.uint64(0x9E3779B97F4A7C15)
    result = np.zeros(np.broadcast_shapes(*(np.shape(k) for k in keys)), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            result = (result ^ np.asarray(key).astype(np.uint64)) * state
            result ^= result >> np.uint64(29)
            result *= np.uint64(0xBF58476D1CE4E5B9)
            result ^= result >> np.uint64(32)
    return np.asarray((result >> np.uint64(11)).astype(np.float64) / 2.0**53)


def distance_to(points: NDArray[np.float64], n: int) -> Field:
    """Distance [m] (n, n) to a chain of points (k, 2: row, column [m]) that lie closer than a sample."""
    mask = np.ones((n, n), bool)
    index = np.rint(points / DRAWN_M - 0.5).astype(int)
    index = index[((index >= 0) & (index < n)).all(axis=1)]
    mask[tuple(index.T)] = False
    if mask.all():
        return np.full((n, n), np.float32(n * DRAWN_M))
    return np.asarray(ndimage.distance_transform_edt(mask), np.float32) * np.float32(DRAWN_M)


def bent(a: NDArray[np.float64], b: NDArray[np.float64], bend: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth line (k, 2) [m] from a to b, about one point a metre."""
    length = float(np.linalg.norm(b - a))
    t = np.linspace(0, 1, int(length) + 2)[:, None]
    across = np.array([-(b - a)[1], (b - a)[0]])
    sway = sum(rng.normal() / k * np.sin(np.pi * k * t) for k in (1, 2, 3, 4))
    return np.asarray(a + t * (b - a) + bend * sway * across)


def crowns(n: int, cell_m: float, rng: np.random.Generator) -> Field:
    """Brightness (n, n) of tree crowns: domes around one point a cell, lit from the sun's side."""
    cells = int(np.ceil(n * DRAWN_M / cell_m)) + 2
    offset = rng.uniform(0.1, 0.9, size=(2, cells, cells)).astype(np.float32)
    vigour = rng.uniform(0.75, 1.3, size=(cells, cells)).astype(np.float32)
    metres = (np.arange(n, dtype=np.float32) + np.float32(0.5)) * np.float32(DRAWN_M / cell_m) + 1
    base = metres.astype(int)
    best: Field = np.full((n, n), np.inf, np.float32)
    light: Field = np.zeros((n, n), np.float32)
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            index = np.ix_(np.clip(base + dr, 0, cells - 1), np.clip(base + dc, 0, cells - 1))
            down = metres[:, None] - (base[:, None] + dr + offset[0][index])
            right = metres[None, :] - (base[None, :] + dc + offset[1][index])
            square = down * down + right * right
            closer = square < best
            dome = vigour[index] * (1.12 - 0.8 * square + 0.55 * (SUN[0] * down + SUN[1] * right))
            light = np.where(closer, dome, light)
            best = np.minimum(best, square)
    return np.clip(light, 0.25, 1.7)


def rectangle(
    canvas: Canvas, middle: NDArray[np.float64], size_m: tuple[float, float], angle: float
) -> tuple[Field, Field]:
    """(signed distance to the outline, distance across the ridge) [m]."""
    down, right = canvas.row - np.float32(middle[0]), canvas.column - np.float32(middle[1])
    along_m = right * np.float32(np.cos(angle)) + down * np.float32(np.sin(angle))
    across = down * np.float32(np.cos(angle)) - right * np.float32(np.sin(angle))
    inside = np.minimum(size_m[0] / 2 - np.abs(along_m), size_m[1] / 2 - np.abs(across))
    return np.asarray(inside, np.float32), np.asarray(across, np.float32)
