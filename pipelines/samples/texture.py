"""Random fields with a chosen size of structure: what both phantoms are drawn with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.float32]
"""Values on a grid, float32."""


def band_limited(shape: tuple[int, ...], wavelength: float, rng: np.random.Generator, octaves: float = 0.5) -> Field:
    """A random field of mean 0 and variance 1 whose structures repeat about every `wavelength` samples.

    octaves: width of the band (one standard deviation, in octaves). Periodic at the borders of `shape`.
    """
    with np.errstate(divide="ignore"):
        distance = np.log2(_frequency(shape) * np.float32(wavelength))
    return _shaped(shape, np.exp(-0.5 * (distance / np.float32(octaves)) ** 2), rng)


def fractal(shape: tuple[int, ...], largest: float, slope: float, rng: np.random.Generator) -> Field:
    """A random field of mean 0 and variance 1 with amplitude ~ frequency^-slope below `largest` samples per period."""
    lowest = np.float32(1.0 / largest)
    return _shaped(shape, (lowest / np.maximum(_frequency(shape), lowest)) ** np.float32(slope), rng)


def _frequency(shape: tuple[int, ...]) -> Field:
    """Length of the frequency vector [cycles per sample] on the lattice of a real transform."""
    square: Field = np.zeros((1,) * len(shape), np.float32)
    for axis, n in enumerate(shape):
        f = (fft.rfftfreq(n) if axis == len(shape) - 1 else fft.fftfreq(n)).astype(np.float32)
        square = square + (f * f).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return np.asarray(np.sqrt(square), np.float32)


def _shaped(shape: tuple[int, ...], amplitude: NDArray[np.floating], rng: np.random.Generator) -> Field:
    """White noise whose spectrum is multiplied by `amplitude`; then mean 0, variance 1."""
    spectrum = fft.rfftn(rng.standard_normal(shape, np.float32))
    spectrum *= np.asarray(amplitude, np.float32)
    spectrum.flat[0] = 0.0
    result = np.asarray(fft.irfftn(spectrum, s=shape), np.float32)
    return np.asarray(result / result.std(), np.float32)


def refined(field: Field) -> Field:
    """The field (..., *n) on twice as fine samples of the same extent along every axis, linear, edges held."""
    for axis in range(field.ndim):
        f = np.moveaxis(field, axis, 0)
        fine = np.empty((2 * f.shape[0], *f.shape[1:]), np.float32)
        fine[2::2] = 0.75 * f[1:] + 0.25 * f[:-1]
        fine[1:-1:2] = 0.75 * f[:-1] + 0.25 * f[1:]
        fine[0], fine[-1] = f[0], f[-1]
        field = np.moveaxis(fine, 0, axis)
    return field


def coverage(distance: Field, pixel: float) -> Field:
    """Share of a sample of width `pixel` that lies inside; distance: to the border, positive inside."""
    share = distance * np.float32(1.0 / pixel)
    share += np.float32(0.5)
    return np.clip(share, 0.0, 1.0, out=share)


def block_mean(image: Field, factor: int) -> Field:
    """Mean over blocks of `factor` samples along each of the last two or three axes of a 2-D or 3-D image."""
    for axis in range(image.ndim):
        n = image.shape[axis] // factor
        image = image.reshape(*image.shape[:axis], n, factor, *image.shape[axis + 1 :]).mean(axis=axis + 1)
    return np.asarray(image, np.float32)


def blended(under: Field, over: NDArray[np.floating] | float, share: NDArray[np.floating]) -> Field:
    """`over` drawn on `under` with opacity `share` in 0..1."""
    result = np.asarray(np.subtract(over, under, dtype=np.float32))
    result *= share
    result += under
    return result
