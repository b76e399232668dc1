"""What a product is worth against the truth: one function per metric, all in TABLE.

Arrays are (channel, *axes) in float64; a sample counts where the mask is true. Peak signal-to-noise ratio and
structural similarity come from scikit-image; tests check them and the spectral metrics against other libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.evaluation.detail import DETAIL, detail_classes, detail_shares

SSIM_SIGMA = 1.5
"""Width of the window of structural similarity [samples] (Wang et al. 2004)."""

WITHIN = 1.645
"""Standard deviations on each side of a normal distribution's mean that hold nine tenths of it."""

REMOVED = np.arange(0.0, 1.0, 0.05)
"""Shares of the samples that sparsification removes."""

UNCERTAINTY = ("coverage", "ause", "ause_gradient")
"""What `uncertainty` gives together."""

HFEN_SIGMA = 1.5
"""Width of the Laplacian of Gaussian [samples] (Ravishankar and Bresler 2011)."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """A product and its truth, both (channel, *axes).

    mask: (channel, *axes), where both are valid and count; peaks: (channel,), the value that stands for 1; scale: fine
    samples per coarse sample; residual: (channel, *coarse), measured - degraded product, NaN where not compared;
    residual_unit: what consistency is stated in (1: input units); lifted: what was measured, on the fine grid by linear
    interpolation, None where the added detail is not judged; deviation: (channel, *axes), the standard deviation told
    of the product, None without one.
    """

    truth: Array
    product: Array
    mask: NDArray[np.bool_]
    peaks: Array
    scale: float
    residual: Array
    residual_unit: float = 1.0
    lifted: Array | None = None
    deviation: Array | None = None


def psnr_of_bands(c: Comparison) -> Array:
    """Peak signal-to-noise ratio of each band [dB] (channel,)."""
    from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):  # a perfect band is infinitely good
        return np.array(
            [
                peak_signal_noise_ratio(t[m], p[m], data_range=peak)
                for t, p, m, peak in zip(c.truth, c.product, c.mask, c.peaks, strict=True)
            ],
            np.float64,
        )


def psnr(c: Comparison) -> float:
    """Peak signal-to-noise ratio [dB], mean over bands."""
    return float(psnr_of_bands(c).mean())


def ssim(c: Comparison) -> float:
    """Structural similarity with a Gaussian window, 2-D or 3-D, averaged over the mask, mean over bands."""
    from skimage.metrics import structural_similarity

    values = []
    for truth, product, mask, peak in zip(c.truth, c.product, c.mask, c.peaks, strict=True):
        _, similarity = structural_similarity(
            np.where(mask | np.isfinite(truth), truth, 0.0) / peak,
            np.where(mask | np.isfinite(product), product, 0.0) / peak,
            data_range=1.0,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
            full=True,
        )
        values.append(similarity[mask].mean())
    return float(np.mean(values))


def hfen(c: Comparison) -> float:
    """High-frequency error norm: of the Laplacian of Gaussian, over that of the truth; mean over bands."""
    values = []
    for truth, product, mask in zip(c.truth, c.product, c.mask, strict=True):
        edges = ndimage.gaussian_laplace(np.where(np.isfinite(truth), truth, 0.0), HFEN_SIGMA)
        other = ndimage.gaussian_laplace(np.where(np.isfinite(product), product, 0.0), HFEN_SIGMA)
        values.append(np.linalg.norm((other - edges)[mask]) / np.linalg.norm(edges[mask]))
    return float(np.mean(values))


def rmse(c: Comparison) -> float:
    """Root of the mean square over bands and samples [input units]."""
    return float(np.sqrt(np.mean(np.square((c.product - c.truth)[c.mask]))))


def sre(c: Comparison) -> float:
    """Signal to reconstruction error [dB], mean over bands: squared mean over mean square (Lanaras et al. 2018)."""
    values = []
    for truth, product, mask in zip(c.truth, c.product, c.mask, strict=True):
        error = np.mean(np.square((product - truth)[mask]))
        with np.errstate(divide="ignore"):
            values.append(10 * np.log10(np.square(truth[mask].mean()) / error))
    return float(np.mean(values))


def sam(c: Comparison) -> float:
    """Mean angle between the spectra [degrees] (Yuhas et al. 1992); NaN for a single band."""
    if len(c.truth) < 2:
        return float("nan")
    seen = c.mask.all(axis=0)
    a, b = c.truth[:, seen], c.product[:, seen]
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    some = lengths > 0  # a black pixel has no direction
    cosine = np.einsum("ij,ij->j", a[:, some], b[:, some]) / lengths[some]
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))).mean())


def ergas(c: Comparison) -> float:
    """Relative global error in percent, over the scale (Wald 2000): 100 / s sqrt(mean over bands (rmse / mean)^2)."""
    shares = [
        np.mean(np.square((p - t)[m])) / np.square(t[m].mean())
        for t, p, m in zip(c.truth, c.product, c.mask, strict=True)
    ]
    return float(100.0 / c.scale * np.sqrt(np.mean(shares)))


def consistency(c: Comparison) -> float:
    """Root mean square of measured - degraded product, over `residual_unit`."""
    seen = c.residual[np.isfinite(c.residual)]
    return float(np.sqrt(np.mean(np.square(seen)))) / c.residual_unit if seen.size else float("nan")


def detail(c: Comparison) -> dict[str, float]:
    """Shares of the samples whose added detail is right, missing or wrong [%]; NaN where it is not judged."""
    if c.lifted is None:
        return dict.fromkeys(DETAIL, float("nan"))
    seen = c.mask.all(axis=0)
    lifted, product, truth = (a[:, seen] / c.peaks[:, None] for a in (c.lifted, c.product, c.truth))
    classes = detail_classes(lifted, product, truth)
    return {name: 100.0 * share for name, share in zip(DETAIL, detail_shares(classes), strict=True)}


def uncertainty(c: Comparison) -> dict[str, float]:
    """How well the deviation that was told says where the errors are; means over bands, NaN without one.

    coverage: share of the truth in the interval of 90 % [%]; ause: area under the sparsification error, over the mean
    error (Ilg et al. 2018, https://arxiv.org/abs/1802.07095): 0 if the samples are in the order of their errors;
    ause_gradient: the same where they are in that of the gradient's magnitude.
    """
    if c.deviation is None:
        return dict.fromkeys(UNCERTAINTY, float("nan"))
    found = []
    for truth, product, mask, deviation in zip(c.truth, c.product, c.mask, c.deviation, strict=True):
        error = np.abs(product - truth)[mask]
        steps = np.gradient(np.where(np.isfinite(product), product, 0.0))
        gradient = np.sqrt(sum(step**2 for step in steps))[mask]
        covered = 100.0 * np.mean(error <= WITHIN * deviation[mask])
        found.append((covered, sparsification(error, deviation[mask]), sparsification(error, gradient)))
    return dict(zip(UNCERTAINTY, np.mean(found, axis=0).tolist(), strict=True))


def sparsification(error: Array, deviation: Array) -> float:
    """Area between the mean error (n,) left as the largest deviations (n,) are removed and the least possible one."""
    left = [error[np.argsort(order, kind="stable")] for order in (deviation, error)]
    kept = np.maximum(1, np.round((1 - REMOVED) * len(error)).astype(int))
    by_deviation, by_error = (np.cumsum(e)[kept - 1] / kept for e in left)
    mean = float(error.mean())
    return float(np.mean(by_deviation - by_error)) / mean if mean else 0.0


TABLE: Mapping[str, Callable[[Comparison], float]] = {
    "psnr": psnr,
    "ssim": ssim,
    "hfen": hfen,
    "rmse": rmse,
    "sre": sre,
    "sam": sam,
    "ergas": ergas,
    "consistency": consistency,
}
"""name -> function of one value; `detail` gives the shares of DETAIL together."""

MEDICAL = ("psnr", "ssim", "hfen", "consistency", *DETAIL, *UNCERTAINTY)
IMAGERY = ("psnr", "rmse", "sre", "sam", "ergas", "ssim", "consistency", *DETAIL, *UNCERTAINTY)
"""Columns of the two kinds of tables."""

HIGHER_IS_BETTER = ("psnr", "ssim", "sre", "improvement")
"""Of all others the lower value is the better one."""


def measured(c: Comparison, columns: Sequence[str]) -> dict[str, float]:
    """Column -> value."""
    shares = detail(c) if set(columns) & set(DETAIL) else {}
    if set(columns) & set(UNCERTAINTY):
        shares |= uncertainty(c)
    return {name: shares[name] if name in shares else TABLE[name](c) for name in columns}
