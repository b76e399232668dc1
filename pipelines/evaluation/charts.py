"""Curves of a suite as SVG whose colours are the page's: classes, no colour is named here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from pipelines.evaluation.tables import PLAIN, Gain, Table

WIDTH = 480
"""Units across; text is 12 of them, so that it is read on a telephone too."""

COLOURS = 8
"""Networks after these take the colours again, with dashes."""


def method_class(model: str, networks: Sequence[str]) -> str:
    """The class that gives a method its colour and dashes."""
    if model in PLAIN:
        return f"plain{PLAIN.index(model)}"
    turn, colour = divmod(list(networks).index(model), COLOURS)
    return f"net{colour} dash{min(turn, 2)}"


def curves(tables: Sequence[Table], networks: Sequence[str]) -> str:
    """Mean PSNR over the tasks of tables that share their data, a line a method; '' with fewer than two tasks."""
    if len(tables) < 2:
        return ""
    methods = list(dict.fromkeys(row.model for t in tables for row in t.rows))
    values = {m: [next((r.values["psnr"] for r in t.rows if r.model == m), math.nan) for t in tables] for m in methods}
    known = [v for line in values.values() for v in line if math.isfinite(v)]
    if not known:
        return ""
    ticks = _ticks(min(known), max(known))
    left, top, bottom, height = 44, 12, 28, 280
    right = WIDTH - 16

    def x(k: int) -> float:
        return left + (right - left) * (k + 0.5) / len(tables)

    def y(v: float) -> float:
        return top + (height - top - bottom) * (ticks[-1] - v) / (ticks[-1] - ticks[0])

    parts = [_line(left, y(t), right, y(t), "grid") + _text(left - 6, y(t) + 4, f"{t:g}", "end") for t in ticks]
    parts += [_text(x(k), height - 8, t.task, "middle") for k, t in enumerate(tables)]
    for m, line in values.items():
        points = [(x(k), y(v)) for k, v in enumerate(line) if math.isfinite(v)]
        name = method_class(m, networks)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points)
        parts.append(f'<g class="{name}"><title>{escape(m)}</title><polyline points="{path}"/>{dots}</g>')
    return _svg(height, f"Mean PSNR in dB, {tables[0].data}", parts)


def gains(tables: Sequence[Table], networks: Sequence[str]) -> str:
    """What each network gains over the floor [dB]: the mean with its interval, and each subject as a faint dot."""
    rows = [(t, [(r.model, g) for r in t.rows if r.model in networks and (g := r.headline)]) for t in tables]
    rows = [(t, own) for t, own in rows if own]
    known = [v for _, own in rows for _, g in own for v in (*g.subjects.values(), g.low, g.high) if math.isfinite(v)]
    if not known:
        return ""
    ticks = _ticks(min(0.0, *known), max(0.0, *known))
    left, right, top = 12, WIDTH - 20, 8

    def x(v: float) -> float:
        return left + (right - left) * (v - ticks[0]) / (ticks[-1] - ticks[0])

    parts, y = [], float(top)
    for table, own in rows:
        parts.append(_text(left + 6, y + 12, table.condition, "start"))
        y += 18
        for model, gain in own:
            parts.append(f'<g class="{method_class(model, networks)}">{_dots(model, gain, x, y + 7)}</g>')
            y += 14
        y += 6
    axis = [_line(x(t), top, x(t), y, "zero" if t == 0 else "grid") for t in ticks]
    axis += [_text(x(t), y + 16, f"{t:+g}" if t else "0", "middle") for t in ticks]
    return _svg(int(y) + 24, "Gain in PSNR over the floor in dB", axis + parts)


def _dots(model: str, gain: Gain, x: Callable[[float], float], y: float) -> str:
    """A network's mean, interval and subjects at height y."""
    said = f"{model} {gain.mean:+.2f} dB"
    subjects = "".join(
        f'<circle class="faint" cx="{x(v):.1f}" cy="{y:.1f}" r="2.5"/>'
        for v in gain.subjects.values()
        if math.isfinite(v)
    )
    bar = _line(x(gain.low), y, x(gain.high), y, "bar") if math.isfinite(gain.low) else ""
    mean = f'<circle cx="{x(gain.mean):.1f}" cy="{y:.1f}" r="4"/>' if math.isfinite(gain.mean) else ""
    return f"<title>{escape(said)}</title>{subjects}{bar}{mean}"


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers whose first and last hold the range."""
    span = max(high - low, 1e-3)
    step = 10.0 ** math.floor(math.log10(span / 3))
    step = next(step * k for k in (1, 2, 5, 10) if span / (step * k) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
    return head + "".join(parts) + "</svg>"
