"""The protocol, carried out: every dev image, condition and method, as tables.

smoke: centre crops, one axis of the volumes, 2x of the scenes; full: whole images, three axes, 2x and 4x.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from pipelines import card as cards
from pipelines.errors import UsageError
from pipelines.evaluation import metrics
from pipelines.evaluation.cases import NOISE, Case, Condition, Truth, conditions, simulate, truths
from pipelines.evaluation.tables import PLAIN, Score, Tables, tables
from pipelines.grid import Factor
from pipelines.image import Header

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

IMAGES = {"med": 5, "geo": 28}
"""About how many dev images there are: for the progress only."""


class Restore(Protocol):
    """A method under test: coarse samples (channel, *shape) -> fine samples (channel, *fine)."""

    def __call__(
        self,
        samples: NDArray[np.float64],
        header: Header,
        *,
        scale: Factor,
        model: str,
        noise: Literal["auto"] | float,
    ) -> NDArray[np.float32]: ...


def _quiet(_stage: str, _done: int, _total: int) -> None:
    """Report nothing."""


def evaluate(
    suite: str,
    data: Path,
    models: list[str] | None = None,
    progress: Progress | None = None,
    *,
    restore: Restore | None = None,
    domains: Sequence[str] = ("med", "geo"),
) -> Tables:
    """The tables of a suite ('smoke' or 'full') on the dev images in `data` (med/ and geo/ with a manifest each).

    models: only these and the floor (None: nearest, linear, cubic, floor and every shipped network); restore: None for
    the engine of `upscale`. Clean data are restored as told to be clean, noisy ones with the noise estimated.
    """
    if suite not in ("smoke", "full"):
        raise UsageError(what=f"there is no suite '{suite}'", fix="choose smoke or full")
    from threadpoolctl import threadpool_limits

    method = restore or _engine()
    chosen = _chosen(models)
    report = progress or _quiet
    scores: list[Score] = []
    with threadpool_limits(1, user_api="blas"):  # small matrices: more threads only wait for each other
        for domain in domains:
            asked = conditions(domain, suite)
            steps = IMAGES[domain] * len(asked)
            for number, truth in enumerate(truths(domain, suite, data)):
                for k, condition in enumerate(asked):
                    done = number * len(asked) + k
                    report(f"{domain} {truth.subject}", done, max(steps, done + 1))
                    scores += scored(truth, condition, chosen, method)
            report(domain, steps, steps)
    order = {c.name: n for domain in domains for n, c in enumerate(conditions(domain, suite))}
    scores.sort(key=lambda s: (domains.index(s.domain), order[s.condition]))
    return tables(suite, scores)


def _engine() -> Restore:
    from pipelines.runner import upscale_array

    def restore(
        samples: NDArray[np.float64],
        header: Header,
        *,
        scale: Factor,
        model: str,
        noise: Literal["auto"] | float,
    ) -> NDArray[np.float32]:
        return upscale_array(samples, header, scale=scale, model=model, noise=noise)

    return restore


def _chosen(models: list[str] | None) -> list[cards.ModelCard]:
    """The cards of the methods, those without weights first."""
    if models is None:
        return cards.available()
    named = [cards.find(name) for name in models]
    floor = [] if any(c.name == "floor" for c in named) else [cards.find("floor")]
    return sorted(floor + named, key=lambda c: PLAIN.index(c.name) if c.name in PLAIN else len(PLAIN))


def scored(truth: Truth, condition: Condition, chosen: Sequence[cards.ModelCard], restore: Restore) -> list[Score]:
    """One score per method that suits the condition; none where the image is too small for it."""
    seed = crc32(f"{truth.subject} {truth.name} {condition}".encode())  # the same noise whatever else is run
    case = simulate(truth, condition, np.random.default_rng(seed))
    if case is None:
        return []
    return [
        _score(case, card, restore)
        for card in chosen
        if card.domain in ("any", condition.domain) and not card.suits(tuple(case.factor))
    ]


def _score(case: Case, card: cards.ModelCard, restore: Restore) -> Score:
    name = card.id if card.network else card.name
    noise: Literal["auto"] | float = "auto" if case.condition.noisy else 0.0
    started = time.perf_counter()
    product = np.asarray(
        restore(
            case.coarse,
            case.header,
            scale=case.factor,
            model=str(card.folder / f"{card.id}.json") if card.folder else card.name,
            noise=noise,
        ),
        np.float64,
    )
    seconds = time.perf_counter() - started
    compared = comparison(case, product)
    columns = metrics.MEDICAL if case.condition.domain == "med" else metrics.IMAGERY
    values = {column: metrics.TABLE[column](compared) for column in columns}
    bands = zip((c.name for c in case.header.channels), metrics.psnr_of_bands(compared), strict=True)
    axis = f" axis {case.condition.axis}" if case.condition.domain == "med" else ""
    return Score(
        domain=case.condition.domain,
        condition=case.condition.name,
        subject=case.truth.subject,
        image=case.truth.name + axis,
        model=name,
        values={**values, "seconds": seconds},
        bands={band: float(value) for band, value in bands},
        apart=case.header.modality == "CT",
        over_noise=_over_noise(case, compared.residual) if case.condition.noisy else {},
    )


def _over_noise(case: Case, residual: NDArray[np.float64]) -> dict[str, float]:
    """Per band: the root mean square of measured - degraded product over the true noise."""
    sigma = NOISE[case.condition.domain] * case.truth.peaks
    rms = np.sqrt(np.nanmean(np.square(residual), axis=tuple(range(1, residual.ndim))))
    return {c.name: float(r) for c, r in zip(case.header.channels, rms / sigma, strict=True)}


def comparison(case: Case, product: NDArray[np.float64]) -> metrics.Comparison:
    """A product of a case beside its truth; the residual is that of the clean or noisy data it was made from."""
    truth = case.truth
    valid = np.isfinite(product)
    if valid.all():
        degraded = case.degradation.forward(product)
    else:
        pairs = [case.degradation.forward_valid(v, m) for v, m in zip(product, valid, strict=True)]
        degraded = np.stack([np.where(share > 1 - 1e-9, values, np.nan) for values, share in pairs])
    return metrics.Comparison(
        truth=truth.samples,
        product=product,
        mask=truth.mask & valid & np.isfinite(truth.samples),
        peaks=truth.peaks,
        scale=float(case.factor.axes[case.factor.changed[0]]),
        residual=case.coarse - degraded,
        residual_unit=float(truth.peaks[0]) if case.condition.domain == "med" else 1.0,
    )
