"""What a plan depends on, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipelines import runner
from pipelines.decisions import resolve
from pipelines.grid import Factor, Grid
from pipelines.image import ArraySource, Header
from pipelines.planning import Plan
from pipelines.request import Request
from pipelines.sizing import continued
from pipelines.zarr_image import ZarrImage, write_image
from tests.pipelines.test_runner import _scene, raster, volume


def _plan(header: Header, **asked: object) -> Plan:
    return resolve(header, "same", Request(**asked), cores=2, version="test")  # type: ignore[arg-type]


def _large() -> Header:
    header = volume((512, 512, 512), 1.0, 1.0)
    return replace(header, grid=Grid("zyx", (512, 512, 512), np.diag([1.0, 0.5, 0.5, 1]), header.grid.frame))


@pytest.mark.parametrize("model", ["floor", "lattice-mri"])
def test_workers_never_choose_the_tile(model: str) -> None:
    plans = [_plan(_large(), scale="2x1x1", model=model, workers=n) for n in (1, 2, 4, 8, 32)]
    assert len({(p.shard, p.run_hash) for p in plans}) == 1
    assert all(p.predicted_bytes <= p.memory_bytes for p in plans)
    assert plans[-1].workers < 32
    assert any("workers fit" in w for w in plans[-1].warnings)


def test_json_gives_the_same_plan_back() -> None:
    plan = _plan(raster(bands=3), scale=2)
    assert Plan.from_json(plan.to_json()).run_hash == plan.run_hash


def test_a_blur_no_network_knows_gives_the_floor_and_says_so() -> None:
    header = volume((20, 40, 40), 4.0, 4.0)
    plan = _plan(header, scale="4x1x1", degradation="slice:11")
    assert plan.model == "floor"
    assert any("made with the floor" in w for w in plan.warnings)
    told = _plan(header, scale="4x1x1", degradation="slice:11", model="lattice-mri")
    assert any("untested" in w for w in told.warnings)


@pytest.mark.parametrize(
    ("scale", "model"),
    [
        ("4x1x1", "lattice-mri-1.0"),
        ("5/2x1x1", "lattice-mri-1.0"),
        ("4x2x1", "lattice-mri-1.0"),
        ("2x2x1", "floor"),
        ("9x1x1", "floor"),
        ("1x2x1", "floor"),
    ],
)
def test_the_default_model_suits_the_axes_of_a_volume(scale: str, model: str) -> None:
    assert _plan(volume((20, 40, 40), 4.0, 4.0), scale=scale).model == model


def test_a_reference_that_cuts_the_plane_keeps_the_network() -> None:
    header = volume((20, 40, 40), 4.0, 4.0)
    whole = header.grid.rescaled(Factor((Fraction(4), Fraction(1), Fraction(1))))
    move = np.eye(4)
    move[1:3, 3] = 10, 7.4  # whole samples on one axis, a part of one on the other
    part = Grid("zyx", (80, 25, 30), whole.affine @ move, whole.frame)
    plan = resolve(header, "same", Request(), reference=part, cores=2, version="test")
    assert plan.model == "lattice-mri-1.0"
    assert [place.changed for place in plan.places] == [True, True, True]


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (0, 80, ""),  # all of the input
        (-8, 96, ""),  # more than it
        (8, 80, "1 slice"),  # the slice at the cut loses 12 %, the next 0.02 %
        (8, 64, "2 slices"),
        (9, 64, "3 slices"),  # a slice cut in two; the next loses 0.2 %
    ],
)
def test_slices_that_a_reference_cuts_are_counted(first: int, last: int, said: str) -> None:
    header = volume((20, 40, 40), 4.0, 4.0)
    whole = header.grid.rescaled(Factor((Fraction(4), Fraction(1), Fraction(1))))
    move = np.eye(4)
    move[0, 3] = first
    part = Grid("zyx", (last - first, 40, 40), whole.affine @ move, whole.frame)
    for model in ("floor", "nearest"):
        plan = resolve(header, "same", Request(model=model), reference=part, cores=2, version="test")
        found = [w.split(": ")[1] for w in plan.warnings if "not compared with the product" in w]
        assert found == [said] * bool(said and model == "floor")


def test_pixels_that_a_reference_cuts_are_counted_along_each_axis() -> None:
    whole = raster().grid.rescaled(Factor((Fraction(2), Fraction(2))))
    move = np.eye(3)
    move[0, 2] = 20
    part = Grid("yx", (200, 270), whole.affine @ move, whole.frame)
    plan = resolve(raster(), "same", Request(model="floor"), reference=part, cores=2, version="test")
    assert any(w.endswith(": 4 along y, 2 along x") for w in plan.warnings)


def test_no_network_for_these_axes_is_told_with_the_reason() -> None:
    plan = _plan(volume((20, 40, 40), 4.0, 4.0), scale="2x2x2")
    assert any("lattice-mri-1.0 refines the slice axis (z), and that more than the others" in w for w in plan.warnings)


@pytest.mark.parametrize(
    ("scale", "model"), [("2", "lattice-geo-1.0"), ("4", "lattice-geo-1.0"), ("2x3", "floor"), ("6", "floor")]
)
def test_the_default_model_suits_the_scale_of_an_image(scale: str, model: str) -> None:
    assert _plan(raster(), scale=scale).model == model
    assert _plan(replace(raster(), domain=""), scale=scale).model == "floor"


def test_the_identity_of_an_image_in_zarr_changes_with_its_samples(tmp_path: Path) -> None:
    header = raster((20, 20))
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        write_image(ArraySource(_scene((20, 20), seed), header), header, tmp_path / name)
    a, b, c = (ZarrImage(tmp_path / name).identity for name in "abc")
    assert a == c != b


def test_holes_in_an_array_stay_holes_whatever_its_header_says() -> None:
    samples = _scene((40, 36))
    samples[5:9, 7:12] = np.nan
    product = runner.upscale_array(samples, raster((40, 36)), scale=2, model="floor", noise=0)
    assert np.isnan(product).sum() == 4 * 20


@pytest.mark.parametrize(
    ("slices", "scale", "moved"), [(24, "4", 0.0), (14, "4.7", 0.2), (5, "2.5", 0.5), (7, "2.2", -0.4)]
)
def test_the_plan_says_how_far_the_faces_move(slices: int, scale: str, moved: float) -> None:
    plan = _plan(volume((slices, 8, 8), 4.7, 4.7), scale=f"{scale}x1x1")
    (low, high), *others = plan.faces_moved
    assert low == pytest.approx(high)
    assert low == pytest.approx(moved / 2 * plan.fine.spacing[0])
    assert all(pair == (0.0, 0.0) for pair in others)
    outward = plan.coarse.faces()[0] - plan.fine.faces()[0]
    assert np.abs(outward).max() == pytest.approx(abs(low), abs=1e-9)


def test_precision_is_of_networks_only_and_decides_the_bytes() -> None:
    header = volume((20, 40, 40), 4.0, 4.0)
    plain, half = (_plan(header, scale="4x1x1", precision=p) for p in ("fp32", "bf16"))
    assert plain.run_hash != half.run_hash
    assert _plan(header, scale="4x1x1", precision="bf16", model="floor").precision == "fp32"


def test_a_resumed_run_whose_tiles_pass_the_budget_says_so() -> None:
    before = _plan(_large(), scale="2x1x1", model="floor")
    now = replace(before, shard=(32, 32, 32), memory_bytes=before.predicted_bytes // 4)
    kept = continued(now, before)
    assert kept.shard == before.shard
    assert any("more than the budget" in w for w in kept.warnings)
