"""Small files for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from scipy import ndimage

Run = Callable[..., tuple[int, str, str]]
"""Calls the program: (exit code, stdout, stderr)."""


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    scene = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=shape), 1.2)
    return (2000 + 800 * scene / np.abs(scene).max()).astype(np.float32)


def write_raster(path: Path, data: np.ndarray, **options: object) -> Path:
    profile = {
        "driver": "GTiff",
        "height": data.shape[1],
        "width": data.shape[2],
        "count": data.shape[0],
        "dtype": data.dtype,
        "crs": "EPSG:32632",
        "transform": Affine(10, 0, 500000, 0, -10, 5100000),
        **options,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(data)
    return path
