"""A network that meets what it was not trained on, or contradicts the input, is told of and with --strict left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.card import find
from pipelines.likeness import WORDS, contradicts, ranges, statistics, unlike
from tests.pipelines.files import smooth, write_raster

Run = Callable[..., tuple[int, str, str]]

SCENE = 500 + 200 * smooth((90, 80)) + np.random.default_rng(2).normal(0, 3, (90, 80))


@given(gain=st.floats(0.01, 100), offset=st.floats(-1e4, 1e4))
def test_the_numbers_do_not_depend_on_units(gain: float, offset: float) -> None:
    valid = np.ones(SCENE.shape, bool)
    plain = statistics(SCENE, valid, np.ptp(SCENE))
    moved = statistics(gain * SCENE + offset, valid, gain * np.ptp(SCENE))
    assert set(plain) == set(WORDS)
    assert all(abs(moved[name] - plain[name]) <= 1e-3 * max(1, plain[name]) for name in plain)


def test_what_was_met_in_training_is_like_it_and_noise_is_not() -> None:
    valid = np.ones(SCENE.shape, bool)
    smoother = [smooth((90, 80)) * k for k in (1.0, 2.0)]
    known = ranges([statistics(s, valid, np.ptp(s)) for s in smoother])
    assert unlike(statistics(smoother[0], valid, np.ptp(smoother[0])), known) == ""
    noise = np.random.default_rng(3).normal(size=SCENE.shape)
    assert "second differences" in unlike(statistics(noise, valid, np.ptp(noise)), known)
    assert statistics(SCENE, np.zeros(SCENE.shape, bool), 1.0) == {}


def test_noise_excuses_a_contradiction() -> None:
    assert contradicts(2.0, noise_sigma=0.0, scale=100, most=0.01)
    assert not contradicts(2.0, noise_sigma=5.0, scale=100, most=0.01)
    assert not contradicts(2.0, noise_sigma=0.0, scale=100, most=0.0)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"typical": {"roughness": [5.0, 6.0]}}, "is unlike what the network was trained on"),
        ({"contradiction": 1e-9}, "the network contradicts the input"),
    ],
)
def test_a_network_that_does_not_suit_is_told_of_and_left_out_if_strict(
    run: Run, tmp_path: Path, told: dict[str, object], said: str
) -> None:
    shipped = find("lattice-geo")
    assert shipped.weights
    (tmp_path / shipped.weights.name).write_bytes(shipped.weights.read_bytes())
    replace(shipped, name="odd", **told).write(tmp_path / f"odd-{shipped.version}.json")  # type: ignore[arg-type]  # any field
    model = tmp_path / f"odd-{shipped.version}.json"
    image = write_raster(tmp_path / "scene.tif", SCENE[None].astype(np.float32))
    products = {}
    for name, more in (("loose", ()), ("strict", ("--strict",)), ("floor", ())):
        products[name] = tmp_path / f"{name}.tif"
        asked = "floor" if name == "floor" else model
        code, _, err = run("upscale", image, products[name], "--model", asked, "--noise", 0, *more)
        assert code == 0
        assert (said in err) == (name != "floor")
        assert ("made with the floor" in err) == (name == "strict")
    import rasterio

    pixels = {name: rasterio.open(path).read() for name, path in products.items()}
    assert np.array_equal(pixels["strict"], pixels["floor"])
    assert not np.array_equal(pixels["loose"], pixels["floor"])
