"""What a training makes small: a weighed sum of terms, each a difference of two images over their range.

Terms come from MONAI and torchmetrics where these have them. JukeboxLoss is not among them: it knows amplitudes only,
so a shifted image costs nothing, and its gradient is NaN where one is zero, as in an empty patch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from monai.losses.ssim_loss import SSIMLoss
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from pipelines.card import find
from pipelines.errors import ModelError, UsageError
from pipelines.networks.textbook.autoencoder import kl
from pipelines.networks.textbook.features import Features, features_of

__all__ = ["HETEROSCEDASTIC", "TERMS", "Loss", "build", "heteroscedastic", "kl"]

Term = Callable[[Tensor, Tensor], Tensor]

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales of MS-SSIM, the finest first (Wang et al. 2003)."""

SSIM_WINDOW = 11
"""Samples per axis, of a Gaussian with a standard deviation of 1.5 (Wang et al. 2004)."""

LOG_VARIANCE = 20.0
"""Log-variances beyond +- this are taken as this: their exponentials would leave float32."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Terms by name, each with its weight. Called with images (b, c, *spatial) it is their sum, 0 where both agree."""

    terms: Mapping[str, tuple[float, Term]]
    data_range: float

    def __call__(self, estimate: Tensor, truth: Tensor) -> Tensor:
        return torch.stack(list(self.parts(estimate, truth).values())).sum()

    def parts(self, estimate: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Each term times its weight. Raises UsageError where images are too small for one."""
        estimate, truth = (_full(image) / self.data_range for image in (estimate, truth))
        return {name: weight * term(estimate, truth) for name, (weight, term) in self.terms.items()}


def build(terms: Mapping[str, float | Mapping[str, Any]], ndim: int, data_range: float) -> Loss:
    """The loss of a config. terms: name -> weight, or -> {weight: ..., option: ...}; rows of TERMS.

    ndim: 2 or 3; data_range: what the images are divided by, so that weights mean the same for any unit.
    Raises UsageError for unknown names or options, weights that are no positive number, or no term at all, and
    ModelError for a network of perceptual features that cannot be used.
    """
    if not (0 < data_range < math.inf):
        raise UsageError(what=f"the range of the images is {data_range}", why="a loss is a share of it")
    if not isinstance(terms, Mapping) or not terms:
        raise UsageError(what="the loss has no terms", fix=f"give one or more of {', '.join(TERMS)}, like {{l1: 1}}")
    made = {}
    for name, told in terms.items():
        row = TERMS[_known(str(name), TERMS, "there is no loss")]
        options = dict(told) if isinstance(told, Mapping) else {"weight": told}
        weight = _positive(name, "weight", options.pop("weight", 1.0))
        for key in options:
            _known(str(key), row.options, f"the loss {name} has no option")
        made[name] = (weight, row.build(ndim, **{**row.options, **options}))
    return Loss(made, float(data_range))


def heteroscedastic(mean: Tensor, log_variance: Tensor, truth: Tensor, kind: str = "laplace") -> Tensor:
    """Mean negative log-likelihood [nats] of truth under a mean and a log-variance per sample, all of one shape.

    kind: 'laplace' (abs(e) / b + log 2b, b = standard deviation / sqrt 2) or 'gaussian'. Least over the log-variance
    where the variance is the mean squared error, or twice the squared mean of the absolute one (laplace). Kendall and
    Gal, NIPS 2017. Raises UsageError for another kind.
    """
    _known(kind, HETEROSCEDASTIC, "there is no likelihood")
    mean, truth = _full(mean), _full(truth)
    return HETEROSCEDASTIC[kind](mean, _full(log_variance).clamp(-LOG_VARIANCE, LOG_VARIANCE), truth)


def _laplace(mean: Tensor, log_variance: Tensor, truth: Tensor) -> Tensor:
    log_width = 0.5 * (log_variance - math.log(2))
    return ((mean - truth).abs() * (-log_width).exp() + log_width + math.log(2)).mean()


def _gaussian(mean: Tensor, log_variance: Tensor, truth: Tensor) -> Tensor:
    least = math.exp(-LOG_VARIANCE)
    return functional.gaussian_nll_loss(mean, truth, log_variance.exp(), full=True, eps=least)


HETEROSCEDASTIC: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"laplace": _laplace, "gaussian": _gaussian}
"""Likelihoods of an error of unknown size."""


def _l1(ndim: int) -> Term:
    del ndim
    return functional.l1_loss


def _mse(ndim: int) -> Term:
    del ndim
    return functional.mse_loss


def _charbonnier(ndim: int, epsilon: float) -> Term:
    """sqrt(e^2 + epsilon^2) - epsilon: L1 that is smooth around 0 (Lai et al., CVPR 2017). epsilon: over the range."""
    del ndim
    bend = _positive("charbonnier", "epsilon", epsilon)
    return lambda x, y: (torch.sqrt((x - y).square() + bend * bend) - bend).mean()


def _ssim(ndim: int, window: int) -> Term:
    """1 - SSIM, 2-D or 3-D. window: samples per axis; on shorter axes as many as fit."""
    if not isinstance(window, int) or window < 3 or window % 2 == 0:
        raise UsageError(what=f"the loss ssim has a window of {window!r}", fix=f"give an odd one, like {SSIM_WINDOW}")

    def term(x: Tensor, y: Tensor) -> Tensor:
        sides = [min(window, n - 1 + n % 2) for n in x.shape[2:]]
        return cast(Tensor, SSIMLoss(ndim, data_range=1.0, win_size=sides)(x, y))

    return term


def _ms_ssim(ndim: int, scales: int) -> Term:
    """1 - MS-SSIM (Wang et al. 2003), each scale mapped from -1..1 to 0..1: its power has no slope to the negative.

    scales: at most; fewer where the shortest side has not the samples for them.
    """
    del ndim
    if not isinstance(scales, int) or not 2 <= scales <= len(SCALE_WEIGHTS):
        raise UsageError(what=f"the loss ms_ssim has {scales!r} scales", fix=f"give 2 to {len(SCALE_WEIGHTS)}")

    def term(x: Tensor, y: Tensor) -> Tensor:
        weights = SCALE_WEIGHTS[: _scales_that_fit(min(x.shape[2:]), scales)]
        betas = tuple(w / sum(weights) for w in weights)
        found = multiscale_structural_similarity_index_measure(x, y, data_range=1.0, betas=betas, normalize="simple")
        return 1 - cast(Tensor, found)

    return term


def _scales_that_fit(side: int, most: int) -> int:
    """As torchmetrics counts them; its windows are mirrored at the edges by half their length."""
    for count in range(most, 1, -1):
        if side // (count - 1) ** 2 >= SSIM_WINDOW and side >> (count - 1) > SSIM_WINDOW // 2:
            return count
    raise UsageError(
        what=f"a side of {side} samples is too short for ms_ssim",
        why="its windows would not fit the second scale",
        fix="take larger patches, or ssim",
    )


def _gradient(ndim: int) -> Term:
    """Mean absolute difference of the differences of neighbours, over all axes."""
    axes = range(2, 2 + ndim)

    def term(x: Tensor, y: Tensor) -> Tensor:
        error = x - y
        steps = [error.diff(dim=a).abs().mean() for a in axes if error.shape[a] > 1]
        return torch.stack(steps).mean() if steps else error.sum() * 0.0

    return term


def _fourier(ndim: int, epsilon: float) -> Term:
    """Mean absolute difference of the spectra, amplitude and phase, smooth around 0 as charbonnier.

    Edges are faded: the transform takes opposite ones for neighbours.
    """
    bend = _positive("fourier", "epsilon", epsilon)

    def term(x: Tensor, y: Tensor) -> Tensor:
        error = x - y
        for axis in range(ndim):
            n = x.shape[2 + axis]
            fade = torch.hann_window(n + 2, periodic=False, dtype=x.dtype, device=x.device)[1:-1]
            error = error * (fade / fade.square().mean().sqrt()).reshape([-1] + [1] * (ndim - 1 - axis))
        found = torch.view_as_real(torch.fft.rfftn(error, dim=tuple(range(2, 2 + ndim)), norm="ortho"))
        return (torch.sqrt(found.square().sum(-1) + bend * bend) - bend).mean()

    return term


def _perceptual(ndim: int, model: str) -> Term:
    """Mean absolute difference of the features that a network trained here makes of both, over those of the truth.

    model: name or card (.json) of a textbook bundle. After Johnson et al., ECCV 2016, whose network knows photographs.
    """
    if not isinstance(model, str) or not model:
        raise UsageError(what="the loss perceptual names no model", fix="give the path of a bundle's card as model")
    features: Features = features_of(find(model))
    if features.ndim != ndim:
        raise ModelError(
            what=f"{model} is a network of {features.ndim} axes, the images have {ndim}", fix="choose another model"
        )

    def term(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = features(y)
        return torch.stack(
            [(a - b).abs().mean() / b.abs().mean().clamp_min(1e-6) for a, b in zip(features(x), wanted, strict=True)]
        ).mean()

    return term


@dataclass(frozen=True, slots=True)
class _Row:
    build: Callable[..., Term]
    options: Mapping[str, Any]


TERMS: dict[str, _Row] = {
    "l1": _Row(_l1, {}),
    "charbonnier": _Row(_charbonnier, {"epsilon": 1e-3}),
    "mse": _Row(_mse, {}),
    "ssim": _Row(_ssim, {"window": SSIM_WINDOW}),
    "ms_ssim": _Row(_ms_ssim, {"scales": len(SCALE_WEIGHTS)}),
    "gradient": _Row(_gradient, {}),
    "fourier": _Row(_fourier, {"epsilon": 1e-3}),
    "perceptual": _Row(_perceptual, {"model": ""}),
}
"""Terms by name, with their options' defaults."""


def _full(image: Tensor) -> Tensor:
    """Sums of many small numbers need more than half precision."""
    return image if image.dtype is torch.float64 else image.float()


def _known(name: str, known: Mapping[str, Any] | Sequence[str], what: str) -> str:
    if name in known:
        return name
    close = difflib.get_close_matches(name, list(known), n=1)
    raise UsageError(
        what=f"{what} '{name}'",
        why=f"known are {', '.join(known)}" if known else "it has none",
        fix=f"did you mean '{close[0]}'?" if close else "",
    )


def _positive(name: str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(what=f"the loss {name} has the {key} {value!r}", fix="give a number above 0")
    return float(value)
