"""The least change that makes an estimate explain the measurement: x' = x + A^T (A A^T + l I)^-1 (y - A x).

Range-null-space correction (Schwab, Antholzer and Haltmeier 2019; Wang et al. 2023), with the weight `l` chosen by
Stein's unbiased risk (`stein_weight`). A A^T is a Kronecker product, so one eigendecomposition per axis solves it for
any `l`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipelines.degradation import Degradation, along, well_conditioned
from pipelines.errors import InputError

ILL_CONDITIONED_WEIGHT = 1e-4
"""Least `l`, over the largest eigenvalue, where slices overlap so much that A A^T cannot be inverted."""

AMPLIFIED = 1e-4
"""Eigenvalues below this share of the largest count as this in the risk: hardly seen, they would outweigh the rest."""

NULL = 1e-13
"""Eigenvalues below this share of the largest belong to empty rows."""

EXPLAINED = 1.2
"""A residual up to this many standard deviations of the noise is within the noise."""


@dataclass(frozen=True, slots=True)
class Residual:
    """Difference between a degraded product and the measurement: mergeable in tile order."""

    sum_squares: float = 0.0
    count: int = 0
    maximum: float = 0.0

    @classmethod
    def of(cls, difference: NDArray[np.floating]) -> Residual:
        """Of all finite entries."""
        d = np.asarray(difference, np.float64)
        d = d[np.isfinite(d)]
        return cls(float(np.sum(d * d)), int(d.size), float(np.abs(d).max(initial=0.0)))

    def merged(self, other: Residual) -> Residual:
        """Of both."""
        return Residual(
            self.sum_squares + other.sum_squares, self.count + other.count, max(self.maximum, other.maximum)
        )

    @property
    def rms(self) -> float:
        """Root of the mean square; 0 of nothing."""
        return float(np.sqrt(self.sum_squares / self.count)) if self.count else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Projected:
    """The projected image (..., *fine) and its residual before and after."""

    image: NDArray[np.float64]
    before: Residual
    after: Residual


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Eigenvectors (M, M) and eigenvalues (M,) of A A^T on one axis."""

    vectors: NDArray[np.float64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, matrix: sparse.csr_array) -> Spectrum:
        values, vectors = np.linalg.eigh((matrix @ matrix.T).toarray())
        return cls(vectors, np.maximum(values, 0.0))


class Solver:
    """Applies A^T (A A^T + l I)^-1 of one Degradation; build once, use for many images of that shape.

    spectra: of the changed axes, if the caller keeps them. The weight is used as given: see `stable_weight`.
    """

    def __init__(
        self, degradation: Degradation, weight: float = 0.0, spectra: Sequence[Spectrum] | None = None
    ) -> None:
        self.degradation = degradation
        self._spectra = spectra or [Spectrum.of(m) for m in degradation.matrices if m is not None]
        eigenvalues: NDArray[np.float64] = np.ones((1,) * len(degradation.coarse_shape))
        for a, spectrum in zip(degradation.changed, self._spectra, strict=True):
            shape = [1] * len(degradation.coarse_shape)
            shape[a] = -1
            eigenvalues = eigenvalues * spectrum.values.reshape(shape)
        seen = eigenvalues > NULL * eigenvalues.max()
        self._inverse = np.where(seen, 1.0 / np.where(seen, eigenvalues + weight, 1.0), 0.0)

    def correction(self, residual: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., *coarse) residual -> (..., *fine) least change."""
        r = np.asarray(residual, np.float64)
        offset = r.ndim - len(self.degradation.coarse_shape)
        for a, spectrum in zip(self.degradation.changed, self._spectra, strict=True):
            r = along(spectrum.vectors.T, r, offset + a)
        r = r * self._inverse
        for a, spectrum in zip(self.degradation.changed, self._spectra, strict=True):
            r = along(spectrum.vectors, r, offset + a)
        return self.degradation.adjoint(r)


def stable_weight(degradation: Degradation) -> float:
    """The least `l` that keeps the projection stable: 0 unless an axis is ill-conditioned (overlapping slices)."""
    kernels = [_middle_kernel(m) for m in degradation.matrices if m is not None]
    if all(well_conditioned(k) for k in kernels):
        return 0.0
    return ILL_CONDITIONED_WEIGHT * float(np.prod([np.linalg.norm(k, 2) for k in kernels]))


def _middle_kernel(matrix: sparse.csr_array) -> NDArray[np.float64]:
    """A A^T of at most 64 rows from the middle: decides about the axis, whatever the tile."""
    seeing = matrix[np.flatnonzero(np.diff(matrix.indptr))]
    middle = seeing.shape[0] // 2
    rows = seeing[max(0, middle - 32) : middle + 32]
    return np.asarray((rows @ rows.T).toarray()) if seeing.shape[0] else np.eye(1)


def project(
    estimate: NDArray[np.floating],
    observed: NDArray[np.floating],
    degradation: Degradation,
    *,
    weight: float = 0.0,
    solver: Solver | None = None,
) -> Projected:
    """The estimate (..., *fine), changed as little as possible so that it explains `observed` (..., *coarse).

    weight: `l >= 0`; 0 fits the measurement exactly (clean data). solver: a Solver of the same degradation and weight.
    Raises InputError for invalid samples: one would spread along its row and column.
    """
    if not (np.isfinite(observed).all() and np.isfinite(estimate).all()):
        raise InputError(
            what="some samples are not finite",
            why="the projection would spread them",
            fix="fill them first and mask the result, as upscale_array does",
        )
    solver = solver or Solver(degradation, max(weight, stable_weight(degradation)))
    residual = np.asarray(observed, np.float64) - degradation.forward(estimate)
    image = np.asarray(estimate, np.float64) + solver.correction(residual)
    after = np.asarray(observed, np.float64) - degradation.forward(image)
    return Projected(image, Residual.of(residual), Residual.of(after))


def stein_weight(
    observed: NDArray[np.floating],
    degradation: Degradation,
    interpolations: tuple[sparse.csr_array | None, ...],
    noise_sigma: float,
    *,
    spectra: Sequence[Spectrum] | None = None,
    least: float | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Stein's unbiased risk of the floor for a scan of weights: (weights, risk, rms of y - A x'), smaller is better.

    observed: (..., *coarse) windows with noise of standard deviation `noise_sigma`; interpolations: the cubic matrix of
    each axis or None; spectra (of the changed axes), least (`stable_weight`): where the caller keeps them. The risk is
    that of the fine image, as far as A sees it (Eldar 2009): with e = y - A x',
    risk(l) = (e^T K^-1 e + 2 n^2 tr(K^-1 H)) / M + constant, H = A W + K (K + l I)^-1 (I - A W), K = A A^T. Without
    K^-1 it would be that of the degraded image, where the noise that K^-1 amplifies hardly shows: `l` is too small.
    """
    axes = degradation.changed
    offset = observed.ndim - len(degradation.coarse_shape)
    given = spectra or [Spectrum.of(m) for m in degradation.matrices if m is not None]
    least = stable_weight(degradation) if least is None else least
    seen = []  # A W per axis
    for a in axes:
        matrix, w = degradation.matrices[a], interpolations[a]
        assert matrix is not None
        assert w is not None
        seen.append(np.asarray((matrix @ w).toarray()))
    r = np.asarray(observed, np.float64)
    for a, s in zip(axes, seen, strict=True):
        r = along(s, r, offset + a)
    r = np.asarray(observed, np.float64) - r
    for a, spectrum in zip(axes, given, strict=True):
        r = along(spectrum.vectors.T, r, offset + a)
    power_axes = tuple(i for i in range(r.ndim) if i - offset not in axes)
    power = np.mean(r * r, axis=power_axes)  # mean square per eigenvector
    d: NDArray[np.float64] = np.ones(())
    b: NDArray[np.float64] = np.ones(())
    for spectrum, s in zip(given, seen, strict=True):
        d = np.multiply.outer(d, spectrum.values)
        b = np.multiply.outer(b, np.einsum("ij,ij->j", spectrum.vectors, s @ spectrum.vectors))
    amplified = 1 / np.maximum(d, AMPLIFIED * d.max())
    weights = np.concatenate([[0.0], np.geomspace(1e-4, 1e3, 57) * float(d.max())])
    weights = np.unique(np.maximum(weights, least))
    risk, residual = [], []
    for weight in weights:
        kept = weight / (d + weight) if weight > 0 else np.zeros_like(d)
        degrees = b + (1 - kept) * (1 - b)
        residual.append(float(np.sqrt(np.mean(kept**2 * power))))
        risk.append(float(np.mean((kept**2 * power + 2 * noise_sigma**2 * degrees) * amplified)))
    return weights, np.array(risk), np.array(residual)
