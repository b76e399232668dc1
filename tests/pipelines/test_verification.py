"""Residuals per slice and square, in the input's own axes, with what lies beside holes counted apart."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.degradation import Degradation, Profile
from pipelines.grid import Box, Factor, Frame, Grid, Orientation
from pipelines.image import ArraySource, Channel, Header
from pipelines.verification import verify
from tests.pipelines.files import smooth

ORIENTATIONS = [
    Orientation((0, 1, 2), (False, False, False)),
    Orientation((0, 1, 2), (True, False, True)),
    Orientation((2, 0, 1), (False, True, True)),
    Orientation((1, 2, 0), (True, True, False)),
]


def volume() -> tuple[Header, Grid, Degradation, NDArray[np.float64]]:
    grid = Grid("zyx", (9, 20, 24), np.diag([4.0, 1.0, 1.0, 1.0]), Frame("mm", "patient", "x"))
    fine = grid.rescaled(Factor((Fraction(4), Fraction(1), Fraction(1))))
    profiles = (Profile.parse("slice:4"), Profile.parse("block"), Profile.parse("block"))
    header = Header(grid, (Channel("image", profiles),), dtype="float32", slice_axis=0)
    return header, fine, Degradation.between(grid, fine, profiles), smooth(fine.shape)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_one_wrong_slice_is_found_under_its_number_whatever_the_axes_of_the_product(orientation: Orientation) -> None:
    header, fine, model, truth = volume()
    observed = model.forward(truth)
    observed[2] += 7.0
    product = ArraySource(orientation.array(truth), replace(header, grid=fine).turned(orientation))
    checked = verify(product, ArraySource(observed, header), [model], orientation=orientation)
    rms = {box.start[0]: checked.inner.of(0, part).rms for part, box in checked.parts()}
    assert sorted(rms) == list(range(9))
    assert rms.pop(2) == pytest.approx(7.0, abs=1e-3)
    assert max(rms.values()) < 1e-3
    assert checked.inner.total(0).count == observed.size


@pytest.mark.parametrize("orientation", ORIENTATIONS[1:3])
def test_the_size_of_the_slabs_changes_no_part(orientation: Orientation, monkeypatch: pytest.MonkeyPatch) -> None:
    header, fine, model, truth = volume()
    observed = model.forward(truth) + np.random.default_rng(0).normal(size=model.coarse_shape)
    product = ArraySource(orientation.array(truth), replace(header, grid=fine).turned(orientation))
    results = []
    for samples in (10**9, 1):
        monkeypatch.setattr("pipelines.verification.SLAB_SAMPLES", samples)
        results.append(verify(product, ArraySource(observed, header), [model], orientation=orientation))
    for part, _ in results[0].parts():
        one, other = (r.inner.of(0, part) for r in results)
        assert one.count == other.count == 20 * 24
        assert one.rms == pytest.approx(other.rms, rel=1e-12)
        assert one.maximum == pytest.approx(other.maximum, rel=1e-12)


def test_samples_beside_a_hole_are_counted_apart() -> None:
    grid = Grid("yx", (40, 50), np.diag([-10.0, 10.0, 1.0]), Frame("m", "projected", "EPSG:32632"))
    fine = grid.rescaled(Factor((Fraction(2), Fraction(2))))
    profiles = (Profile.parse("mtf:0.3"),) * 2
    header = Header(grid, (Channel("B1", profiles),), dtype="float32", may_have_invalid=True)
    model = Degradation.between(grid, fine, profiles)
    truth = smooth(fine.shape)
    observed = model.forward(truth)
    observed[10:14, 20:25] = np.nan
    holed = truth.copy()
    holed[20:28, 40:50] = np.nan
    checked = verify(ArraySource(holed, replace(header, grid=fine)), ArraySource(observed, header), [model])
    inner, beside = checked.inner.total(0), checked.beside.total(0)
    assert inner.rms < 1e-4
    assert beside.rms > 100 * inner.rms  # they see a part of their surroundings only
    assert 0 < beside.count < 200
    assert inner.count + beside.count <= 40 * 50 - 20


def test_an_image_is_counted_in_squares_that_cover_it_once() -> None:
    grid = Grid("yx", (300, 520), np.diag([-10.0, 10.0, 1.0]), Frame("m", "projected", "EPSG:32632"))
    fine = grid.rescaled(Factor((Fraction(2), Fraction(2))))
    profiles = (Profile.parse("block"),) * 2
    header = Header(grid, (Channel("B1", profiles),), dtype="float32")
    model = Degradation.between(grid, fine, profiles)
    truth = smooth(fine.shape)
    checked = verify(ArraySource(truth, replace(header, grid=fine)), ArraySource(model.forward(truth), header), [model])
    parts = list(checked.parts())
    assert [box for _, box in parts][:2] == [Box((0, 0), (256, 256)), Box((0, 256), (256, 512))]
    counts = [checked.inner.of(0, part).count for part, _ in parts]
    assert counts == [int(np.prod(box.shape)) for _, box in parts]
    assert sum(counts) == 300 * 520


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 0.0), (1.0, 0.78)])
def test_the_correlation_of_the_residual_tells_noise_from_structure(smoothing: float, expected: float) -> None:
    header, fine, model, truth = volume()
    noise = np.random.default_rng(1).normal(size=model.coarse_shape)
    noise = ndimage.gaussian_filter(noise, (0, smoothing, smoothing)) if smoothing else noise
    product = ArraySource(truth.astype(np.float64), replace(header, grid=fine))
    checked = verify(product, ArraySource(model.forward(truth) + 10 * noise, header), [model])
    found = checked.inner.correlation(0)
    assert found == pytest.approx(expected, abs=0.06)


def test_a_residual_without_neighbours_has_no_correlation() -> None:
    grid = Grid("yx", (30, 1), np.diag([-10.0, 10.0, 1.0]), Frame("m", "projected", "EPSG:32632"))
    fine = grid.rescaled(Factor((Fraction(2), Fraction(1))))
    header = Header(grid, (Channel("B1", (Profile.parse("block"),) * 2),), dtype="float32")
    model = header.degradation(fine)
    product = ArraySource(smooth(fine.shape), replace(header, grid=fine))
    checked = verify(product, ArraySource(np.zeros(grid.shape), header), [model])
    assert checked.inner.total(0).rms > 0
    assert checked.inner.correlation(0) is None
