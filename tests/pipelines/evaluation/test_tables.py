from __future__ import annotations

import json
import math

import pytest

from pipelines.evaluation.tables import Score, bootstrap, tables


def score(model, subject, psnr, image="a", apart=False, sam=math.nan, bands=None):
    return Score("med", "clean", subject, image, model, {"psnr": psnr, "sam": sam, "seconds": 1.0}, bands or {}, apart)


def table_of(scores):
    return tables("smoke", scores).tables[0]


def test_several_images_of_a_subject_count_once():
    floor = [score("floor", "one", 30.0, "a"), score("floor", "one", 30.0, "b"), score("floor", "two", 30.0)]
    own = [score("net", "one", 31.0, "a"), score("net", "one", 33.0, "b"), score("net", "two", 30.0)]
    row = table_of(floor + own).rows[1]
    assert row.values["psnr"] == pytest.approx((32 + 30) / 2)
    assert row.gains["psnr"].mean == pytest.approx(1.0)
    assert row.gains["psnr"].subjects == {"one": 2.0, "two": 0.0}


def test_a_network_is_paired_with_the_floor_on_the_images_that_suit_it():
    floor = [score("floor", "a", 20.0, "axis 0"), score("floor", "a", 30.0, "axis 1"), score("floor", "b", 25.0)]
    table = table_of([*floor, score("net", "a", 31.0, "axis 1")])
    row = table.rows[1]
    assert row.gains["psnr"].subjects == {"a": 1.0}
    assert (row.images, table.images) == (1, 3)
    assert any("suits 1 of 3 images" in note for note in table.notes)


def test_the_worst_subject_is_named_and_for_errors_it_is_the_largest():
    scores = [score("floor", s, 30.0, sam=1.0) for s in "ab"]
    scores += [score("net", "a", 31.0, sam=0.5), score("net", "b", 29.0, sam=0.8)]
    gains = table_of(scores).rows[1].gains
    assert (gains["psnr"].worst_subject, gains["psnr"].worst) == ("b", -1.0)
    assert gains["sam"].worst_subject == "b"


def test_the_interval_holds_the_mean_and_is_the_same_every_time():
    values = [0.5, 1.0, 2.5, 1.5, 0.2]
    low, high = bootstrap(values)
    assert low < sum(values) / 5 < high
    assert min(values) <= low
    assert high <= max(values)
    assert bootstrap(values) == (low, high)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    import numpy as np

    rng = np.random.default_rng(5)
    hits = [low <= 0 <= high for low, high in (bootstrap(rng.normal(size=30)) for _ in range(40))]
    assert 0.85 <= np.mean(hits) <= 1.0


def test_a_single_subject_has_no_interval():
    assert all(math.isnan(v) for v in bootstrap([0.7]))
    row = table_of([score("floor", "a", 30.0), score("net", "a", 31.0)]).rows[1]
    assert math.isnan(row.gains["psnr"].low)
    assert row.gains["psnr"].mean == 1.0


def test_means_have_an_interval_over_subjects_and_paired_differences_a_narrower_one():
    subjects = {"a": 20.0, "b": 25.0, "c": 31.0, "d": 28.0}
    scores = [score("floor", s, v) for s, v in subjects.items()]
    scores += [score("net", s, v + 1 + 0.1 * n) for n, (s, v) in enumerate(subjects.items())]
    row = table_of(scores).rows[1]
    low, high = row.intervals["psnr"]
    assert low < row.values["psnr"] < high
    assert row.gains["psnr"].high - row.gains["psnr"].low < 0.1 * (high - low)


def test_equal_differences_have_no_width():
    assert bootstrap([0.7, 0.7, 0.7]) == pytest.approx((0.7, 0.7))


def test_subjects_apart_are_in_the_mean_and_have_a_line_without_them():
    scores = [score("floor", s, 30.0, apart=s == "phantom") for s in ("a", "phantom")]
    scores += [score("net", "a", 32.0), score("net", "phantom", 29.0, apart=True)]
    text = tables("smoke", scores).to_text()
    assert table_of(scores).rows[1].headline.mean == 2.0
    assert "+0.50 dB" in text
    assert "without phantom +2.00 dB" in text


def test_the_worst_band_is_named_with_its_place():
    scores = [score("floor", "x", 30.0, bands={"B02": 30.0, "B08": 28.0})]
    scores += [score("net", "x", 30.0, bands={"B02": 30.5, "B08": 27.9})]
    name, gain = table_of(scores).rows[1].worst_band
    assert name == "x a B08"
    assert gain == pytest.approx(-0.1)


def test_json_is_strict_and_text_lists_every_method():
    scores = [score(m, s, 30.0 if m == "floor" else math.inf) for m in ("nearest", "floor", "net") for s in "ab"]
    result = tables("smoke", scores)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["tables"][0]["models"]["floor"]["mean"]["sam"] is None
    lines = result.to_text().splitlines()
    assert [line.split()[0] for line in lines[4:7]] == ["nearest", "floor", "net"]
