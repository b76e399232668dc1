"""The outcome of a suite as files: scores.csv, tables.md, tables.json and page.html."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import ExportError
from pipelines.evaluation.ledger import PICTURES
from pipelines.evaluation.metrics import IMAGERY, MEDICAL
from pipelines.evaluation.tables import PLAIN, Gain, Row, Score, Table, Tables, number, span

PAGE = "page.html"


def write_documents(folder: Path, tables: Tables, scores: Sequence[Score]) -> None:
    """Write them all, each in one go. Raises ExportError."""
    from pipelines.evaluation.page import page

    texts = {
        "scores.csv": as_csv(scores),
        "tables.md": as_markdown(tables),
        "tables.json": json.dumps(tables.to_json(), indent=1, allow_nan=False) + "\n",
        PAGE: page(tables, scores, folder / PICTURES),
    }
    for name, text in texts.items():
        try:
            part = folder / f".{name}.part"
            part.write_text(text, encoding="utf-8", newline="")
            part.replace(folder / name)
        except OSError as error:
            raise ExportError(
                what=f"{name} cannot be written ({error.strerror or error})",
                why="the scores are kept",
                fix="free space and run the same call again",
            ) from error


def as_csv(scores: Sequence[Score]) -> str:
    """One line a score, every metric a column, empty where it does not apply."""
    metrics = [*dict.fromkeys((*MEDICAL, *IMAGERY)), "seconds"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["domain", "condition", "subject", "image", "model", *metrics])
    for s in scores:
        values = [f"{s.values[m]:.8g}" if s.values.get(m, float("nan")) == s.values.get(m) else "" for m in metrics]
        writer.writerow([s.domain, s.condition, s.subject, s.image, s.model, *values])
    return text.getvalue()


def as_markdown(tables: Tables) -> str:
    """An overview of each domain, then a table of all metrics for each condition."""
    parts = [f"# Suite {tables.suite}"]
    for domain, title in DOMAINS.items():
        own = [t for t in tables.tables if t.domain == domain]
        if own:
            parts += [f"## {title}", _markdown(*overview(own))]
            parts += [f"### {t.condition}\n\n{t.counts}\n\n{_markdown(*details(t))}\n\n{_listed(t.notes)}" for t in own]
    if tables.notes:
        parts.append("## Notes\n\n" + _listed(tables.notes))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


DOMAINS = {"med": "Slices of volumes", "geo": "Imagery"}
"""domain -> heading."""


def overview(tables: Sequence[Table]) -> tuple[list[str], list[list[str]]]:
    """(head, rows): PSNR [dB] of each method under each condition, and what each network gains over the floor."""
    methods = list(dict.fromkeys(row.model for t in tables for row in t.rows))
    networks = [m for m in methods if m not in PLAIN]
    apart = any(row.rest for t in tables for row in t.rows)
    head = ["PSNR [dB]", *methods, *(f"{m} over the floor{', CT apart' if apart else ''}" for m in networks)]
    lines = []
    for table in tables:
        rows = {row.model: row for row in table.rows}
        cells = [_psnr(rows[m], table) if m in rows else "-" for m in methods]
        gains = [gain_text(rows[m].headline if m in rows else None) for m in networks]
        lines.append([table.condition, *cells, *gains])
    return head, lines


def _psnr(row: Row, table: Table) -> str:
    """Its mean PSNR, with the number of images where they are not all."""
    few = f" ({row.images} images)" if row.images < table.images else ""
    return number(row.values["psnr"], "psnr") + few


def details(table: Table) -> tuple[list[str], list[list[str]]]:
    """(head, rows): every metric of every method, with the interval of PSNR's mean and the difference to the floor."""
    units = {"psnr": " [dB]", "sre": " [dB]", "sam": " [°]", "seconds": ""}
    units |= dict.fromkeys(("improvement", "omission", "hallucination"), " [%]")
    names = {
        "psnr": "PSNR",
        "ssim": "SSIM",
        "hfen": "HFEN",
        "rmse": "RMSE",
        "sre": "SRE",
        "sam": "SAM",
        "ergas": "ERGAS",
    }
    columns = table.columns
    head = ["method", *(names.get(c, c) + units.get(c, "") for c in columns), "over the floor [dB]", "95 %", "worst"]
    lines = []
    for row in table.rows:
        gain = row.gains.get("psnr")
        last = (
            [f"{gain.mean:+.2f}", span(gain.low, gain.high), f"{gain.worst:+.2f} {gain.worst_subject}"]
            if gain
            else 3 * [""]
        )
        lines.append([row.model, *(number(row.values[c], c) for c in columns), *last])
    return head, lines


def gain_text(gain: Gain | None) -> str:
    """'+2.01 (+1.80 .. +2.30)', '-' for none."""
    if gain is None:
        return "-"
    return f"{gain.mean:+.2f}" + (f" ({span(gain.low, gain.high)})" if gain.low == gain.low else "")


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _listed(notes: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)
