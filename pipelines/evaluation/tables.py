"""Scores of many images as tables: mean over subjects, difference to the floor, the worst one, a bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.metrics import IMAGERY, MEDICAL

RESAMPLES = 10_000
"""Bootstrap samples of the mean difference, drawn over subjects."""

SEED = 20
CONFIDENCE = 0.95

DIGITS = {"psnr": 2, "ssim": 4, "hfen": 4, "rmse": 2, "sre": 2, "sam": 3, "ergas": 3, "consistency": 5, "seconds": 2}
"""Decimals shown of each column."""


@dataclass(frozen=True, slots=True)
class Score:
    """One image, one condition, one method.

    bands: band -> peak signal-to-noise ratio [dB]; apart: shown apart (CT); over_noise: band -> residual over the true
    noise, empty without noise.
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


@dataclass(frozen=True, slots=True)
class Gain:
    """Difference in one metric to the floor: mean over subjects, interval of that mean, the worst subject."""

    mean: float
    low: float
    high: float
    worst: float
    worst_subject: str
    subjects: dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One method in a table.

    gains: metric -> Gain, empty for the floor; worst_band: its name and its gain over the floor [dB]; over_cubic: the
    band or volume least above cubic, and by how much [dB]; over_noise: the one with the largest residual over its
    noise.
    """

    model: str
    values: dict[str, float]
    gains: dict[str, Gain] = field(default_factory=dict)
    worst_band: tuple[str, float] | None = None
    over_cubic: tuple[str, float] | None = None
    over_noise: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """All methods under one condition; apart: subjects that also have a line of their own."""

    domain: str
    condition: str
    images: int
    subjects: tuple[str, ...]
    apart: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Tables:
    """The outcome of a suite."""

    suite: str
    tables: tuple[Table, ...]

    def to_text(self) -> str:
        """Aligned text, one table a condition."""
        return "\n\n".join([f"suite {self.suite}", *(_text(t) for t in self.tables)])

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not a finite number is null."""
        return {"suite": self.suite, "tables": [_plain(t) for t in self.tables]}


def bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """Interval of the mean at CONFIDENCE from RESAMPLES draws with replacement, fixed seed; NaN of infinities."""
    values = np.asarray(differences, np.float64)
    if not np.isfinite(values).all():  # a perfect product
        return math.nan, math.nan
    draws = np.random.default_rng(SEED).integers(0, len(values), size=(RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[draws].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def tables(suite: str, scores: Sequence[Score]) -> Tables:
    """One table per condition, methods in the order in which they first appear."""
    keys = dict.fromkeys((s.domain, s.condition) for s in scores)
    made = (_table(d, c, [s for s in scores if (s.domain, s.condition) == (d, c)]) for d, c in keys)
    return Tables(suite, tuple(made))


def _table(domain: str, condition: str, scores: list[Score]) -> Table:
    subjects = tuple(dict.fromkeys(s.subject for s in scores))
    names = tuple(dict.fromkeys(s.model for s in scores))
    floor = [s for s in scores if s.model == "floor"]
    cubic = [s for s in scores if s.model == "cubic"]
    rows = []
    for name in names:
        own = [s for s in scores if s.model == name]
        means = _means(own)
        columns = own[0].values
        values = {k: _mean([m[k] for m in means.values()]) for k in columns}
        if name == "floor" or not floor:
            over_cubic = _worst_band(own, cubic) if name == "floor" else None
            rows.append(Row(name, values, over_cubic=over_cubic, over_noise=_most_over_noise(own)))
            continue
        gains = _gains(means, _means(floor), columns)
        rows.append(Row(name, values, gains, _worst_band(own, floor), _worst_band(own, cubic), _most_over_noise(own)))
    apart = tuple(dict.fromkeys(s.subject for s in scores if s.apart))
    return Table(domain, condition, len(floor), subjects, apart, tuple(rows))


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
    own: dict[str, dict[str, float]], floor: dict[str, dict[str, float]], columns: dict[str, float]
) -> dict[str, Gain]:
    gains = {}
    for metric in columns:
        differences = {s: own[s][metric] - floor[s][metric] for s in own if s in floor}
        differences = {s: d for s, d in differences.items() if not math.isnan(d)}
        if metric == "seconds" or not differences:
            continue
        better_high = metric in ("psnr", "ssim", "sre")
        worst = (min if better_high else max)(differences, key=lambda s: differences[s])
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
    present = table.rows[0].values
    columns = [c for c in (MEDICAL if table.domain == "med" else IMAGERY) if c in present] + ["seconds"]
    who = "subjects" if table.domain == "med" else "places"
    lines = [[table.domain, *columns, "PSNR over floor", "95 % of mean", "worst"]]
    for row in table.rows:
        cells = [row.model, *(_number(row.values[c], c) for c in columns)]
        gain = row.gains.get("psnr")
        if gain is None:
            cells += ["", "", ""]
        else:
            cells += [f"{gain.mean:+.2f} dB", f"{gain.low:+.2f} .. {gain.high:+.2f}"]
            cells += [f"{gain.worst:+.2f} {gain.worst_subject}"]
        lines.append(cells)
    heading = f"{table.condition}  ({table.images} images, {len(table.subjects)} {who})"
    notes = [note for row in table.rows for note in _notes(table, row)]
    return "\n".join([heading, *_aligned(lines), *notes])


PLAIN = ("nearest", "linear", "cubic", "floor")
"""Methods without weights: compared with, not judged."""


def _notes(table: Table, row: Row) -> list[str]:
    """Each subject's gain of a network, the mean without those shown apart, and its worst band; the floor's own."""
    if row.model in PLAIN and row.model != "floor":
        return []
    own = []
    if row.over_cubic:
        own.append(f"  {row.model}: least above cubic {row.over_cubic[1]:+.2f} dB, {row.over_cubic[0]}")
    if row.over_noise:
        own.append(f"  {row.model}: residual up to {row.over_noise[1]:.2f} of the noise, {row.over_noise[0]}")
    gain = row.gains.get("psnr")
    if gain is None:
        return own
    each = ", ".join(f"{s} {d:+.2f}{' (apart)' if s in table.apart else ''}" for s, d in gain.subjects.items())
    notes = [f"  {row.model}: {each}"]
    rest = [d for s, d in gain.subjects.items() if s not in table.apart]
    if table.apart and rest:
        notes.append(f"  {row.model}: without {', '.join(table.apart)} {_mean(rest):+.2f} dB, worst {min(rest):+.2f}")
    if row.worst_band and table.domain == "geo":
        notes.append(f"  {row.model}: worst band {row.worst_band[1]:+.2f} dB, {row.worst_band[0]}")
    return notes + own


def _number(value: float, column: str) -> str:
    return "-" if math.isnan(value) else f"{value:.{DIGITS[column]}f}"


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


def _plain(table: Table) -> dict[str, Any]:
    def finite(values: dict[str, float]) -> dict[str, float | None]:
        return {k: v if math.isfinite(v) else None for k, v in values.items()}

    return {
        "domain": table.domain,
        "condition": table.condition,
        "images": table.images,
        "subjects": list(table.subjects),
        "apart": list(table.apart),
        "models": {
            row.model: {
                "mean": finite(row.values),
                "over_floor": {
                    metric: {
                        "mean": g.mean,
                        "interval": [g.low, g.high],
                        "worst": g.worst,
                        "worst_subject": g.worst_subject,
                        "subjects": g.subjects,
                    }
                    for metric, g in row.gains.items()
                    if math.isfinite(g.mean)
                },
                "least_over_cubic": list(row.over_cubic)
                if row.over_cubic and math.isfinite(row.over_cubic[1])
                else None,
                "most_over_noise": list(row.over_noise) if row.over_noise else None,
                "worst_band": list(row.worst_band) if row.worst_band and math.isfinite(row.worst_band[1]) else None,
            }
            for row in table.rows
        },
    }
