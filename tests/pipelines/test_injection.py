"""Detail of a guide: what it is where the answer is known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from scipy import ndimage

from pipelines import interpolation
from pipelines.degradation import Degradation, Profile, axis_matrix
from pipelines.grid import Placement
from pipelines.injection import Detail, Lifting, Relating, Relation, detail, high, local_gains, sharpened

WHOLE = (slice(None), slice(None))


def geometry(coarse: int = 40, scale: int = 2) -> tuple[Degradation, Lifting]:
    place = Placement(coarse, coarse * scale, Fraction(scale), Fraction(scale - 1, 2))
    blur = axis_matrix(place, Profile("wald"))
    lifting = Lifting(*((interpolation.matrix(place, kind),) * 2 for kind in ("cubic", "linear")))
    return Degradation((coarse,) * 2, (coarse * scale,) * 2, (blur, blur)), lifting


def scene(seed: int, side: int = 80) -> np.ndarray:
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 0.8)
    return np.asarray(image / image.std())


def found(truth: np.ndarray, guides: np.ndarray) -> tuple[Detail, Relation, np.ndarray]:
    model, lifting = geometry()
    measured, lowered = model.forward(truth), model.forward(guides)
    relating = Relating(len(guides))
    relating.first(measured, lowered)
    relating.second(measured, lowered, lifting, WHOLE)
    made = detail(measured, lowered, guides, lifting, relating.relation, held=WHOLE)
    return made, relating.relation, lifting.smooth(measured)


def test_a_mixture_of_guides_is_found_again() -> None:
    guides = np.stack([scene(0), scene(1), scene(2)])
    truth = 2.0 * guides[0] - 0.5 * guides[1]
    made, relation, cubic = found(truth, guides)
    assert np.allclose(relation.gains, (2.0, -0.5, 0.0), rtol=0, atol=1e-4)
    left = np.std(cubic + made.added - truth)
    assert left < 0.03 * np.std(cubic - truth)


def test_guides_in_another_order_give_the_same_detail() -> None:
    guides = np.stack([scene(0), scene(1), scene(2)])
    truth = guides[0] * np.linspace(0, 1, 80) + 0.3 * guides[2]
    one, _, _ = found(truth, guides)
    other, _, _ = found(truth, guides[::-1])
    assert np.allclose(one.added, other.added, rtol=0, atol=1e-9)
    assert not np.allclose(one.added, found(truth, guides[:2])[0].added, rtol=0, atol=1e-3)


def test_weights_follow_what_changes_over_the_image() -> None:
    guide = scene(3)
    side = np.where(np.arange(80) < 40, 1.0, -1.0)
    model, _ = geometry()
    own, highs = high(model.forward(guide * side)), high(model.forward(guide[None]))
    power = float(np.mean(highs**2))
    gains = local_gains(own, highs, Relation((0.0,), (power,), (1.0,), (1.0, 0.0, 0.0)))[0]
    assert gains[:, :15].mean() > 0.8
    assert gains[:, -15:].mean() < -0.8


def test_a_blunter_sensor_is_told_by_the_coarse_grid() -> None:
    guide = scene(4)
    blunt = sharpened(guide, (1.0, 0.1, 0.0))  # a little of its own blur
    made, relation, cubic = found(blunt, guide[None])
    assert 0.05 < relation.kernel[1] < 0.2
    plain = made.shared[2]
    assert np.std(cubic + made.added - blunt) < 0.6 * np.std(cubic + plain - blunt)


def test_a_guide_that_says_nothing_adds_nothing() -> None:
    truth = scene(5)
    made, _, cubic = found(truth, np.zeros((1, 80, 80)))
    assert np.abs(made.added).max() <= 1e-9
    assert np.std(cubic - truth) > 0.1


def test_units_of_the_guide_do_not_matter() -> None:
    guides = np.stack([scene(0), scene(1)])
    truth = guides[0] * np.linspace(0.5, 1, 80)
    one, _, _ = found(truth, guides)
    other, _, _ = found(truth, guides * np.array([50.0, 0.02])[:, None, None] + 7.0)
    assert np.allclose(one.added, other.added, rtol=0, atol=1e-6)
