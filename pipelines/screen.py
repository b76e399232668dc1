"""What a person sees: progress on stderr, tables and summaries as text."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from pipelines.errors import StoppedError

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

    from pipelines.batch import Outcome
    from pipelines.bench.suite import Outcome as Measured
    from pipelines.card import ModelCard
    from pipelines.costs import Estimate
    from pipelines.planning import Plan
    from pipelines.report import RunReport

LOG_EVERY_S = 10.0
"""Seconds between progress lines where stderr is no terminal."""

NOTES = {"waiting": "for workers of the cluster: none is there yet"}
"""Stages that count nothing: what is said of them."""


def to_stdout(text: object) -> None:
    """A result."""
    _write(text, sys.stdout)


def to_stderr(text: str) -> None:
    """A line for people."""
    _write(text, sys.stderr)


def _write(text: object, stream: TextIO) -> None:
    """A reader that has gone (`| head -1`) is no reason to end the work: what follows is written to nowhere.

    Nor is a full disk under the lines for people; a result that cannot be written is. Raises StoppedError.
    """
    try:
        click.echo(text, stream)
    except OSError as error:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            raise StoppedError(
                what=f"the result cannot be written to stdout ({error.strerror or error})",
                why="what reads it would take a part for all of it",
                fix="free space where stdout goes and run again",
            ) from error


class Screen:
    """Progress: a live bar with tiles, rate and time left on a terminal, plain lines in a log, nothing if quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line for people."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            to_stderr(text)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Progress of one stage."""
        if self._quiet:
            return
        with self._lock:
            if stage in NOTES:
                self.say(f"{stage:<8} {NOTES[stage]}")
            elif self._live:
                self._draw(stage, done, total)
            else:
                self._log(stage, done, total)

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description:<8}"),
                BarColumn(),
                MofNCompleteColumn(),
                _speed_column(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(self._tasks[stage], completed=done, total=total)

    def _log(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        first = stage not in self._last
        if first or done >= total or now - self._last[stage] >= LOG_EVERY_S:
            if not first and done >= total and self._last.get(f"{stage} end"):
                return
            self._last[stage] = now
            if done >= total:
                self._last[f"{stage} end"] = now
            if first:
                self._begun[stage] = (now, done)
            if not first or total == done:
                to_stderr(f"{stage:<8} {done} of {total}{self._left(stage, now, done, total)}")

    def _left(self, stage: str, now: float, done: int, total: int) -> str:
        """The time left of a stage at its speed so far, in words."""
        since, begun = self._begun[stage]
        if not begun < done < total:
            return ""
        seconds = (now - since) / (done - begun) * (total - done)
        return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"


def _speed_column() -> ProgressColumn:
    """Tiles (or samples) per second."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2g}/s" if task.speed else "")

    return Speed()


def in_axes(values: Sequence[float | int]) -> str:
    """'24 x 320 x 320' or '5 x 0.7 x 0.7'."""
    return " x ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def describe_training(card: ModelCard) -> list[str]:
    """What a training reached and what it cost."""
    told, reached = card.training, card.training.get("reached", {})
    waited = f"{100 * told['waiting_share']:.1f} % of it waiting for data"
    lines = [f"time     {told['seconds']} s for {told['steps']} steps, {waited}"]
    if "over_cubic_db" in reached:
        lines.append(
            f"held out {reached['over_cubic_db']:+.2f} dB over cubic, {reached['gain_db']:+.2f} dB over the floor; "
            f"without projection {reached['unprojected_over_cubic_db']:+.2f} dB over cubic"
        )
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; numbers to the right."""
    cells = [list(head), *[list(r) for r in rows]]
    widths = [max(len(row[c]) for row in cells) for c in range(len(head))]
    right = [all(_is_number(row[c]) for row in cells[1:]) for c in range(len(head))]
    lines = [
        "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"
    return True


def describe_models(cards: Sequence[ModelCard]) -> str:
    """One line a model: what for, what it costs, what it sees, what it gains."""
    from pipelines import networks
    from pipelines.request import bytes_text

    rows = [
        [
            card.id if card.network else card.name,
            card.task,
            card.domain,
            card.scale,
            bytes_text(card.weights_bytes) if card.weights_bytes else "-",
            f"{card.parameters}" if card.network else "-",
            f"{networks.kmac_per_sample(card):.3g}" if card.network else "-",
            in_axes(card.receptive_field) if card.network else "-",
            card.sha256[:12] or "-",
            card.licence,
            next((f"{gain:+.2f} dB, {case}" for case, gain in card.figures.get("mean", {}).items()), "-"),
            card.trained_on,
        ]
        for card in cards
    ]
    head = ["model", "task", "domain", "scale", "weights", "parameters", "kMAC/sample", "sees", "sha256", "licence"]
    return table([*head, "over the floor", "trained on"], rows)


def describe_plan(plan: Plan, cost: Estimate | None = None) -> str:
    """The plan in a few lines: the first three, or with its cost all of them."""
    from pipelines.request import bytes_text

    unit = plan.coarse.frame.unit
    kind = f"3-D {plan.modality}".strip() if plan.coarse.ndim == 3 else f"{len(plan.channels)}-band raster"
    scale = in_axes(plan.orientation.axes(plan.scale))
    specs = sorted({_spec_text(plan.coarse.axes, channel.spec) for channel in plan.channels})
    lines = [
        f"input    {kind}  {in_axes(plan.coarse.shape)}  {in_axes(plan.coarse.spacing)} {unit}",
        f"output   {in_axes(plan.product.shape)}  {in_axes(plan.product.spacing)} {unit}  scale {scale}",
        f"model    {plan.model}  degradation {'; '.join(specs)}  noise {plan.noise}",
    ]
    if cost is not None:
        pairs = zip(plan.coarse.axes, plan.axes_named, strict=True)
        named = ", ".join(a if a == name else f"{a} = {name}" for a, name in pairs)
        tiles, kept = plan.tile_count, "kept" if plan.work_kept else "removed at the end"
        counts = {"worker": plan.workers, "reader": plan.readers, "writer": plan.writers}
        staff = ", ".join(_counted(count, name) for name, count in counts.items())
        origins = [_fact_text(n, f) for n, f in plan.facts.items() if f["value"] is not None]
        lines += [
            f"axes     {named}",
            f"faces    {_faces(plan)}",
            f"facts    {'; '.join(origins) or 'none'}",
            f"tiles    {tiles} of {in_axes(plan.shard)} fine samples, {plan.recomputed:.0%} more at their edges",
            f"engine   {staff}, device {plan.device}, {plan.precision}{', mirrored' * plan.ensemble}",
            f"network  {_work(cost)}",
            f"time     {_time(cost)}",
            f"memory   {bytes_text(plan.predicted_bytes)} of {bytes_text(plan.memory_bytes)}",
            f"work     {plan.work or '-'}  up to {bytes_text(plan.work_bytes)}, {kept}",
            f"product  {plan.output or '-'}  {bytes_text(plan.output_bytes)} uncompressed",
            f"hash     {plan.run_hash}",
        ]
    lines += [f"warning  {w}" for w in plan.warnings]
    return "\n".join(lines)


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _work(cost: Estimate) -> str:
    if not cost.multiply_adds:
        return "none"
    return f"{cost.multiply_adds / 1e9:,.0f} GMAC (multiply-adds), {cost.repeated:.0%} more than without tiles"


def _time(cost: Estimate) -> str:
    if cost.seconds is None:
        return "unknown until a first run on this device"
    told = "as the last run here" if cost.measured else "not yet measured on this machine"
    size, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if cost.seconds >= 1.5 * s or s == 1)
    return f"about {cost.seconds / size:.2g} {unit} on {_counted(cost.cores, 'idle core')} (estimated, {told})"


def _faces(plan: Plan) -> str:
    """Where the field of view of the product differs from the input's."""
    unit = plan.coarse.frame.unit
    moved = [
        f"{axis} {_beyond(low, unit)} and {_beyond(high, unit)}"
        for axis, (low, high) in zip(plan.coarse.axes, plan.faces_moved, strict=True)
        if low or high
    ]
    return f"against the input's: {', '.join(moved)}" if moved else "those of the input"


def _beyond(distance: float, unit: str) -> str:
    return "equal" if not distance else f"{abs(distance):.3g} {unit} {'beyond' if distance > 0 else 'inside'}"


def _fact_text(name: str, fact: dict[str, Any]) -> str:
    return f"{name} {fact['value']}{' ' if fact['unit'] else ''}{fact['unit']} ({fact['origin']})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _spec_text(axes: str, spec: Sequence[str]) -> str:
    return ", ".join(f"{axis} {text}" for axis, text in zip(axes, spec, strict=True) if text != "same")


def describe_report(report: RunReport, told: Sequence[str] = ()) -> str:
    """The last lines of a run, with the warnings that have not been told yet."""
    from pipelines.projection import EXPLAINED
    from pipelines.request import bytes_text

    total = report.seconds.get("total", sum(report.seconds.values()))
    worst = max((c.over_noise for c in report.channels if c.over_noise is not None), default=0.0)
    if report.consistency_rmse is None:
        explained = "replicated, nothing to compare" if report.model == "nearest" else "nothing to compare"
    elif report.consistency_over_noise is None:
        explained = f"residual {report.consistency_rmse:.3g} in input units (noise taken as 0)"
    elif worst > EXPLAINED:
        explained = f"differs from the input: residual up to {worst:.2f} of its noise once degraded"
    else:
        explained = f"explains the input: residual {report.consistency_over_noise:.2f} of its noise"
    lines = [f"done     {total:.0f} s  {bytes_text(report.peak_bytes)}  {explained}"]
    if report.clipped:
        lines.append(f"clipped  {report.clipped:g} samples lay outside the range of {report.dtype}")
    lines.append(f"product  {report.output}  by {report.model}")
    lines += [f"warning  {w}" for w in report.warnings if w not in told]
    return "\n".join(lines)


def describe_batch(outcomes: Sequence[Outcome], asked: int) -> str:
    """A row per job, then how many there are of each state."""
    rows = [
        [
            Path(o.output).name,
            o.state,
            o.model or "-",
            "-" if o.seconds is None else f"{o.seconds:.0f}",
            _ratio(o.consistency_over_noise),
            o.error,
        ]
        for o in outcomes
    ]
    states = [f"{sum(o.state == s for o in outcomes)} {s}" for s in ("made", "kept", "failed")]
    if len(outcomes) < asked:
        states.append(f"{asked - len(outcomes)} not begun")
    return (
        table(["output", "state", "model", "seconds", "over noise", "error"], rows) + f"\ndone     {', '.join(states)}"
    )


def describe_bench(found: Measured) -> str:
    """The goals as a table, what to know of them, the machine."""
    head = ["bench", "goal", "measured", "asked", ""]
    rows = [[row.bench, row.what, row.measured, row.goal, row.state] for row in found.rows]
    states = [f"{sum(row.state == s for row in found.rows)} {s}" for s in ("met", "MISSED", "not run")]
    seen = [f"{row.bench}: {row.what.split(';')[0]}: {row.why}" for row in found.rows if row.why]
    how = "quick: small images, so ratios lean towards what is fixed per run" if found.quick else "full"
    return "\n".join(
        [
            _drawn(head, rows),
            "",
            *seen,
            "",
            *[f"{name:<9} {text}" for name, text in found.machine.items()],
            f"{'session':<9} {how}, {found.seconds:.0f} s; {', '.join(states)}",
        ]
    )


def _drawn(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with lines that wraps on a terminal, plain text elsewhere."""
    if not sys.stdout.isatty():
        return table(head, rows)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"met": "green", "MISSED": "red"}
    drawn = Table(*head)
    for row in rows:
        drawn.add_row(*[Text(cell, colours.get(cell, "")) for cell in row])
    console = Console()
    with console.capture() as kept:
        console.print(drawn)
    return kept.get().rstrip()


def describe_header(found: dict[str, Any]) -> str:
    """The result of `inspect` in a few lines."""
    names = [c["name"] + ("" if c["kind"] == "image" else f" ({c['kind']})") for c in found["channels"]]
    named = list(found["axes_named"])
    lines = [
        f"kind     {found['kind']}  {found['dtype']}",
        f"grid     {in_axes(found['shape'])}  {in_axes(found['spacing'])} {found['unit']}",
        f"axes     {found['axes']}" + (f" ({', '.join(named)})" if named != list(found["axes"]) else ""),
        f"world    {found['affine_world'] or '-'}",
        *[f"         {'  '.join(f'{v:.8g}' for v in row)}" for row in found["affine"]],
        f"channels {', '.join(names)}",
        f"blur     {found['degradation']}",
    ]
    lines += [_fact_text(f"{n:<8}", f) for n, f in found["facts"].items() if f["value"] is not None]
    if t := found.get("slice_thickness"):
        ways = " and ".join(f"{mm:.3g}" for mm in t["by_axis_mm"])
        lines.append(
            f"slices   {t['mm']:.3g} mm thick by the samples (90 %: {t['low_mm']:.3g} to {t['high_mm']:.3g}; "
            f"in-plane axes alone: {ways})"
        )
    for p in found.get("pixels", []):
        lines.append(
            f"pixels   {p['channel']}: valid {p['valid_fraction']:.4f}, range {_number(p['minimum'])} to "
            f"{_number(p['maximum'])}, noise {p['noise_sigma']:.4g} ({p['noise_method']})"
        )
    lines += [f"problem  {p}" for p in found["problems"]]
    return "\n".join(lines)


PARTS_SHOWN = 40


def describe_check(found: dict[str, Any]) -> str:
    """The result of `verify`: its parts (the worst, where they are many), then one line per channel."""
    parts = [part for part in found["parts"] if part["samples"]]
    rest = len(parts) - PARTS_SHOWN
    if rest > 0:
        parts = sorted(parts, key=lambda part: -(part["over_noise"] or part["rmse"]))[:PARTS_SHOWN]
    rows = [[p["channel"], _place(found, p), f"{p['rmse']:.4g}", _ratio(p["over_noise"])] for p in parts]
    lines = [table(["channel", "part", "rmse", "over noise"], rows)]
    if rest > 0:
        lines.append(f"the worst {PARTS_SHOWN} of {PARTS_SHOWN + rest} parts; --json gives all")
    for c in found["channels"]:
        beside = c["beside_holes"]
        if c["samples"]:
            lines.append(
                f"{c['channel']}: rmse {c['rmse']:.4g} of {c['samples']} samples compared, {_ratio(c['over_noise'])} "
                f"of the noise ({c['noise_sigma']:.4g}), largest {c['maximum']:.4g}, degradation {c['degradation']}"
            )
        if beside["samples"]:
            lines.append(f"{c['channel']}: rmse {beside['rmse']:.4g} at {beside['samples']} samples beside holes")
    lines.append(f"{'explains' if found['explained'] else 'does not explain'} the input")
    return "\n".join(lines)


def _place(found: dict[str, Any], part: dict[str, Any]) -> str:
    """'z 12' of a volume, 'y 0-255, x 256-511' of an image: along the input's axes."""
    ranges = list(zip(found["axes"], part["start"], part["stop"], strict=True))
    if len(ranges) == 3:
        ranges = [r for r in ranges if r[2] - r[1] == 1][:1] or ranges
    return ", ".join(f"{a} {low}" if high - low == 1 else f"{a} {low}-{high - 1}" for a, low, high in ranges)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
