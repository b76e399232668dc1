from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.grid import Factor, placements
from pipelines.interpolation import interpolate
from pipelines.projection import project
from pipelines.samples import SAMPLES, Sample, head, landscape, texture
from pipelines.samples.drawing import hashed
from pipelines.samples_io import write_sample


@pytest.fixture(scope="module")
def the_head() -> Sample:
    return head.head()


@pytest.fixture(scope="module")
def the_landscape() -> Sample:
    return landscape.landscape()


@pytest.fixture(scope="module", params=list(SAMPLES))
def sample(request, the_head, the_landscape) -> Sample:
    return {"head": the_head, "landscape": the_landscape}[request.param]


def whole(source):
    return source.read(next(source.blocks(10**9)))


def ratios(sample):
    pairs = zip(sample.truth.header.grid.shape, sample.input.header.grid.shape, strict=True)
    return Factor(tuple(Fraction(n, m) for n, m in pairs))


def psnr(x, truth):
    return 20 * np.log10(np.percentile(truth, 99.9) / np.sqrt(np.mean(np.square(x - truth))))


def test_truth_and_input_share_their_field_of_view(sample):
    fine = sample.input.header.grid.rescaled(ratios(sample))
    assert fine.same_place(sample.truth.header.grid)


def test_the_input_is_the_degraded_truth_and_noise_of_the_strength_stated(sample):
    truth, observed = whole(sample.truth), whole(sample.input)
    residual = observed - sample.input.header.degradation(sample.truth.header.grid).forward(truth)
    bright = residual[observed > np.percentile(observed, 60)]  # there Rician noise is as good as Gaussian
    sigma = head.NOISE * np.percentile(truth, 99.9) if sample.sidecar else landscape.NOISE_DN
    assert bright.std() == pytest.approx(sigma, rel=0.03)


def test_samples_are_whole_numbers_of_the_type_stated(sample):
    for source in (sample.input, sample.truth):
        values = whole(source)
        limits = np.iinfo(source.header.dtype)
        assert np.array_equal(values, np.rint(values))
        assert values.min() >= max(0, limits.min)
        assert values.max() <= limits.max


def test_the_floor_is_clearly_better_than_cubic_and_far_from_perfect(sample):
    coarse, fine = sample.input.header.grid, sample.truth.header.grid
    truth, observed = whole(sample.truth), whole(sample.input).astype(np.float64)
    cubic = interpolate(observed, placements(coarse, fine), "cubic")
    floor = project(cubic, observed, sample.input.header.degradation(fine), weight=0.02).image
    assert psnr(floor, truth) > psnr(cubic, truth) + 0.4
    assert psnr(floor, truth) < 40


def test_no_part_repeats_another(sample):
    truth = whole(sample.truth)[0]
    n = [k // 2 for k in truth.shape]
    middle = truth if truth.ndim == 2 else truth[truth.shape[0] // 2]
    quarters = [middle[a : a + n[-2], b : b + n[-1]] for a in (0, n[-2]) for b in (0, n[-1])]
    fine = [np.diff(q, axis=0) for q in quarters]
    for i in range(4):
        for j in range(i):
            for mirrored in (fine[j], fine[j][:, ::-1]):
                assert abs(np.corrcoef(fine[i].ravel(), mirrored.ravel())[0, 1]) < 0.5


def test_the_head_is_oblique_in_lps_and_has_a_sidecar_with_its_thickness(the_head):
    grid = the_head.truth.header.grid
    columns = grid.affine[:3, :3]
    assert grid.frame.kind == "patient"
    assert np.allclose(columns.T @ columns, np.eye(3), atol=1e-12)
    assert np.linalg.det(columns[:, ::-1]) > 0
    assert [int(np.argmax(np.abs(columns[:, a]))) for a in range(3)] == [2, 1, 0]  # z superior, y posterior, x left
    assert 3 < np.degrees(np.arccos(columns[2, 0])) < 15
    assert json.loads(json.dumps(the_head.sidecar))["SliceThickness"] == head.SLICE_MM


def test_the_head_holds_fluid_grey_and_white_matter_bone_and_vessels(the_head):
    brain = whole(the_head.truth)[0][90:110, 50:140, 40:120] / head.FULL_SCALE
    shares = {
        "white": np.mean(np.abs(brain - head.WHITE) < 0.05),
        "grey": np.mean(np.abs(brain - head.GREY) < 0.05),
        "fluid": np.mean(brain > 0.85),
        "vessel": np.mean(brain < 0.15),
    }
    assert shares["white"] > 0.3
    assert shares["grey"] > 0.04
    assert shares["fluid"] > 0.01
    assert 1e-5 < shares["vessel"] < 0.02


def test_the_landscape_lies_in_utm_north_up_with_named_bands(the_landscape):
    header = the_landscape.truth.header
    assert 'AUTHORITY["EPSG","32632"]' in header.grid.frame.id
    assert [c.name for c in header.channels] == list(landscape.BANDS)
    corner = header.grid.faces()[0]
    assert tuple(corner) == landscape.ORIGIN_M
    assert header.grid.affine[0, 1] == -header.grid.affine[1, 0] == landscape.TRUTH_M


def test_green_fields_are_bright_in_the_infrared_and_water_is_dark(the_landscape):
    blue, _, red, infrared = whole(the_landscape.truth)
    index = (infrared - red) / (infrared + red)
    assert np.mean(index > 0.6) > 0.2
    water = infrared < 350
    assert 0.005 < water.mean() < 0.1
    assert np.median(infrared[water]) < np.median(blue[water])


def test_no_file_of_someone_else_is_replaced_by_a_sample(tmp_path):
    (tmp_path / "head.json").write_text("mine")
    with pytest.raises(UsageError, match=r"head\.json"):
        write_sample("head", tmp_path / "head.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["head.json"]


def test_a_random_field_has_the_wavelength_asked():
    field = texture.band_limited((256, 256), 16.0, np.random.default_rng(1))
    power = np.abs(np.fft.fft2(field)) ** 2
    f = np.fft.fftfreq(256)
    ring = np.abs(np.log2(16 * np.maximum(np.hypot(f[:, None], f), 1e-9))) < 1  # an octave to each side
    assert field.std() == pytest.approx(1, abs=1e-3)
    assert power[ring].sum() > 0.9 * power.sum()


def test_the_same_seed_gives_the_same_field_and_another_seed_another():
    first, again, other = (texture.band_limited((32, 32), 8.0, np.random.default_rng(s)) for s in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_hashed_numbers_are_uniform_and_depend_on_every_key():
    keys = np.arange(100_000)
    values = hashed(keys, 5)
    assert np.histogram(values, 10, (0, 1))[0] == pytest.approx(10_000, rel=0.05)
    assert abs(np.corrcoef(values, hashed(keys, 6))[0, 1]) < 0.02
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.02


def test_refining_and_averaging_keep_the_mean_of_a_field():
    field = texture.band_limited((16, 18, 20), 6.0, np.random.default_rng(2))
    assert texture.block_mean(texture.refined(field), 2).mean() == pytest.approx(field.mean(), abs=2e-3)
