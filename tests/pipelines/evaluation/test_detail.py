from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation.detail import DETAIL, detail_classes, detail_shares

SHAPES = [(1, 40, 44), (3, 30, 32), (1, 16, 18, 14)]


def images(shape, seed=1):
    """(measured, truth): they differ everywhere by 0.1 to 0.3."""
    rng = np.random.default_rng(seed)
    measured = rng.uniform(0.3, 0.6, shape)
    return measured, measured + rng.uniform(0.1, 0.3, shape) * np.where(rng.random(shape[1:]) > 0.5, 1, -1)


def shares(lifted, product, truth):
    return dict(zip(DETAIL, detail_shares(detail_classes(lifted, product, truth)), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_truth_is_all_improvement(shape):
    measured, truth = images(shape)
    assert shares(measured, truth, truth) == {"improvement": 1, "omission": 0, "hallucination": 0}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_measured_is_all_omission(shape):
    measured, truth = images(shape)
    assert shares(measured, measured, truth) == {"improvement": 0, "omission": 1, "hallucination": 0}


@pytest.mark.parametrize("shape", SHAPES)
def test_detail_far_from_both_is_all_hallucination(shape):
    measured, truth = images(shape)
    assert shares(measured, measured - 3 * (truth - measured), truth)["hallucination"] == 1


def test_invented_detail_where_nothing_was_missing_is_hallucination_there_only():
    measured, truth = images((1, 40, 40))
    truth[:, :, :20] = measured[:, :, :20]  # nothing to add on the left
    product = truth.copy()
    product[:, 10:20, 5:15] += 0.2
    classes = detail_classes(measured, product, truth)
    assert (classes[10:20, 5:15] == DETAIL.index("hallucination")).all()
    assert (classes[:10, :20] == -1).all()
    assert (classes[:, 20:] == DETAIL.index("improvement")).all()


def test_half_way_to_the_truth_is_where_omission_ends():
    measured, truth = images((1, 20, 20))
    for share, wanted in ((0.4, "omission"), (0.6, "improvement")):
        assert shares(measured, measured + share * (truth - measured), truth)[wanted] == 1


@pytest.mark.parametrize(
    ("reached", "wanted"),
    [
        # (im, om) -> im + om (1 - e^(-0.8 h)), om + im (1 - e^(-0.8 h)), e^(-0.8 im om), worked out by hand
        (-0.2, "omission"),  # (1.2, 0.2): 1.255, 0.529, 0.825
        (1.2, "improvement"),  # (0.2, 1.2): 0.529, 1.255, 0.825
        (1.5, "hallucination"),  # (0.5, 1.5): 1.326, 1.775, 0.549
    ],
)
def test_detail_beyond_the_truth_is_right_until_it_is_far(reached, wanted):
    measured, truth = images((1, 20, 20))
    assert shares(measured, measured + reached * (truth - measured), truth)[wanted] == 1


def test_what_is_not_a_number_is_not_judged():
    measured, truth = images((1, 12, 12))
    product = truth.copy()
    product[0, :6] = np.nan
    classes = detail_classes(measured, product, truth)
    assert (classes[:6] == -1).all()
    assert (classes[6:] == 0).all()


def test_nothing_to_add_and_nothing_added_has_no_shares():
    measured, _ = images((1, 8, 8))
    assert np.isnan(detail_shares(detail_classes(measured, measured, measured))).all()
