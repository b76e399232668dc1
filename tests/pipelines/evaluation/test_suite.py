from __future__ import annotations

import csv
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.degradation import FWHM_PER_SIGMA, Degradation, Profile
from pipelines.errors import InputError, UsageError
from pipelines.evaluation import cases, suite
from pipelines.evaluation.cases import Condition, body, coarser, conditions, simulate, truths
from pipelines.grid import Factor, Grid, placements
from pipelines.interpolation import interpolate
from pipelines.projection import project


def direct(samples, header, *, scale, model, noise):
    """nearest, linear, cubic and the floor from their definitions, without the engine."""
    fine = header.grid.rescaled(scale)
    kind = "cubic" if model == "floor" else model
    image = interpolate(samples, placements(header.grid, fine), kind)
    if model == "floor":
        image = project(image, samples, header.degradation(fine), weight=0.0 if noise == 0 else 0.3).image
    return image.astype(np.float32)


def write_volume(path, seed, shape=(40, 36, 44)):
    import nibabel

    rng = np.random.default_rng(seed)
    from scipy import ndimage

    values = ndimage.gaussian_filter(rng.normal(size=shape), 1.3)
    values = 500 + 400 * values / np.abs(values).max()
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([1.2, 1.0, 1.0, 1.0])), path)


def write_scene(path, seed, bands=2, constant=None):
    import rasterio
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    values = np.stack([ndimage.gaussian_filter(rng.normal(size=(48, 50)), 1.2) for _ in range(bands)])
    values = (2000 + 4000 * values).astype(np.uint16)
    if constant is not None:
        values[constant] = 1234
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "height": 48, "width": 50, "count": bands, "dtype": "uint16", "crs": "EPSG:32632"}
    with rasterio.open(path, "w", transform=rasterio.Affine(10, 0, 6e5, 0, -10, 5e6), **profile) as file:
        file.write(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder: two volumes of one subject and one of another; two files of one place and one of another."""
    root = tmp_path_factory.mktemp("data")
    med = [("volumes/dev/a1.nii.gz", "dev", "volume", "anna"), ("volumes/dev/a2.nii.gz", "dev", "volume", "anna")]
    med += [("volumes/dev/b1.nii.gz", "dev", "volume", "bert"), ("volumes/train/c1.nii.gz", "train", "volume", "cora")]
    med += [("dicom/x/1.dcm", "dev", "dicom", "dora")]
    geo = [("scenes/dev/hill/one.tif", "dev", "s2_10m", ""), ("scenes/dev/hill/two.tif", "dev", "s2_10m", "")]
    geo += [("scenes/dev/lake/one.tif", "dev", "s2_10m", ""), ("quirks/odd.tif", "dev", "quirk", "")]
    for domain, rows in (("med", med), ("geo", geo)):
        (root / domain).mkdir()
        with (root / domain / "manifest.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["path", "split", "kind", "subject"], *rows])
    for n, row in enumerate(med[:3]):
        write_volume(root / "med" / row[0], n)
    for n, row in enumerate(geo[:3]):
        write_scene(root / "geo" / row[0], n, bands=3, constant=1 if n == 2 else None)
    return root


@pytest.fixture(scope="module")
def result(folder):
    return suite.evaluate("smoke", folder, ["nearest", "linear", "cubic"], restore=direct)


def test_only_dev_volumes_and_scenes_are_measured(folder):
    assert [t.subject for t in truths("med", "smoke", folder)] == ["anna", "anna", "bert"]
    assert [t.subject for t in truths("geo", "smoke", folder)] == ["hill", "hill", "lake"]


def test_a_band_without_contrast_is_left_out(folder):
    *_, lake = truths("geo", "smoke", folder)
    assert len(lake.header.channels) == len(lake.samples) == 2


def test_every_condition_has_a_table_with_the_floor(result):
    names = [(t.domain, t.condition) for t in result.tables]
    assert names == [(d, c.name) for d in ("med", "geo") for c in conditions(d, "smoke")]
    for table in result.tables:
        assert [r.model for r in table.rows] == ["nearest", "linear", "cubic", "floor"]


def test_subjects_and_places_count_once(result):
    assert [t.subjects for t in result.tables if t.domain == "med"] == [("anna", "bert")] * 6
    assert {t.subjects for t in result.tables if t.domain == "geo"} == {("hill", "lake")}
    assert {t.images for t in result.tables} == {3}


def test_on_clean_data_the_floor_is_above_cubic_and_explains_them_exactly(result):
    for table in result.tables:
        if "clean" in table.condition and "told" not in table.condition:
            rows = {r.model: r for r in table.rows}
            assert rows["cubic"].gains["psnr"].worst < rows["cubic"].gains["psnr"].mean < 0
            assert rows["floor"].values["consistency"] < 1e-3 * rows["cubic"].values["consistency"]


def test_a_method_that_knows_the_truth_is_perfect_and_consistent(folder):
    truth = next(iter(truths("geo", "smoke", folder)))
    case = simulate(truth, conditions("geo", "smoke")[0], np.random.default_rng(0))
    seen = suite.comparison(case, case.truth.samples)
    from pipelines.evaluation.metrics import TABLE

    assert TABLE["psnr"](seen) == np.inf
    assert TABLE["consistency"](seen) < 1e-9


def test_methods_are_told_the_nominal_profile_and_get_wider_data(folder):
    truth = next(iter(truths("med", "smoke", folder)))
    clean, wider = (
        simulate(truth, Condition("med", Profile("slice", 4), spacing_mm=4, widened=w), np.random.default_rng(0))
        for w in (1.0, 1.2)
    )
    assert clean.header.channels[0].profiles == wider.header.channels[0].profiles
    assert str(clean.header.channels[0].profiles[0]) == "slice:4"
    assert np.abs(clean.coarse - wider.coarse).max() > 1e-3
    fine = clean.header.grid.rescaled(clean.factor)
    expected = Degradation.between(
        clean.header.grid, fine, (Profile("slice", 4.8), *clean.header.channels[0].profiles[1:])
    )
    assert np.allclose(wider.coarse, expected.forward(clean.truth.samples), atol=1e-12)


def test_a_wider_transfer_function_has_a_gaussian_twenty_percent_wider():
    nominal, wide = (cases._profiles(Condition("geo", Profile("mtf", 0.3), scale=2), 2, w)[0] for w in (1.0, 1.2))
    ratio = wide.fwhm_coarse(1.0, millimetres=False) / nominal.fwhm_coarse(1.0, millimetres=False)
    assert ratio == pytest.approx(1.2)
    assert nominal.fwhm_coarse(1.0, millimetres=False) == pytest.approx(FWHM_PER_SIGMA * 0.98787833 / 2, abs=1e-8)


def test_noise_has_the_strength_of_the_protocol_and_is_the_same_for_every_method(folder):
    seen = []

    def spy(samples, header, *, scale, model, noise):
        seen.append((model, noise, samples.copy()))
        return direct(samples, header, scale=scale, model=model, noise=noise)

    truth = next(iter(truths("geo", "smoke", folder)))
    noisy = Condition("geo", Profile("mtf", 0.3), scale=2, noisy=True)
    suite.scored(truth, noisy, suite._chosen(["cubic"]), spy)
    assert [(m, n) for m, n, _ in seen] == [("cubic", "auto"), ("floor", "auto")]
    assert np.array_equal(seen[0][2], seen[1][2])
    clean = simulate(truth, Condition("geo", Profile("mtf", 0.3), scale=2), np.random.default_rng(0)).coarse
    spread = (seen[0][2] - clean).std(axis=(1, 2))
    assert spread == pytest.approx(3 / 255 * truth.peaks, rel=0.1)


def test_tables_with_noise_say_what_the_floor_leaves_of_it_and_gains_over_cubic(result):
    for table in result.tables:
        floor = next(r for r in table.rows if r.model == "floor")
        assert floor.over_cubic is not None
        assert (floor.over_noise is not None) == ("noisy" in table.condition)
        if floor.over_noise is not None:
            assert 0 < floor.over_noise[1] < 2
    text = result.to_text()
    assert "floor: residual up to" in text
    assert "floor: least above cubic" in text


@settings(max_examples=40)
@given(
    st.tuples(*[st.integers(9, 40)] * 3),
    st.tuples(*[st.fractions(1, 8, max_denominator=6)] * 3),
    st.integers(0, 1000),
)
def test_the_coarse_grid_refined_again_is_the_fine_grid(shape, scales, seed):
    affine = np.eye(4)
    affine[:3] = np.random.default_rng(seed).normal(size=(3, 4)) + np.eye(3, 4) * 4
    fine, coarse = coarser(Grid("zyx", shape, affine), Factor(scales))
    again = coarse.rescaled(Factor(scales))
    assert again.same_place(fine)
    assert all(n - s - 0.5 <= m <= n for m, n, s in zip(fine.shape, shape, scales, strict=True))


def test_slices_of_the_asked_spacing_whatever_the_spacing_of_the_truth(folder):
    truth = next(iter(truths("med", "smoke", folder)))  # x is 1.2 mm, the last axis of the array
    case = simulate(truth, Condition("med", Profile("slice", 4), spacing_mm=8, axis=2), np.random.default_rng(0))
    assert case is None  # 40 samples of 1.2 mm are no more than 6 slices
    case = simulate(truth, Condition("med", Profile("slice", 3), spacing_mm=3, axis=2), np.random.default_rng(0))
    assert case.factor.axes == (1, 1, Fraction(5, 2))
    assert case.header.grid.spacing[2] == pytest.approx(3.0)
    assert case.header.slice_axis == 2


def test_the_body_is_filled_and_grown_to_the_border():
    volume = np.zeros((20, 20, 20))
    volume[4:12, 4:12, 4:12] = 1.0
    volume[7:9, 7:9, 7:9] = 0.0
    volume[:, :, 19] = 1.0
    mask = body(volume)
    assert mask[2:14, 5, 5].all()
    assert not mask[1, 5, 5]
    assert mask[7:9, 7:9, 7:9].all()
    assert mask[:, :, 17:].all()


def test_a_missing_manifest_and_an_unknown_suite_are_refused(tmp_path):
    with pytest.raises(InputError, match="manifest"):
        suite.evaluate("smoke", tmp_path, ["floor"], restore=direct)
    with pytest.raises(UsageError, match="suite"):
        suite.evaluate("quick", tmp_path, restore=direct)


def test_progress_never_exceeds_its_total(folder):
    calls = []
    suite.evaluate("smoke", folder, ["floor"], lambda *a: calls.append(a), restore=direct, domains=("geo",))
    assert all(done <= total for _, done, total in calls)
    assert calls[-1][1] == calls[-1][2]


@pytest.mark.data
def test_the_engine_beats_cubic_on_a_real_scene(data):
    truth = next(t for t in truths("geo", "smoke", data) if t.subject == "s2_l1c_t33uub")
    clean = conditions("geo", "smoke")[0]
    cubic, floor = suite.scored(truth, clean, suite._chosen(["cubic"]), suite._engine())
    assert floor.values["psnr"] > cubic.values["psnr"] + 0.5
    assert floor.values["consistency"] < 0.1
