from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from pipelines.evaluation import page as pages
from pipelines.evaluation import suite
from pipelines.evaluation.charts import curves, gains
from pipelines.evaluation.documents import as_csv, as_markdown
from pipelines.evaluation.tables import Score, tables
from tests.pipelines.evaluation.test_suite import direct, write_scene, write_volume

VOID = {"meta", "img", "br", "circle", "line", "polyline"}


def score(model, subject, psnr, condition="slices 4|0 mm, clean", task="4|0 mm"):
    values = {"psnr": psnr, "ssim": 0.9, "seconds": 1.0}
    return Score("med", condition, subject, "im<g>", model, values, {}, task=task, data="clean")


@pytest.fixture
def scores():
    made = []
    for task, drop in (("4|0 mm", 0.0), ("5|0 mm", 2.0)):
        for model, gain in (("cubic", -1.0), ("floor", 0.0), ("net", 1.0)):
            for subject, value in (("a", 30.0), ("b", 33.0)):
                made.append(score(model, subject, value + gain - drop, f"slices {task}, clean", task))
    return made


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """An evaluation of two volumes and a scene in colours, with its folder."""
    root = tmp_path_factory.mktemp("own")
    write_volume(root / "data" / "one.nii.gz", 1)
    write_volume(root / "data" / "two.nii.gz", 2)
    write_scene(root / "data" / "hill" / "scene.tif", 3, bands=3)
    suite.evaluate("smoke", root / "data", ["floor"], out=root / "out", restore=direct)
    return root / "out"


class Reader(HTMLParser):
    """Checks that elements are closed in order and collects addresses and ids."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids, self.targets = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "src" or (name == "href" and not value.startswith("#")):
                self.addresses.append(value)
            elif name == "href":
                self.targets.append(value[1:])
            elif name == "id":
                self.ids.add(value)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing_else(results):
    text = (results / "page.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    assert len(reader.addresses) > 20
    assert all(a.startswith("data:image/webp;base64,") for a in reader.addresses)
    assert reader.targets
    assert set(reader.targets) <= reader.ids
    assert not re.search(r"https?://|<script|@import|url\(", text)


def test_every_case_shows_input_cubic_floor_truth_and_errors(results):
    text = (results / "page.html").read_text()
    cases = len({json.loads(line)["case"] for line in (results / "scores.jsonl").read_text().splitlines()})
    for alt in ("input", "cubic", "error of cubic", "floor", "error of floor", "truth"):
        assert text.count(f'alt="{alt}"') == cases


def test_pictures_show_the_coarse_samples_as_they_are_and_products_at_full_size(results):
    from PIL import Image

    for path in (results / "pictures").glob("*.json"):
        panel = json.loads(path.read_text())
        sizes = []
        for name in ("input", "truth"):
            with Image.open(results / "pictures" / f"{panel['case']}-{name}.webp") as picture:
                sizes.append(picture.size)
        assert sizes[1] == (panel["width"], panel["height"])
        assert sizes[0][1] < sizes[1][1]


def test_pictures_that_do_not_fit_are_counted(results, monkeypatch):
    monkeypatch.setattr(pages, "PICTURE_BYTES", 40_000)
    scores = [Score(**json.loads(line)) for line in (results / "scores.jsonl").read_text().splitlines()]
    text = pages.page(tables("smoke", scores), scores, results / "pictures")
    shown = text.count('alt="truth"')
    assert 0 < shown < len({s.case for s in scores})
    assert f"The pictures of {len({s.case for s in scores}) - shown} more cases" in text
    assert sum(len(a) for a in re.findall(r'data:image/webp[^"]*', text)) < 80_000


def test_the_table_of_scores_has_a_line_each_and_blanks_where_a_metric_says_nothing(results):
    rows = list(csv.DictReader((results / "scores.csv").read_text().splitlines()))
    assert len(rows) == len((results / "scores.jsonl").read_text().splitlines())
    assert all(float(r["psnr"]) > 5 for r in rows)
    assert {bool(r["sam"]) for r in rows if r["domain"] == "geo"} == {True}
    assert {r["sam"] for r in rows if r["domain"] == "med"} == {""}


def test_names_of_files_are_text_in_every_document(scores):
    assert "im<g>" in as_csv(scores)
    page = pages.page(tables("x", scores, ["left out: <b>.nii"]), scores, pages.Path("nowhere"))
    assert "&lt;b&gt;.nii" in page
    assert "<b>.nii" not in page


def test_markdown_has_an_overview_with_the_gain_and_its_interval(scores):
    text = as_markdown(tables("med", scores))
    assert "| slices 4\\|0 mm, clean | 30.50 | 31.50 | 32.50 | +1.00 (+1.00 .. +1.00) |" in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert widths[0] == widths[1] == widths[2]


def test_curves_are_drawings_with_a_line_a_method(scores):
    made = tables("med", scores)
    drawing = ElementTree.fromstring(curves(made.tables, ["net"]))
    lines = {g.find("title").text: g.find("polyline").get("points").split() for g in drawing.findall("g")}
    assert list(lines) == ["cubic", "floor", "net"]
    heights = {m: [float(p.split(",")[1]) for p in points] for m, points in lines.items()}
    assert np.all(np.diff(list(heights.values()), axis=0) < 0)  # better is higher
    assert all(first < second for first, second in heights.values())  # thicker slices are worse
    assert curves(made.tables[:1], ["net"]) == ""


def test_gains_have_a_dot_a_subject_and_a_mean(scores):
    drawing = ElementTree.fromstring(gains(tables("med", scores).tables, ["net"]))
    assert len(drawing.findall("g")) == 2
    assert len(drawing.findall("g/circle")) == 2 * 3
    assert gains(tables("med", [s for s in scores if s.model != "net"]).tables, []) == ""
