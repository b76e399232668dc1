"""Pictures of a case: the same part of the input, of each product, of the truth and of the errors."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.evaluation.cases import Case

LARGEST_SIDE = 144
"""Fine samples a side of a picture."""

COLOURS = (("R", "G", "B"), ("B04", "B03", "B02"), ("B4", "B3", "B2"))
"""Bands that make a picture in natural colours, as sensors name them."""

ERROR_MAP = "inferno"
"""Colours of errors (matplotlib): black is none, and lightness grows with the error."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Panel:
    """How the pictures of a case are shown. case: key of their files; width, height: of the part shown [fine samples].

    aspect: width over height as they lie in the world; top: error that has the last colour [% of the peak]; view:
    what is seen, in words.
    """

    case: str
    width: int
    height: int
    aspect: float
    top: float
    view: str


class View:
    """The part of a case that is shown: of a volume the plane through the middle of the body that has the slices."""

    def __init__(self, case: Case, lifted: Array) -> None:
        self._case = case
        self._bands = _bands([c.name for c in case.header.channels])
        rows, columns = _plane(case)
        self._turned = rows > columns
        self._axes = tuple(sorted((rows, columns)))
        seen = case.truth.mask[0]
        self._fixed = {a: round(ndimage.center_of_mass(seen)[a]) for a in range(seen.ndim) if a not in self._axes}
        truth = self._sliced(case.truth.samples, coarse=False)
        self._coarse = _window(truth, [case.factor.axes[a] for a in self._axes])
        shown = self.fine(case.truth.samples)
        self._range = [np.nanpercentile(band, (1, 98)) for band in shown]
        self._top = max(float(np.nanpercentile(self._error(lifted), 99)), 1e-3)

    def panel(self, key: str) -> Panel:
        """How it is shown."""
        height, width = self.fine(self._case.truth.samples).shape[1:]
        spacing = [self._case.truth.header.grid.spacing[a] for a in self._axes]
        vertical, horizontal = reversed(spacing) if self._turned else spacing
        names = [self._case.header.channels[k].name for k in self._bands]
        view = "slices lie across" if self._case.condition.spacing_mm is not None else ", ".join(n for n in names if n)
        return Panel(key, width, height, width * horizontal / (height * vertical), 100 * self._top, view)

    def fine(self, samples: Array) -> Array:
        """(band, height, width) of fine samples (channel, *fine)."""
        part = self._sliced(samples, coarse=False)
        scales = [self._case.factor.axes[a] for a in self._axes]
        cuts = (slice(round(w.start * s), round(w.stop * s)) for w, s in zip(self._coarse, scales, strict=True))
        return self._upright(part[(slice(None), *cuts)])

    def image(self, samples: Array) -> bytes:
        """A picture of fine samples (channel, *fine), in the greys or colours of the truth."""
        return self._toned(self.fine(samples))

    def input(self) -> bytes:
        """A picture of the coarse samples, one pixel each."""
        part = self._sliced(self._case.coarse, coarse=True)
        return self._toned(self._upright(part[(slice(None), *self._coarse)]))

    def error(self, product: Array) -> bytes:
        """A picture of the absolute difference to the truth, on the scale of the panel."""
        share = np.nan_to_num(self._error(product) / self._top)
        return _webp(_map()[np.clip(255 * share, 0, 255).astype(np.uint8)])

    def _error(self, product: Array) -> Array:
        """Mean over the bands shown, over the peak (height, width)."""
        peaks = self._case.truth.peaks[self._bands][:, None, None]
        error = np.abs(self.fine(product) - self.fine(self._case.truth.samples)) / peaks
        return np.asarray(error.mean(axis=0))

    def _sliced(self, samples: Array, *, coarse: bool) -> Array:
        """(band, *plane)."""
        index: list[slice | int] = [slice(None)] * (samples.ndim - 1)
        for a, at in self._fixed.items():
            index[a] = min(int(at / self._case.factor.axes[a]) if coarse else at, samples.shape[1 + a] - 1)
        return np.asarray(samples[self._bands][(slice(None), *index)])

    def _upright(self, part: Array) -> Array:
        return part.swapaxes(1, 2) if self._turned else part

    def _toned(self, part: Array) -> bytes:
        toned = [
            np.clip((b - low) / max(high - low, 1e-12), 0, 1) for b, (low, high) in zip(part, self._range, strict=True)
        ]
        grey = np.nan_to_num(255 * np.stack(toned, axis=-1)).round().astype(np.uint8)
        return _webp(grey[..., 0] if grey.shape[-1] == 1 else grey)


def _bands(names: list[str]) -> list[int]:
    """Numbers of the bands shown: natural colours where they are known, else the first."""
    for wanted in COLOURS:
        if all(name in names for name in wanted):
            return [names.index(name) for name in wanted]
    return [0]


def _plane(case: Case) -> tuple[int, int]:
    """(axis that runs down, axis that runs across) of the picture."""
    if case.condition.spacing_mm is None:
        return 0, 1
    down = case.condition.axis
    others = [a for a in range(3) if a != down]
    return down, max(others, key=lambda a: case.truth.samples.shape[1 + a])


def _window(plane: Array, scales: list[Fraction]) -> list[slice]:
    """Coarse samples along both axes whose fine ones have the most detail, at most LARGEST_SIDE a side."""
    grey = np.nan_to_num(plane).mean(axis=0)
    detail = np.square(grey - ndimage.gaussian_filter(grey, 2.0))
    sides = [min(n, LARGEST_SIDE) for n in grey.shape]
    inside = ndimage.uniform_filter(detail, sides, mode="constant")
    starts = [(n - side) // 2 for n, side in zip(grey.shape, sides, strict=True)]
    valid = inside[tuple(slice(side // 2, n - (side - 1) // 2) for n, side in zip(grey.shape, sides, strict=True))]
    starts = [int(v) for v in np.unravel_index(int(valid.argmax()), valid.shape)]
    return [
        slice(int(start // s), max(int((start + side) // s), int(start // s) + 1))
        for start, side, s in zip(starts, sides, scales, strict=True)
    ]


def _webp(pixels: NDArray[np.uint8]) -> bytes:
    """A lossless picture: what is judged by eye must not come from its compression."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=80)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _map() -> NDArray[np.uint8]:
    """Red, green and blue of the 256 colours of errors."""
    from matplotlib import colormaps

    return np.asarray(colormaps[ERROR_MAP](np.arange(256), bytes=True)[:, :3], np.uint8)


def colour_bar() -> bytes:
    """The colours of errors from none to the top, as a picture of one row."""
    return _webp(_map()[None])
