"""Small GeoTIFFs for the tests, and the product of one by replication."""

from __future__ import annotations

import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from pipelines.grid import Box, Factor
from pipelines.image import ArraySource, Source
from srgeo.cog import CogSink
from srgeo.raster import open_raster

UTM = "EPSG:32632"

NORTH_UP = Affine(10, 0, 399960, 0, -10, 5700000)
ROTATED = Affine(*(NORTH_UP @ Affine.rotation(20))[:6])
TRANSFORMS = {
    "north-up": NORTH_UP,
    "rotated": ROTATED,
    "sheared": NORTH_UP @ Affine.shear(12, 5),
    "south-up": Affine(10, 0, 399960, 0, 10, 5600000),
    "not square": Affine(97.3, 0, 399960, 0, -46.1, 5700000),
    "mirrored": Affine(-10, 0, 399960, 0, -10, 5700000),
    "transposed": Affine(0, 10, 399960, 10, 0, 5600000),
    "thirds": Affine(1 / 3, 0, 0.1, 0, -1 / 3, 0.7),
}


def pixels(count: int = 1, rows: int = 24, columns: int = 31, dtype: str = "uint16", seed: int = 0) -> NDArray[Any]:
    """Random samples (count, rows, columns), far from the ends of the type."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(300, 100, (count, rows, columns)).astype(dtype)
    return rng.integers(10, 100 if np.dtype(dtype).itemsize == 1 else 9000, (count, rows, columns)).astype(dtype)


def write_tif(path: Path, data: NDArray[Any], *, before: Any = None, after: Any = None, **profile: Any) -> Path:
    """A GeoTIFF of `data` (count, rows, columns); `before` and `after(dataset)` add what the profile cannot."""
    settings: dict[str, Any] = {"transform": NORTH_UP, "crs": UTM, "photometric": "MINISBLACK", "alpha": "NO"} | profile
    settings = {k: v for k, v in settings.items() if v is not None}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=data.shape[0],
            height=data.shape[1],
            width=data.shape[2],
            dtype=data.dtype.name,
            **settings,
        ) as dataset:
            if before is not None:
                before(dataset)
            dataset.write(data)
            if after is not None:
                after(dataset)
    return path


def opened(path: Path) -> Any:
    """rasterio.open without its remark on files without georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, driver="GTiff", sharing=False)


def whole(source: Source) -> NDArray[np.floating]:
    """All samples of a Source."""
    return source.read(Box.whole(source.header.grid.shape))


def factor(scale: str | int) -> Factor:
    """The same scale on both axes."""
    return Factor((Fraction(scale), Fraction(scale)))


def replicated(source: Source, scale: int = 2) -> ArraySource:
    """A product with every sample repeated: same values, same validity."""
    header = replace(source.header, grid=source.header.grid.rescaled(factor(scale)))
    return ArraySource(whole(source).repeat(scale, 1).repeat(scale, 2), header)


def product_of(source: Source, samples: NDArray[np.floating], scale: str | int = 2) -> ArraySource:
    """A product with the given samples (channel, *shape of the rescaled grid)."""
    return ArraySource(samples, replace(source.header, grid=source.header.grid.rescaled(factor(scale))))


NOTE = {"software": "truescale 0.1.0", "model": "floor", "degradation": "mtf:0.3"}


def write_product(source: Any, product: Source, path: Path) -> dict[str, float]:
    return CogSink().write(product, source, path, dict(NOTE))


def copy_product(path: Path, out: Path, scale: int = 2, **options: Any) -> dict[str, float]:
    """The replicated product of a file."""
    with open_raster(path, **options) as source:
        return write_product(source, replicated(source, scale), out)


def masked_tif(path: Path, data: NDArray[Any], invalid: NDArray[Any]) -> Path:
    return write_tif(path, data, after=lambda d: d.write_mask(np.where(invalid, 0, 255).astype(np.uint8)))
