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


def test_equal_differences_have_no_width():
    assert bootstrap([0.7, 0.7, 0.7]) == pytest.approx((0.7, 0.7))


def test_subjects_apart_are_in_the_mean_and_have_a_line_without_them():
    scores = [score("floor", s, 30.0, apart=s == "phantom") for s in ("a", "phantom")]
    scores += [score("net", "a", 32.0), score("net", "phantom", 29.0, apart=True)]
    text = tables("smoke", scores).to_text()
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
