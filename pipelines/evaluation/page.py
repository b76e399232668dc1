"""The page of a suite: tables, curves and pictures in one file that asks for nothing else."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from pipelines.evaluation.charts import curves, gains, method_class
from pipelines.evaluation.documents import DOMAINS, details, overview
from pipelines.evaluation.pictures import Panel, colour_bar
from pipelines.evaluation.tables import PLAIN, Score, Table, Tables, number

PICTURE_BYTES = 3_000_000
"""Of the pictures of a page, as text: with the rest it stays below 5 MB. What does not fit stays in their folder."""

UNSHOWN = ("nearest", "linear")
"""Methods without pictures: between the input and the cubic one there is little to see."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A method's pictures in a panel, as the addresses of images."""

    model: str
    psnr: str
    image: str
    error: str


@dataclass(frozen=True, slots=True)
class ShownCase:
    """The panel of a case: pictures of the input, of each method and of the truth."""

    title: str
    panel: Panel
    input: str
    truth: str
    methods: list[Shown]

    @property
    def size(self) -> int:
        """Characters of its pictures."""
        return len(self.input) + len(self.truth) + sum(len(m.image) + len(m.error) for m in self.methods)


def page(tables: Tables, scores: Sequence[Score], pictures: Path) -> str:
    """The page as HTML. pictures: the folder of `documents.PICTURES`; of a case whose pictures are not there none."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    networks = list(dict.fromkeys(s.model for s in scores if s.model not in PLAIN))
    cases, omitted = _within(_cases(tables, scores, pictures))
    folder = FileSystemLoader(Path(__file__).parent)
    rooms = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return rooms.get_template("page.html").render(
        suite=tables.suite,
        notes=tables.notes,
        domains=[_domain(d, [t for t in tables.tables if t.domain == d], networks) for d in DOMAINS],
        cases=cases,
        omitted=omitted,
        bar=_address(colour_bar()),
        details=details,
    )


def _domain(name: str, tables: list[Table], networks: list[str]) -> dict[str, object]:
    """What the template shows of a domain."""
    by_data: dict[str, list[Table]] = {}
    for table in tables:
        if "Wald" not in table.condition:  # its tasks are other bands, not another size of the same
            by_data.setdefault(table.data, []).append(table)
    return {
        "id": name,
        "title": DOMAINS[name],
        "tables": tables,
        "legend": [(m, method_class(m, networks)) for m in dict.fromkeys(r.model for t in tables for r in t.rows)],
        "overview": overview(tables) if tables else None,
        "curves": [(data, chart) for data, own in by_data.items() if (chart := curves(own, networks))],
        "gains": gains(tables, networks),
    }


def _cases(tables: Tables, scores: Sequence[Score], pictures: Path) -> dict[tuple[str, str], list[ShownCase]]:
    """(domain, condition) -> its cases, one image of each subject first."""
    found: dict[tuple[str, str], dict[str, list[Score]]] = {(t.domain, t.condition): {} for t in tables.tables}
    for score in scores:
        if score.case and (pictures / f"{score.case}.json").is_file():
            found[score.domain, score.condition].setdefault(score.case, []).append(score)
    ordered = {}
    for key, cases in found.items():
        seen: dict[str, int] = {}
        ranked = []
        for own in cases.values():
            rank = seen[own[0].subject] = seen.get(own[0].subject, -1) + 1
            ranked.append((rank, own))
        ordered[key] = [_opened(own, pictures) for _, own in sorted(ranked, key=lambda r: r[0])]
    return ordered


def _within(cases: dict[tuple[str, str], list[ShownCase]]) -> tuple[dict[tuple[str, str], list[ShownCase]], int]:
    """(the first cases of every condition in turn, as many as fit; how many are left out)."""
    kept: dict[tuple[str, str], list[ShownCase]] = {key: [] for key in cases}
    left, omitted = PICTURE_BYTES, 0
    for turn in zip_longest(*cases.values()):
        for key, case in zip(cases, turn, strict=True):
            if case is None:
                continue
            left -= case.size
            if left >= 0:
                kept[key].append(case)
            else:
                omitted += 1
    return kept, omitted


def _opened(scores: list[Score], pictures: Path) -> ShownCase:
    """The panel of a case from its files."""
    one = scores[0]
    panel = Panel(**json.loads((pictures / f"{one.case}.json").read_text(encoding="utf-8")))
    methods = [
        Shown(
            s.model,
            number(s.values["psnr"], "psnr"),
            _address((pictures / f"{s.key}.webp").read_bytes()),
            _address((pictures / f"{s.key}-error.webp").read_bytes()),
        )
        for s in scores
        if s.model not in UNSHOWN
    ]
    shared = [_address((pictures / f"{one.case}-{name}.webp").read_bytes()) for name in ("input", "truth")]
    return ShownCase(f"{one.subject}, {one.image}", panel, shared[0], shared[1], methods)


def _address(picture: bytes) -> str:
    """A picture as an address that holds it."""
    return "data:image/webp;base64," + b64encode(picture).decode()
