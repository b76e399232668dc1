from __future__ import annotations

import csv
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import card as cards
from pipelines.degradation import FWHM_PER_SIGMA, Degradation, Profile
from pipelines.errors import InputError, ModelError, StoreError, UsageError
from pipelines.evaluation import cases, suite, truths
from pipelines.evaluation.cases import coarser, factor_of, simulate
from pipelines.evaluation.conditions import SUITES, Condition, suite_of
from pipelines.evaluation.ledger import SCORES, Ledger
from pipelines.evaluation.tables import Score
from pipelines.evaluation.truths import body
from pipelines.grid import Factor, Grid, placements
from pipelines.interpolation import interpolate
from pipelines.projection import project
from tests.srmed.make_dicom import Series


def direct(samples, header, *, scale, model, noise, consistency=True):
    """nearest, linear, cubic and the floor from their definitions, without the engine."""
    fine = header.grid.rescaled(scale)
    kind = "cubic" if model == "floor" else model
    image = interpolate(samples, placements(header.grid, fine), kind)
    if model == "floor":
        image = project(image, samples, header.degradation(fine), weight=0.0 if noise == 0 else 0.3).image
    return image.astype(np.float32)


def write_volume(path, seed, shape=(40, 36, 44), spacing=(1.2, 1.0, 1.0)):
    import nibabel

    rng = np.random.default_rng(seed)
    from scipy import ndimage

    values = ndimage.gaussian_filter(rng.normal(size=shape), 1.3)
    values = 500 + 400 * values / np.abs(values).max()
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([*spacing, 1.0])), path)


def write_scene(path, seed, bands=2, constant=None, pixel=10, side=1):
    import rasterio
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    values = np.stack([ndimage.gaussian_filter(rng.normal(size=(48, 50)), 1.2) for _ in range(bands)])
    values = values.repeat(side, axis=1).repeat(side, axis=2)  # as fine and so many times as many samples
    values = (2000 + 4000 * values).astype(np.uint16)
    if constant is not None:
        values[constant] = 1234
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "height": 48 * side,
        "width": 50 * side,
        "count": bands,
        "dtype": "uint16",
        "crs": "EPSG:32632",
    }
    with rasterio.open(path, "w", transform=rasterio.Affine(pixel, 0, 6e5, 0, -pixel, 5e6), **profile) as file:
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


def read_all(domain, folder):
    return [truths.read(e, whole=False) for e in truths.entries([domain], folder)[0]]


def methods(*models):
    return suite._chosen(models)


def scored(truth, condition, chosen, restore):
    return suite._Run(chosen, Ledger(None), restore, whole=False).of_case(truth, condition)


@pytest.fixture(scope="module")
def result(folder):
    return suite.evaluate("smoke", folder, ["nearest", "linear"], restore=direct)


def test_only_dev_volumes_and_scenes_are_measured(folder):
    assert [t.subject for t in read_all("med", folder)] == ["anna", "anna", "bert"]
    assert [t.subject for t in read_all("geo", folder)] == ["hill", "hill", "lake"]


def test_a_band_without_contrast_is_left_out(folder):
    *_, lake = read_all("geo", folder)
    assert len(lake.header.channels) == len(lake.samples) == 2


def test_every_condition_has_a_table_with_the_floor(result):
    names = [(t.domain, t.condition) for t in result.tables]
    wanted = [(d, c.name) for d in ("med", "geo") for c in suite_of("smoke").conditions(d)]
    assert names == [(d, c) for d, c in wanted if "Wald" not in c]  # no band here has pixels of 20 m
    for table in result.tables:
        assert [r.model for r in table.rows] == ["nearest", "linear", "cubic", "floor"]


def test_subjects_and_places_count_once(result):
    assert [t.subjects for t in result.tables if t.domain == "med"] == [("anna", "bert")] * 4
    assert {t.subjects for t in result.tables if t.domain == "geo"} == {("hill", "lake")}
    assert {t.images for t in result.tables} == {3}


def test_on_clean_data_the_floor_is_above_cubic_and_explains_them_exactly(result):
    for table in result.tables:
        if "clean" in table.condition and "told" not in table.condition:
            rows = {r.model: r for r in table.rows}
            assert rows["cubic"].gains["psnr"].worst < rows["cubic"].gains["psnr"].mean < 0
            assert rows["floor"].values["consistency"] < 1e-3 * rows["cubic"].values["consistency"]


def test_a_method_that_knows_the_truth_is_perfect_and_consistent(folder):
    truth = read_all("geo", folder)[0]
    case = simulate(truth, Condition("geo", Profile("mtf", 0.3), scale=2), np.random.default_rng(0))
    seen = suite.comparison(case, case.truth.samples)
    from pipelines.evaluation.metrics import TABLE

    assert TABLE["psnr"](seen) == np.inf
    assert TABLE["consistency"](seen) < 1e-9


def test_methods_are_told_the_nominal_profile_and_get_wider_data(folder):
    truth = read_all("med", folder)[0]
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

    def spy(samples, header, *, scale, model, noise, consistency):
        seen.append((model, noise, samples.copy()))
        return direct(samples, header, scale=scale, model=model, noise=noise, consistency=consistency)

    truth = read_all("geo", folder)[0]
    noisy = Condition("geo", Profile("mtf", 0.3), scale=2, noisy=True)
    scored(truth, noisy, methods(), spy)
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
    truth = read_all("med", folder)[0]  # x is 1.2 mm, the last axis of the array
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
    (tmp_path / "med").mkdir()
    (tmp_path / "med" / "manifest.csv").write_text("path,split,kind,subject\n")
    with pytest.raises(InputError, match="manifest"):
        suite.evaluate("geo", tmp_path, ["floor"], restore=direct)
    with pytest.raises(UsageError, match="suite"):
        suite.evaluate("quick", tmp_path, restore=direct)


def test_progress_never_exceeds_its_total(folder):
    calls = []
    suite.evaluate("smoke", folder, ["floor"], lambda *a: calls.append(a), restore=direct)
    assert all(done <= total for _, done, total in calls)
    assert calls[-1][1] == calls[-1][2]


@pytest.mark.data
def test_the_engine_beats_cubic_on_a_real_scene(data):
    entry = next(e for e in truths.entries(["geo"], data)[0] if e.subject == "s2_l1c_t33uub")
    clean = Condition("geo", Profile("mtf", 0.3), scale=2)
    cubic, floor = scored(truths.read(entry, whole=False), clean, methods(), suite._engine("4GB"))
    assert floor.values["psnr"] > cubic.values["psnr"] + 0.5
    assert floor.values["consistency"] < 0.1


def test_suites_measure_the_hard_data_first_and_then_the_easy_ones():
    med = SUITES["med"].conditions("med")
    assert [c.task for c in med[::6]] == ["3|0 mm", "4|0 mm", "4|1 mm", "5|0 mm", "5|1 mm"]
    kinds = [(c.noisy, c.widened, c.axis) for c in med[:6]]
    assert kinds == [(True, 1.2, a) for a in range(3)] + [(False, 1.0, a) for a in range(3)]
    geo = SUITES["geo"].conditions("geo")
    assert [c.task for c in geo] == ["2x", "2x", "4x", "4x", "20 -> 10 m", "20 -> 10 m", "MS -> PAN", "MS -> PAN"]
    assert [c.noisy for c in geo] == [True, False] * 4


def test_names_of_conditions_tell_them_apart():
    for chosen in SUITES.values():
        for domain in chosen.domains:
            named = {c.name for c in chosen.conditions(domain)}
            assert len(named) * len(chosen.axes if domain == "med" else (0,)) == len(chosen.conditions(domain))


@pytest.fixture
def own(tmp_path):
    """A user's folder: two subjects with a volume each, a loose one, and what is no input."""
    write_volume(tmp_path / "sub-1" / "anat" / "t1.nii.gz", 1)
    write_volume(tmp_path / "sub-1" / "later" / "t1.nii.gz", 4)
    write_volume(tmp_path / "sub-1" / "thick.nii.gz", 2, spacing=(1.0, 1.0, 4.0))
    write_volume(tmp_path / "loose.nii.gz", 3)
    (tmp_path / "sub-1" / "t1.json").write_text("{}")
    (tmp_path / "sub-1" / "broken.nii.gz").write_bytes(b"not gzip")
    return tmp_path


def test_a_folder_without_manifest_is_measured_by_its_folders(own):
    found, left = truths.entries(["med"], own)
    named = [("loose", "loose"), ("sub-1", "thick"), ("sub-1", "anat/t1"), ("sub-1", "later/t1")]
    assert [(e.subject, e.name) for e in found] == named
    assert list(left) == ["sub-1 broken"]


def test_a_folder_of_slices_is_one_volume_of_its_folder(tmp_path):
    for folder in (tmp_path / "anna" / "t2", tmp_path / "bert"):
        Series(slices=6, spacing=1.0, thickness=1.0).write(folder)
    found, left = truths.entries(["med"], tmp_path)
    assert [(e.subject, e.name, e.header.grid.shape) for e in found] == [
        ("anna", "t2", (6, 5, 7)),
        ("bert", "bert", (6, 5, 7)),
    ]
    assert not left
    alone, _ = truths.entries(["med"], tmp_path / "bert")
    assert [(e.subject, e.name) for e in alone] == [("bert", "bert")]


def test_an_axis_that_is_itself_too_coarse_is_not_measured(own):
    thick = next(e for e in truths.entries(["med"], own)[0] if e.name == "thick")
    truth = truths.read(thick, whole=True)
    axes = [factor_of(truth, Condition("med", Profile("slice", 3), spacing_mm=3, axis=a)) for a in range(3)]
    assert [f is not None for f in axes] == [False, True, True]  # 4 mm slices say nothing of 3 mm ones


def test_what_could_not_be_measured_is_said(own):
    tables = suite.evaluate("smoke", own, ["floor"], restore=direct)
    assert any("broken" in note for note in tables.notes)
    assert any("thick: it is too coarse" in note for note in tables.notes)
    assert tables.tables[0].subjects == ("loose", "sub-1")


@pytest.mark.parametrize("name", ["med", "geo"])
def test_a_folder_with_nothing_to_measure_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"there is no (volume|raster) to measure on"):
        suite.evaluate(name, tmp_path, ["floor"], restore=direct)


def test_only_the_first_subjects_are_measured(folder):
    tables = suite.evaluate("smoke", folder, ["floor"], restore=direct, limit=1)
    assert [t.subjects for t in tables.tables] == [("anna",)] * 4 + [("hill",)] * 2


def test_bands_of_20_m_and_bands_beside_a_panchromatic_one_are_measured_by_walds_protocol(tmp_path):
    write_scene(tmp_path / "s2" / "20m.tif", 1, pixel=20)
    write_scene(tmp_path / "l8" / "ms.tif", 2, bands=3, pixel=30)
    write_scene(tmp_path / "l8" / "pan.tif", 3, bands=1, pixel=15)
    tables = suite.evaluate("geo", tmp_path, ["floor"], restore=direct)
    places = {t.condition: t.subjects for t in tables.tables if "Wald" in t.condition}
    assert places["20 -> 10 m by Wald's protocol, clean"] == ("s2",)
    assert places["MS -> PAN by Wald's protocol, clean"] == ("l8",)
    assert any("panchromatic" in note for note in tables.notes)


def test_a_guided_network_is_measured_where_finer_bands_of_the_place_are_at_hand(tmp_path):
    write_scene(tmp_path / "s2" / "20m.tif", 1, pixel=20)
    write_scene(tmp_path / "s2" / "10m.tif", 1, pixel=10, side=2)
    write_scene(tmp_path / "alone" / "20m.tif", 2, pixel=20)
    tables = suite.evaluate("smoke", tmp_path, ["guided-geo"])
    rows = {t.condition: [row.model for row in t.rows] for t in tables.tables}
    assert rows["20 -> 10 m by Wald's protocol, clean"][:2] == ["cubic", "floor"]
    assert any("guided-geo" in model for model in rows["20 -> 10 m by Wald's protocol, clean"])
    assert not any("guided-geo" in model for name, models in rows.items() if "Wald" not in name for model in models)


def test_a_larger_image_is_measured_at_its_centre(own, monkeypatch):
    monkeypatch.setattr(truths, "LARGEST", 30**3)
    entry = truths.entries(["med"], own)[0][0]
    truth = truths.read(entry, whole=True)
    assert truth.samples.size <= 30**3
    assert truth.box.start == (7, 3, 5)


class StoppedHereError(Exception):
    pass


def failing_after(count):
    calls = []

    def restore(samples, header, *, scale, model, noise, consistency):
        calls.append((model, consistency))
        if len(calls) > count:
            raise StoppedHereError
        return direct(samples, header, scale=scale, model=model, noise=noise, consistency=consistency)

    return restore, calls


def without_seconds(scores):
    return [replace(s, values={k: v for k, v in s.values.items() if k != "seconds"}) for s in scores]


def kept(path):
    scores = [Score(**json.loads(line)) for line in path.read_text().splitlines()]
    return sorted(without_seconds(scores), key=lambda s: s.key)


def test_a_stopped_evaluation_goes_on_to_the_same_scores(folder, tmp_path):
    whole, _ = failing_after(10**6)
    suite.evaluate("smoke", folder, ["floor"], out=tmp_path / "whole", restore=whole, limit=1)
    stopping, _ = failing_after(5)
    with pytest.raises(StoppedHereError):
        suite.evaluate("smoke", folder, ["floor"], out=tmp_path / "cut", restore=stopping, limit=1)
    with (tmp_path / "cut" / SCORES).open("a") as file:
        file.write('{"domain": "med", "cond')  # killed while it wrote
    rest, calls = failing_after(10**6)
    suite.evaluate("smoke", folder, ["floor"], out=tmp_path / "cut", restore=rest, limit=1)
    lines = (tmp_path / "cut" / SCORES).read_text().splitlines()
    (tmp_path / "cut" / SCORES).write_text("\n".join(line for line in lines if not line.endswith("cond")) + "\n")
    assert kept(tmp_path / "cut" / SCORES) == kept(tmp_path / "whole" / SCORES)
    assert len(calls) == len(lines) - 1 - 5
    for name in ("tables.md", "scores.csv"):
        texts = [(tmp_path / run / name).read_text().splitlines() for run in ("cut", "whole")]
        assert len(texts[0]) == len(texts[1])


def test_a_further_model_is_added_to_what_is_there(folder, tmp_path):
    suite.evaluate("smoke", folder, ["floor"], out=tmp_path / "o", restore=direct, limit=1)
    restore, calls = failing_after(10**6)
    tables = suite.evaluate("smoke", folder, ["linear"], out=tmp_path / "o", restore=restore, limit=1)
    assert set(calls) == {("linear", True)}
    assert [r.model for r in tables.tables[0].rows] == ["linear", "cubic", "floor"]


def test_networks_are_also_measured_without_the_projection_if_asked(folder):
    asked = set()

    def restore(samples, header, *, scale, model, noise, consistency):
        asked.add((model, consistency))
        kind = model if model == "floor" else "cubic"
        return direct(samples, header, scale=scale, model=kind, noise=noise)

    names = ["lattice-geo", "lattice-mri"]
    tables = suite.evaluate("smoke", folder, names, restore=restore, limit=1, unprojected=True)
    assert asked == {("cubic", True), ("floor", True), *((name, flag) for name in names for flag in (True, False))}
    assert any(row.model == "lattice-geo-1.0 unprojected" for table in tables.tables for row in table.rows)


def test_another_image_of_the_same_name_is_measured_again(own, tmp_path):
    out = tmp_path / "results"
    suite.evaluate("smoke", own, ["floor"], out=out, restore=direct)
    write_volume(own / "loose.nii.gz", 9)
    restore, calls = failing_after(10**6)
    suite.evaluate("smoke", own, ["floor"], out=out, restore=restore)
    assert len(calls) == 2 * 4  # cubic and the floor under four conditions


def test_a_folder_with_other_things_is_no_place_for_results(folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no evaluation"):
        suite.evaluate("smoke", folder, ["floor"], out=tmp_path, restore=direct)


def test_an_unknown_model_and_two_of_one_name_are_refused(folder, tmp_path):
    with pytest.raises(ModelError, match="latice"):
        suite.evaluate("smoke", folder, ["latice-geo"], restore=direct)
    shipped = cards.find("lattice-geo")
    copy = tmp_path / "mine.json"
    shipped.write(copy)
    (tmp_path / shipped.weights_file).write_bytes(shipped.weights.read_bytes())
    with pytest.raises(ModelError, match="two models are called"):
        suite.evaluate("smoke", folder, ["lattice-geo", str(copy)], restore=direct)
    assert methods(str(copy))[-1].model == str(copy)


def test_what_cannot_be_written_stops_the_evaluation_with_what_is_kept(folder, tmp_path):
    (tmp_path / SCORES).touch()
    (tmp_path / "pictures").touch()  # where a folder should be
    with pytest.raises(StoreError, match=r"[Rr]un the same call again"):
        suite.evaluate("smoke", folder, ["floor"], out=tmp_path, restore=direct, limit=1)
