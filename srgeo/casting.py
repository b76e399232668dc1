"""From float samples to what a file stores: rint, clip, keep away from nodata, fill what is invalid.

GDAL itself truncates towards zero and wraps: 10.6 becomes 10 and 70000 becomes 4464 in uint16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLOAT32_EXACT = 1 << 24
"""Integers up to here survive float32."""


@dataclass(frozen=True, slots=True)
class Storage:
    """How samples are stored. bits: of an integer that uses fewer than its type has; nodata: reserved value or None."""

    dtype: str
    bits: int | None = None
    nodata: float | int | None = None

    @property
    def is_float(self) -> bool:
        """Whether NaN can be stored."""
        return np.dtype(self.dtype).kind == "f"

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest integer that can be stored, nodata included."""
        info = np.iinfo(np.dtype(self.dtype))
        if self.bits is None or self.bits >= info.bits:
            return int(info.min), int(info.max)
        if info.min < 0:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1

    @property
    def fill(self) -> float | int:
        """What is stored where nothing is valid."""
        if self.nodata is not None:
            return self.nodata
        return math.nan if self.is_float else 0


def stored(samples: NDArray[np.floating], storage: Storage) -> tuple[NDArray[np.generic], NDArray[np.bool_], int]:
    """(samples in the stored type, where they are valid, number clipped to the range). NaN and infinity are invalid.

    A valid sample never equals nodata: it moves to the nearest value that may be stored, on its own side if it can.
    """
    valid = np.isfinite(samples)
    if storage.is_float:
        return (*_stored_floats(samples, valid, storage), 0)
    low, high = storage.limits
    working = np.float32 if samples.dtype == np.float32 and high - low < FLOAT32_EXACT else np.float64
    exact: NDArray[np.floating] = np.where(valid, samples, 0).astype(working, copy=False)
    values = np.rint(exact)
    clipped = int(np.count_nonzero((values < low) | (values > high)))
    np.clip(values, low, high, out=values)
    if storage.nodata is not None:
        nodata = float(storage.nodata)
        hit = valid & (values == nodata)
        if hit.any():
            down = np.where((exact < nodata) & (nodata > low), True, nodata >= high)
            values = np.where(hit, np.where(down, nodata - 1, nodata + 1), values)
    values[~valid] = storage.fill
    return values.astype(storage.dtype), valid, clipped


def _stored_floats(
    samples: NDArray[np.floating], valid: NDArray[np.bool_], storage: Storage
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    dtype = np.dtype(storage.dtype)
    values = np.where(valid, samples, 0.0).astype(dtype)
    if storage.nodata is not None and math.isfinite(storage.nodata):
        nodata = np.asarray(storage.nodata).astype(dtype)
        hit = valid & (values == nodata)
        values[hit] = np.nextafter(nodata, np.asarray(0.0 if nodata != 0 else 1.0, dtype))
    values[~valid] = storage.fill
    return values, valid
