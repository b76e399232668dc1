"""The protocol, carried out: every image, condition and method of a suite, as scores, tables and pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from pipelines import card as cards
from pipelines.errors import InputError, ModelError, UsageError
from pipelines.evaluation import metrics
from pipelines.evaluation.cases import NOISE, Case, factor_of, simulate
from pipelines.evaluation.conditions import Condition, suite_of
from pipelines.evaluation.documents import write_documents
from pipelines.evaluation.ledger import Ledger, key_of
from pipelines.evaluation.pictures import View
from pipelines.evaluation.tables import PLAIN, Score, Tables, tables
from pipelines.evaluation.truths import Entry, Truth, entries, read
from pipelines.grid import Factor, placements
from pipelines.image import Header, Source
from pipelines.interpolation import interpolate

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

UNGUIDED = (
    "only methods that need a guide look at the 10 m or panchromatic band, made as coarse as the truth by `wald`; the "
    "others say what the coarse bands alone give"
)


class Restore(Protocol):
    """A method under test: coarse samples (channel, *shape) -> fine samples (channel, *fine).

    scale: None with a guide, whose grid is the fine one.
    """

    def __call__(
        self,
        samples: NDArray[np.float64],
        header: Header,
        *,
        scale: Factor | None,
        model: str,
        noise: Literal["auto"] | float,
        consistency: bool,
        guide: Source | None = None,
    ) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Method:
    """What is compared. name: of its row; model: what `upscale --model` is told; projected: as `upscale` always is."""

    name: str
    model: str
    card: cards.ModelCard
    projected: bool = True

    @property
    def errors(self) -> list[cards.ModelCard]:
        """The model of its errors, of what it makes with the projection; none without one."""
        return [self.card.of_errors] if self.card.of_errors and self.projected else []

    def suits(self, domain: str, scales: Factor) -> bool:
        """Whether it is for such images and makes such a scale."""
        return self.card.domain in ("any", domain) and not self.card.suits(tuple(scales))


def _quiet(_stage: str, _done: int, _total: int) -> None:
    """Report nothing."""


def evaluate(
    suite: str,
    data: Path,
    models: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    out: Path | None = None,
    limit: int | None = None,
    unprojected: bool = False,
    memory: str = "4GB",
    restore: Restore | None = None,
) -> Tables:
    """The tables of a suite (`conditions.SUITES`) on the images in `data` (see `truths.entries`).

    models: only these, cubic and the floor (None: nearest, linear, cubic, floor and every shipped network); out: a
    folder for the documents and pictures, in which the same call goes on after it was stopped; limit: only the first
    subjects or places; unprojected: every network also without the projection; memory: budget of a
    restoration; restore: None for the engine of `upscale`. Clean data are restored as told to be clean, noisy ones with
    the noise estimated. Raises UsageError, ModelError, InputError, BudgetError.
    """
    asked = suite_of(suite)
    chosen = _chosen(models)
    if unprojected:
        networks = [m for m in chosen if m.card.network]
        chosen += [replace(m, name=f"{m.name} unprojected", projected=False) for m in networks]
    if limit is not None and limit < 1:
        raise UsageError(what=f"--limit {limit} leaves nothing to measure", fix="give 1 or more")
    listed, left = entries(asked.domains, data)
    run = _Run(chosen, Ledger(out), restore or _engine(memory), asked.whole)
    scores: list[Score] = []
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):  # small matrices: more threads only wait for each other
        for domain in asked.domains:
            conditions = asked.conditions(domain)
            images = _first([e for e in listed if e.domain == domain], limit)
            own = list(run.scores(images, conditions, left, progress or _quiet))
            order = {c.name: n for n, c in enumerate(conditions)}
            scores += sorted(own, key=lambda s: order[s.condition])
    if not scores:
        raise InputError(
            what="no image in the data folder suits a condition of the suite",
            why=next((f"{name}: {why}" for name, why in left.items()), "they are too small or too coarse"),
            fix="name finer or larger images with --data, or another --suite",
        )
    notes = _left_out(left)
    notes += [UNGUIDED] if any("Wald" in s.condition for s in scores) else []
    made = tables(suite, scores, notes)
    if out is not None:
        write_documents(out, made, scores)
    return made


def _left_out(left: dict[str, str]) -> list[str]:
    """A line for each reason, with the first of its images."""
    by_reason: dict[str, list[str]] = {}
    for name, why in left.items():
        by_reason.setdefault(why, []).append(name)
    more = {why: f" and {len(names) - 1} more" if len(names) > 1 else "" for why, names in by_reason.items()}
    return [f"left out: {names[0]}{more[why]}: {why}" for why, names in by_reason.items()]


def _first(images: list[Entry], limit: int | None) -> list[Entry]:
    """Those of the first subjects."""
    subjects = list(dict.fromkeys(e.subject for e in images))[:limit]
    return [e for e in images if e.subject in subjects]


def _engine(memory: str) -> Restore:
    from pipelines.runner import upscale_array

    def restore(
        samples: NDArray[np.float64],
        header: Header,
        *,
        scale: Factor | None,
        model: str,
        noise: Literal["auto"] | float,
        consistency: bool,
        guide: Source | None = None,
    ) -> NDArray[np.float32]:
        return upscale_array(
            samples, header, scale=scale, guide=guide, model=model, noise=noise, consistency=consistency, memory=memory
        )

    return restore


def _chosen(models: Sequence[str] | None) -> list[Method]:
    """The methods, those without weights first. Raises ModelError."""
    if models is None:
        images = (c for c in cards.available() if c.estimates == "image")
        named = [(c, c.path) for c in images]
    else:
        named = [(cards.find(name), name) for name in dict.fromkeys((*models, "cubic", "floor"))]
    methods = [Method(card.id if card.network else card.name, model, card) for card, model in named]
    for method in methods:
        method.card.verify()
        if sum(m.name == method.name for m in methods) > 1:
            raise ModelError(what=f"two models are called {method.name}", fix="give one of them another version")
    return sorted(methods, key=lambda m: PLAIN.index(m.name) if m.name in PLAIN else len(PLAIN))


@dataclass(frozen=True, slots=True)
class _Run:
    """What the cases of a run share."""

    methods: list[Method]
    ledger: Ledger
    restore: Restore
    whole: bool

    def scores(
        self, images: list[Entry], conditions: list[Condition], left: dict[str, str], report: Progress
    ) -> Iterator[Score]:
        """Of every image under every condition; why an image gave none goes into `left`."""
        total = len(images) * len(conditions)
        for number, entry in enumerate(images):
            report(entry.domain, number * len(conditions), total)
            try:
                truth = read(entry, whole=self.whole)
                if isinstance(truth, str):
                    left[f"{entry.subject} {entry.name}"] = truth
                    continue
                if not any(factor_of(truth, condition) for condition in conditions):
                    left[f"{entry.subject} {entry.name}"] = "it is too coarse or too small for every condition"
                for k, condition in enumerate(conditions):
                    yield from self.of_case(truth, condition)
                    report(entry.domain, number * len(conditions) + k + 1, total)
            except InputError as error:  # one file that cannot be read is no reason to lose the others
                left[f"{entry.subject} {entry.name}"] = str(error)
        if images:
            report(images[0].domain, total, total)

    def of_case(self, truth: Truth, condition: Condition) -> list[Score]:
        """One score per method that suits the condition; none where the condition is not for the image."""
        factor = factor_of(truth, condition)
        if factor is None:
            return []
        guided = bool(condition.fusion and truth.entry.guide)
        methods = [m for m in self.methods if m.suits(condition.domain, factor) and (guided or not m.card.guided)]
        name = key_of(
            version("truescale"), truth.identity, truth.subject, truth.name, repr(condition), condition.fusion
        )
        keys = [key_of(name, m.name, m.card.digest, *(e.digest for e in m.errors)) for m in methods]
        if any(self.ledger.get(key) is None for key in keys):
            seed = crc32(f"{truth.subject} {truth.name} {condition}".encode())  # the same noise whatever else is run
            case = simulate(truth, condition, np.random.default_rng(seed))
            assert case is not None
            if case.guide is None:  # one with holes
                keys = [key for m, key in zip(methods, keys, strict=True) if not m.card.guided]
                methods = [m for m in methods if not m.card.guided]
            lifted = interpolate(case.coarse, placements(case.header.grid, case.header.grid.rescaled(factor)), "linear")
            view = self._view(case, lifted, name)
            for method, key in zip(methods, keys, strict=True):
                if self.ledger.get(key) is None:
                    score, product = _score(case, method, self.restore, lifted, key, name if view else "")
                    if view is not None:
                        self.ledger.keep(f"{key}.webp", view.image(product))
                        self.ledger.keep(f"{key}-error.webp", view.error(product))
                    self.ledger.add(score)  # after its pictures: what is in the ledger is whole
        return [kept for key in keys if (kept := self.ledger.get(key)) is not None]

    def _view(self, case: Case, lifted: NDArray[np.float64], name: str) -> View | None:
        """What of the case is shown, with the pictures that all methods share; None without a folder."""
        if self.ledger.folder is None:
            return None
        view = View(case, lifted)
        self.ledger.keep(f"{name}-input.webp", view.input())
        self.ledger.keep(f"{name}-truth.webp", view.image(case.truth.samples))
        self.ledger.keep(f"{name}.json", json.dumps(asdict(view.panel(name))).encode())
        return view


def _score(
    case: Case, method: Method, restore: Restore, lifted: NDArray[np.float64], key: str, name: str
) -> tuple[Score, NDArray[np.float64]]:
    """(the score, the product) of one method."""
    noise: Literal["auto"] | float = "auto" if case.condition.noisy else 0.0
    started = time.perf_counter()
    told: dict[str, Any] = {"scale": None, "guide": case.guide} if method.card.guided else {"scale": case.factor}
    made = restore(case.coarse, case.header, model=method.model, noise=noise, consistency=method.projected, **told)
    seconds = time.perf_counter() - started
    product = np.asarray(made, np.float64)
    compared = comparison(case, product, lifted)
    for card in method.errors:
        errors = restore(case.coarse, case.header, scale=case.factor, model=card.path, noise=noise, consistency=False)
        compared = replace(compared, deviation=np.asarray(errors, np.float64))
    columns = metrics.MEDICAL if case.condition.domain == "med" else metrics.IMAGERY
    bands = zip((c.name for c in case.header.channels), metrics.psnr_of_bands(compared), strict=True)
    axis = f" axis {case.condition.axis}" if case.condition.domain == "med" else ""
    score = Score(
        domain=case.condition.domain,
        condition=case.condition.name,
        subject=case.truth.subject,
        image=case.truth.name + axis,
        model=method.name,
        values={**metrics.measured(compared, columns), "seconds": seconds},
        bands={band: float(value) for band, value in bands},
        apart=case.header.modality == "CT",
        over_noise=_over_noise(case, compared.residual) if case.condition.noisy else {},
        task=case.condition.task,
        data=case.condition.data,
        key=key,
        case=name,
    )
    return score, product


def _over_noise(case: Case, residual: NDArray[np.float64]) -> dict[str, float]:
    """Per band: the root mean square of measured - degraded product over the true noise."""
    sigma = NOISE[case.condition.domain] * case.truth.peaks
    rms = np.sqrt(np.nanmean(np.square(residual), axis=tuple(range(1, residual.ndim))))
    return {c.name: float(r) for c, r in zip(case.header.channels, rms / sigma, strict=True)}


def comparison(
    case: Case, product: NDArray[np.float64], lifted: NDArray[np.float64] | None = None
) -> metrics.Comparison:
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
        lifted=lifted,
    )
