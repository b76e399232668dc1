"""The slice thickness that a volume tells: how far off, how sure, and where it says nothing."""

from __future__ import annotations

import csv
import json
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pipelines import formats, thickness
from pipelines.degradation import Profile, along, axis_matrix
from pipelines.errors import InputError, UsageError
from pipelines.grid import Box, Placement, decimal_fraction
from pipelines.job import Job
from pipelines.request import Request
from pipelines.runner import planned
from tests.pipelines.files import Run

WITHIN = 0.15
"""The share of the thickness that an estimate may be off."""


@lru_cache
def tissue(seed: int = 0, side: int = 80) -> NDArray[np.float32]:
    """Three tissues with walls in all directions and a texture, 1 mm, the same along all axes."""
    rng = np.random.default_rng(seed)

    def field(sigma: float) -> NDArray[np.float64]:
        made = ndimage.gaussian_filter(rng.normal(size=(side,) * 3), sigma, mode="wrap")
        return made / made.std()

    image = 1.0 + (field(3) > 0) + 0.5 * (field(2) > 0.5) + 0.1 * field(0.8)
    return ndimage.gaussian_filter(image, 0.4).astype(np.float32)


def sliced(
    image: NDArray[np.float32], thick: float, gap: float, kind: str = "slice", own: float = 1.0
) -> NDArray[np.float32]:
    """Slices of a known profile along the first axis, whose samples are `own` mm apart."""
    scale = decimal_fraction(thick + gap) / decimal_fraction(own)
    place = Placement(int(len(image) / scale), len(image), scale, (scale - 1) / 2)
    return along(axis_matrix(place, Profile(kind, thick), thick / own), image, 0).astype(np.float32)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([3.0, 4.0, 5.0]),
    st.sampled_from([0.7, 0.8, 1.0, 1.2]),
    st.sampled_from(["slice", "cosine", "box"]),
    st.integers(0, 2),
)
def test_the_thickness_of_the_same_tissue_everywhere_is_found(
    spacing: float, share: float, kind: str, seed: int
) -> None:
    volume = sliced(tissue(seed), spacing * share, spacing * (1 - share), kind)
    found = thickness.estimate(volume, (spacing, 1.0, 1.0), kind=kind)
    assert found.low_mm < spacing * share < found.high_mm
    if kind != "box":  # whose blur hardly changes from 0.8 to 1 spacing: less sure, and says so
        assert found.mm == pytest.approx(spacing * share, rel=WITHIN)


def test_white_noise_is_not_taken_for_thin_slices() -> None:
    clean = sliced(tissue(), 4.0, 0.0)
    noisy = clean + np.random.default_rng(1).normal(0, 0.04, clean.shape).astype(np.float32)
    found = thickness.estimate(noisy, (4.0, 1.0, 1.0))
    assert found.mm == pytest.approx(4.0, rel=WITHIN)
    blind = thickness.estimate(noisy, (4.0, 1.0, 1.0), noise=0.0)
    assert abs(blind.mm - 4.0) > abs(found.mm - 4.0)


def test_neither_the_unit_nor_the_order_of_the_axes_matters() -> None:
    volume = sliced(tissue(), 4.0, 1.0)
    one = thickness.estimate(volume, (5.0, 1.0, 1.0))
    same = thickness.estimate(700 * volume.transpose(0, 2, 1)[::-1, :, ::-1], (5.0, 1.0, 1.0))
    assert same.mm == pytest.approx(one.mm, rel=0.01)
    assert same.by_axis_mm == pytest.approx(one.by_axis_mm[::-1], rel=0.02)


def test_fewer_samples_are_less_sure() -> None:
    whole, part = sliced(tissue(), 4.0, 0.0), sliced(tissue(), 4.0, 0.0)[:9, :36, :36]
    widths = [t.high_mm / t.low_mm for t in (thickness.estimate(v, (4.0, 1.0, 1.0)) for v in (whole, part))]
    assert widths[1] > widths[0]


@pytest.mark.parametrize(
    ("shape", "spacing", "why"),
    [
        ((5, 64, 64), (4.0, 1.0, 1.0), "5 slices"),
        ((40, 40, 40), (1.0, 1.0, 1.0), "not much finer"),
        ((40, 20, 20), (4.0, 1.0, 1.0), "too small"),
        ((20, 64, 64), (4.0, 1.0, 1.0), "flat"),
    ],
)
def test_a_volume_that_cannot_tell_says_why_and_what_to_do(
    shape: tuple[int, ...], spacing: tuple[float, ...], why: str
) -> None:
    with pytest.raises(InputError, match=f"{why}.*--slice-thickness MM"):
        thickness.estimate(np.ones(shape, np.float32), spacing)


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """Slices of 4 mm every 5 mm, stored with the slices last and without a word about their thickness."""
    path = tmp_path / "t2.nii"
    volume = np.rint(500 * sliced(tissue(), 4.0, 1.0)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0), np.diag([1.0, 1.0, 5.0, 1.0])), path)
    return path


def test_a_plan_holds_the_estimate_and_where_it_came_from(unknown: Path, tmp_path: Path) -> None:
    plan = planned(Job(str(unknown), str(tmp_path / "o.nii"), Request(model="floor", slice_thickness="auto")))
    fact = plan.facts["thickness_mm"]
    assert fact["origin"] == "estimated"
    assert plan.channels[0].spec[0] == f"slice:{fact['value']:g}"
    assert plan.facts["thickness_low_mm"]["value"] < 4.0 < plan.facts["thickness_high_mm"]["value"]
    assert any("estimated from the samples" in w for w in plan.warnings)
    assert not any("not known" in w for w in plan.warnings)


def test_a_stated_thickness_is_kept(unknown: Path, tmp_path: Path) -> None:
    unknown.with_suffix(".json").write_text(json.dumps({"SliceThickness": 4.5}))
    plan = planned(Job(str(unknown), str(tmp_path / "o.nii"), Request(model="floor", slice_thickness="auto")))
    assert (plan.facts["thickness_mm"]["value"], plan.facts["thickness_mm"]["origin"]) == (4.5, "sidecar")


def test_a_header_without_a_thickness_names_the_way_to_an_estimate(unknown: Path, tmp_path: Path) -> None:
    plan = planned(Job(str(unknown), str(tmp_path / "o.nii"), Request(model="floor")))
    assert plan.facts["thickness_mm"]["value"] == 5.0
    assert any("auto to estimate it" in w for w in plan.warnings)


def test_a_product_is_explained_by_the_estimate_that_its_report_holds(run: Run, unknown: Path, tmp_path: Path) -> None:
    product, auto = tmp_path / "o.nii.gz", ("--model", "floor", "--noise", "0", "--slice-thickness", "auto")
    code, _, err = run("upscale", unknown, product, *auto)
    assert code == 0
    assert "estimated from the samples" in err
    report = json.loads((tmp_path / "o.nii.gz.report.json").read_text())
    assert report["facts"]["thickness_mm"]["origin"] == "estimated"
    assert run("verify", product, "--against", unknown, "--noise", "0", "--quiet")[0] == 0
    assert run("verify", product, "--against", unknown, "--noise", "0", "--slice-thickness", "5", "--quiet")[0] == 3
    assert run("upscale", unknown, product, *auto, "--resume")[0] == 0


def test_inspect_says_what_the_samples_do(run: Run, unknown: Path) -> None:
    code, out, _ = run("inspect", unknown, "--slice-thickness", "auto")
    assert code == 0
    assert "mm thick by the samples (90 %:" in out
    said = json.loads(run("inspect", unknown, "--slice-thickness", "auto", "--json")[1])["slice_thickness"]
    assert said["mm"] == pytest.approx(4.0, rel=WITHIN)


def test_words_other_than_auto_and_a_degradation_beside_it_are_refused(run: Run, unknown: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.nii"
    assert run("plan", unknown, output, "--slice-thickness", "thick")[0] == 2
    assert run("plan", unknown, output, "--slice-thickness", "auto", "--degradation", "box:4")[0] == 2
    with pytest.raises(UsageError, match="'thick' is no number"):
        planned(Job(str(unknown), str(output), Request(slice_thickness="thick")))  # type: ignore[arg-type]


def test_no_more_than_a_bounded_part_is_read() -> None:
    for shape in ((40, 200, 200), (900, 300, 300), (12, 4000, 3000)):
        box = thickness._centre(shape)
        assert np.prod(box.shape) <= 1.1 * thickness.MOST_SAMPLES
        assert box.shape[0] >= min(shape[0], 48)
        assert all(0 <= a < b <= n for a, b, n in zip(box.start, box.stop, shape, strict=True))


@pytest.mark.data
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_heads_of_the_dev_split_tell_their_thickness(data: Path, axis: int) -> None:
    """Each of them, and with noise on average; tests/bench/bench_thickness.py prints every condition."""
    folder, rng = data / "med", np.random.default_rng(axis)
    clean, noisy = [], []
    for row in csv.DictReader((folder / "manifest.csv").read_text().splitlines()):
        if (row["split"], row["kind"], row["modality"]) == ("dev", "volume", "MR"):
            with formats.open_source(folder / row["path"]) as source:
                image, own = source.read(Box.whole(source.header.grid.shape))[0], source.header.grid.spacing
            for gap in (0.0, 1.0):
                volume = sliced(np.moveaxis(image, axis, 0), 4.0, gap, own=own[axis])
                noise = 0.015 * np.percentile(image, 99.9) * rng.standard_normal((2, *volume.shape))
                spacing = (4.0 + gap, *np.delete(own, axis))
                clean.append(abs(thickness.estimate(volume, spacing).mm / 4.0 - 1))
                noisy.append(abs(thickness.estimate(np.hypot(volume + noise[0], noise[1]), spacing).mm / 4.0 - 1))
    assert len(clean) == 8
    assert max(clean) <= WITHIN
    assert np.mean(noisy) <= WITHIN
