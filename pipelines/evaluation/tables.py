"""Scores of many images as tables: mean over subjects, difference to the floor, the worst one, a bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipelines.evaluation.metrics import HIGHER_IS_BETTER, IMAGERY, MEDICAL

RESAMPLES = 10_000
"""Bootstrap samples of a mean, drawn over subjects or places."""

SEED = 20
CONFIDENCE = 0.95

DIGITS = {"psnr": 2, "ssim": 4, "hfen": 4, "rmse": 2, "sre": 2, "sam": 3, "ergas": 3, "consistency": 5, "seconds": 2}
DIGITS |= {"improvement": 1, "omission": 1, "hallucination": 1, "coverage": 1, "ause": 3, "ause_gradient": 3}
"""Decimals shown of each column."""


@dataclass(frozen=True, slots=True)
class Score:
    """One image, one condition, one method.

    task, data: the two parts of the condition; bands: band -> peak signal-to-noise ratio [dB]; apart: shown apart
    (CT); over_noise: band -> residual over the true noise, empty without noise; key: of all that it follows from; case:
    the same of image and condition alone, '' without pictures.
    """

    domain: str
    condition: str
    subject: str
    image: str
    model: str
    values: dict[str, float]
    bands: dict[str, float]
    apart: bool = False
    over_noise: dict[str, float] = field(default_factory=dict)
    task: str = ""
    data: str = ""
    key: str = ""
    case: str = ""


@dataclass(frozen=True, slots=True)
class Gain:
    """Difference in one metric to the floor: mean over subjects, interval of that mean (NaN of one), the worst."""

    mean: float
    low: float
    high: float
    worst: float
    worst_subject: str
    subjects: dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One method in a table.

    images: that it was measured on; intervals: metric -> that of its mean; gains: metric -> Gain, empty for the floor;
    rest: gain in PSNR [dB] without the subjects shown apart, None where there are none; worst_band: its name and its
    gain over the floor [dB]; over_cubic: the band or volume least above cubic, and by how much [dB]; over_noise: the
    one with the largest residual over its noise.
    """

    model: str
    images: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    gains: dict[str, Gain] = field(default_factory=dict)
    rest: Gain | None = None
    worst_band: tuple[str, float] | None = None
    over_cubic: tuple[str, float] | None = None
    over_noise: tuple[str, float] | None = None

    @property
    def headline(self) -> Gain | None:
        """The gain in PSNR [dB] that stands for the method: of subjects shown apart only if there are no others."""
        return self.rest or self.gains.get("psnr")


@dataclass(frozen=True, slots=True)
class Table:
    """All methods under one condition; apart: subjects that also have a line of their own."""

    domain: str
    condition: str
    task: str
    data: str
    images: int
    subjects: tuple[str, ...]
    apart: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def columns(self) -> list[str]:
        """Metrics in the order in which they are shown, seconds last."""
        present = self.rows[0].values
        return [c for c in (MEDICAL if self.domain == "med" else IMAGERY) if c in present] + ["seconds"]

    @property
    def counts(self) -> str:
        """'15 images, 5 subjects'."""
        who = "subject" if self.domain == "med" else "place"
        return ", ".join(
            f"{n} {what}{'s' * (n != 1)}" for n, what in ((self.images, "image"), (len(self.subjects), who))
        )

    @property
    def notes(self) -> list[str]:
        """What its numbers leave out, one line each."""
        return [note for row in self.rows for note in _notes(self, row)]


@dataclass(frozen=True, slots=True)
class Tables:
    """The outcome of a suite. notes: what a reader must know of it, one line each (images that were left out)."""

    suite: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Aligned text, one table a condition."""
        notes = ["\n".join(f"note     {note}" for note in self.notes)] if self.notes else []
        return "\n\n".join([f"suite {self.suite}", *(_text(t) for t in self.tables), *notes])

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not a finite number is null."""
        return {"suite": self.suite, "notes": list(self.notes), "tables": [_plain(t) for t in self.tables]}


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Percentile interval of the mean at CONFIDENCE, drawn over subjects, fixed seed.

    NaN where there is none: of a single subject, or of a perfect product.
    """
    known: NDArray[np.float64] = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if len(known) < 2 or not np.isfinite(known).all():
        return math.nan, math.nan
    drawn = stats.bootstrap(
        (known,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=SEED
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def tables(suite: str, scores: Sequence[Score], notes: Sequence[str] = ()) -> Tables:
    """One table per condition, methods in the order in which they first appear."""
    keys = dict.fromkeys((s.domain, s.condition) for s in scores)
    made = (_table([s for s in scores if (s.domain, s.condition) == key]) for key in keys)
    return Tables(suite, tuple(made), tuple(notes))


def _table(scores: list[Score]) -> Table:
    """The table of one condition."""
    one = scores[0]
    subjects = tuple(dict.fromkeys(s.subject for s in scores))
    apart = tuple(dict.fromkeys(s.subject for s in scores if s.apart))
    names = dict.fromkeys(s.model for s in scores)
    rows = tuple(_row([s for s in scores if s.model == name], scores, apart) for name in names)
    images = len({(s.subject, s.image) for s in scores})
    return Table(one.domain, one.condition, one.task, one.data, images, subjects, apart, rows)


def _row(own: list[Score], scores: list[Score], apart: tuple[str, ...]) -> Row:
    """One method: own, of all scores of its table."""
    name, columns, means = own[0].model, own[0].values, _means(own)
    seen = {(s.subject, s.image) for s in own}  # a network's scale may suit only some: paired image by image
    alike = [s for s in scores if (s.subject, s.image) in seen]
    floor, cubic = ([s for s in alike if s.model == other] for other in ("floor", "cubic"))
    row = Row(
        name,
        len(seen),
        {k: _mean([m[k] for m in means.values()]) for k in columns},
        {k: bootstrap([m[k] for m in means.values()]) for k in columns if k != "seconds"},
        over_cubic=None if name in PLAIN and name != "floor" else _worst_band(own, cubic),
        over_noise=_most_over_noise(own),
    )
    if name == "floor" or not floor:
        return row
    base = _means(floor)
    gains = _gains(means, base, columns)
    rest = {s: m for s, m in means.items() if s not in apart}
    without = _gains(rest, base, ["psnr"]).get("psnr") if apart else None
    return replace(row, gains=gains, rest=without, worst_band=_worst_band(own, floor))


def _means(scores: list[Score]) -> dict[str, dict[str, float]]:
    """Subject -> metric -> mean over its images."""
    subjects = dict.fromkeys(s.subject for s in scores)
    return {
        subject: {k: _mean([s.values[k] for s in scores if s.subject == subject]) for k in scores[0].values}
        for subject in subjects
    }


def _mean(values: Sequence[float]) -> float:
    """Mean of what is a number; NaN of nothing (a single band has no spectral angle)."""
    numbers: NDArray[np.float64] = np.array([v for v in values if not math.isnan(v)], np.float64)
    return float(numbers.mean()) if numbers.size else math.nan


def _gains(
    own: dict[str, dict[str, float]], floor: dict[str, dict[str, float]], columns: Iterable[str]
) -> dict[str, Gain]:
    gains = {}
    for metric in columns:
        differences = {s: own[s][metric] - floor[s][metric] for s in own if s in floor}
        differences = {s: d for s, d in differences.items() if not math.isnan(d)}
        if metric == "seconds" or not differences:
            continue
        worst = (min if metric in HIGHER_IS_BETTER else max)(differences, key=lambda s: differences[s])
        low, high = bootstrap(list(differences.values()))
        gains[metric] = Gain(_mean(list(differences.values())), low, high, differences[worst], worst, differences)
    return gains


def _worst_band(own: list[Score], floor: list[Score]) -> tuple[str, float] | None:
    reference = {(s.subject, s.image): s.bands for s in floor}
    found = {
        f"{s.subject} {s.image} {band}": value - reference[s.subject, s.image][band]
        for s in own
        for band, value in s.bands.items()
        if (s.subject, s.image) in reference
    }
    worst = min(found, key=lambda k: found[k], default=None)
    return None if worst is None else (worst, found[worst])


def _most_over_noise(own: list[Score]) -> tuple[str, float] | None:
    found = {f"{s.subject} {s.image} {band}": value for s in own for band, value in s.over_noise.items()}
    most = max(found, key=lambda k: found[k], default=None)
    return None if most is None else (most, found[most])


def _text(table: Table) -> str:
    columns = table.columns
    lines = [[table.domain, *columns, "PSNR over floor", "95 % of mean", "worst"]]
    for row in table.rows:
        cells = [row.model, *(number(row.values[c], c) for c in columns)]
        gain = row.gains.get("psnr")
        if gain is None:
            cells += ["", "", ""]
        else:
            cells += [f"{gain.mean:+.2f} dB", span(gain.low, gain.high)]
            cells += [f"{gain.worst:+.2f} {gain.worst_subject}"]
        lines.append(cells)
    notes = [f"  {note}" for note in table.notes]
    return "\n".join([f"{table.condition}  ({table.counts})", *_aligned(lines), *notes])


PLAIN = ("nearest", "linear", "cubic", "floor")
"""Methods without weights: compared with, not judged."""


def _notes(table: Table, row: Row) -> list[str]:
    """Each subject's gain of a network, the mean without those shown apart, and its worst band; the floor's own."""
    if row.model in PLAIN and row.model != "floor":
        return []
    own = []
    if row.over_cubic:
        own.append(f"{row.model}: least above cubic {row.over_cubic[1]:+.2f} dB, {row.over_cubic[0]}")
    if row.over_noise:
        own.append(f"{row.model}: residual up to {row.over_noise[1]:.2f} of the noise, {row.over_noise[0]}")
    gain = row.gains.get("psnr")
    if gain is None:
        return own
    if row.images < table.images:
        own.append(
            f"{row.model}: its scale suits {row.images} of {table.images} images; its gain is over the floor of these"
        )
    each = ", ".join(f"{s} {d:+.2f}{' (apart)' if s in table.apart else ''}" for s, d in gain.subjects.items())
    notes = [f"{row.model}: {each}"]
    if row.rest:
        named, rest = ", ".join(table.apart), row.rest
        notes.append(f"{row.model}: without {named} {rest.mean:+.2f} dB, worst {rest.worst:+.2f}")
    if row.worst_band and table.domain == "geo":
        notes.append(f"{row.model}: worst band {row.worst_band[1]:+.2f} dB, {row.worst_band[0]}")
    return notes + own


def number(value: float, column: str) -> str:
    """A value with the digits of its column, '-' for none."""
    return "-" if math.isnan(value) else f"{value:.{DIGITS[column]}f}"


def span(low: float, high: float) -> str:
    """An interval, '-' where there is none."""
    return "-" if math.isnan(low) else f"{low:+.2f} .. {high:+.2f}"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(w) if k in (0, last) else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _finite(value: Any) -> Any:
    """JSON's values: what is no finite number is null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(table: Table) -> dict[str, Any]:
    """A table as JSON."""

    def gain(g: Gain) -> dict[str, Any]:
        place = {"worst": g.worst, "worst_subject": g.worst_subject, "subjects": g.subjects}
        return {"mean": g.mean, "interval": (g.low, g.high), **place}

    plain = {
        "domain": table.domain,
        "condition": table.condition,
        "images": table.images,
        "subjects": table.subjects,
        "apart": table.apart,
        "models": {
            row.model: {
                "images": row.images,
                "mean": row.values,
                "interval": row.intervals,
                "over_floor": {metric: gain(g) for metric, g in row.gains.items()},
                "over_floor_without_apart": gain(row.rest) if row.rest else None,
                "least_over_cubic": row.over_cubic,
                "most_over_noise": row.over_noise,
                "worst_band": row.worst_band,
            }
            for row in table.rows
        },
    }
    return dict(_finite(plain))
