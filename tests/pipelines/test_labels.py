"""Label maps are refused, images are not, however few values either has."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from pipelines import formats
from pipelines.calibration import windows
from pipelines.errors import InputError
from pipelines.grid import Box
from pipelines.labels import census, refuse_labels
from pipelines.runner import upscale_array
from pipelines.samples import head, landscape
from tests.pipelines.files import Run, write_raster
from tests.pipelines.test_runner import raster


def looks_like_labels(image: np.ndarray, valid: np.ndarray | None = None) -> bool:
    known = np.isfinite(image) if valid is None else valid

    def read(box: Box) -> tuple[np.ndarray, np.ndarray]:
        return image[box.slices], known[box.slices]

    parts = [read(box) for box in windows(image.shape)]
    try:
        refuse_labels((np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])), image.shape, read, "b1")
    except InputError:
        return True
    return False


def classes(image: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the nearest of `count` means, as a segmentation by intensity gives them (Lloyd 1982)."""
    means = np.unique(np.quantile(image, (np.arange(count) + 0.5) / count))
    for _ in range(8):
        near = np.searchsorted((means[1:] + means[:-1]) / 2, image)
        means = np.unique([image[near == k].mean() for k in range(len(means)) if np.any(near == k)])
    return np.searchsorted((means[1:] + means[:-1]) / 2, image)


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    """The sample head, with its noise: (z, y, x)."""
    source = head.head().input
    return source.read(Box.whole(source.header.grid.shape))[0]


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    source = landscape.landscape().input
    return source.read(Box.whole(source.header.grid.shape))


@pytest.mark.parametrize("count", [2, 3, 4, 6, 8])
def test_tissue_maps_ragged_by_noise_are_labels(scan: np.ndarray, count: int) -> None:
    tissue = classes(scan, count)
    assert looks_like_labels(tissue.astype(float))
    codes = np.array([0, 41, 3, 17, 2, 54, 10, 251, 77, 12])  # as atlases number them
    assert looks_like_labels(codes[tissue].astype(float))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_land_cover_is_labels(scene: np.ndarray, count: int) -> None:
    smooth = ndimage.gaussian_filter(scene[0], 1.0)  # a classifier sees the neighbourhood
    codes = np.array([10, 80, 40, 60, 30, 50, 20, 90])
    assert looks_like_labels(codes[classes(smooth, count)].astype(float))


@pytest.mark.parametrize("count", [9, 12, 20])
def test_land_cover_classified_pixel_by_pixel_is_labels(scene: np.ndarray, count: int) -> None:
    cover = np.random.default_rng(count).permutation(count)[classes(scene[0], count)]
    assert looks_like_labels(cover.astype(float))


@pytest.mark.parametrize(("count", "depth"), [(60, 60), (116, 30)])
def test_a_parcellation_of_many_regions_is_labels(count: int, depth: int) -> None:
    seeds = np.random.default_rng(2).uniform(0, (depth, 60, 60), (count, 3))
    grid = np.stack(np.meshgrid(np.arange(depth), *[np.arange(60)] * 2, indexing="ij"), axis=-1)
    near = cKDTree(seeds).query(grid)[1]
    assert looks_like_labels(1.0 + near)
    ids = np.cumsum(np.random.default_rng(3).integers(1, 90, count))
    assert looks_like_labels(ids[near].astype(float))


def test_vertebrae_that_touch_are_labels() -> None:
    z, y, x = np.indices((30, 200, 60))
    spine = np.where((np.hypot(z - 15, x - 30) < 12) & (y >= 4), 1 + y // 10, 0)
    assert looks_like_labels(spine.astype(float))


@pytest.mark.parametrize(("regions", "axes"), [(60, (0, 1)), (250, (0, 1)), (250, (1, 0)), (1000, (0, 1))])
def test_regions_that_touch_and_are_numbered_row_by_row_are_labels(regions: int, axes: tuple[int, int]) -> None:
    seeds = np.random.default_rng(6).uniform(0, 400, (regions, 2))
    seeds = seeds[np.lexsort((seeds[:, 1], seeds[:, 0] // 20))]
    near = cKDTree(seeds).query(np.stack(np.indices((400, 400)), axis=-1))[1]
    assert looks_like_labels(near.transpose(axes).astype(float))


def test_a_coarse_scene_enlarged_by_repeating_is_not_taken_for_numbered_regions(scene: np.ndarray) -> None:
    coarse = np.rint(ndimage.gaussian_filter(scene[0], 20)[::12, ::12])
    enlarged = np.kron(coarse, np.ones((6, 6)))
    assert census([(enlarged, np.ones(enlarged.shape, bool))], 2).ordered < 0.5
    assert not looks_like_labels(enlarged)


@pytest.mark.parametrize("highest", [9, 20, 40, 90])
@pytest.mark.parametrize("sigma", [5.0, 20.0])
def test_a_smooth_surface_in_whole_metres_is_no_label_map(highest: int, sigma: float) -> None:
    ground = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=(300, 300)), sigma)
    ground = (ground - ground.min()) / np.ptp(ground)
    for relief in (ground, ground**3, np.maximum(2 * ground - 1, 0)):  # hills, an upland, an island
        for step in (1, 10):
            assert not looks_like_labels(np.rint(relief * highest) * step)


@pytest.mark.parametrize("levels", [24, 40])
def test_an_enlarged_scene_of_few_levels_is_no_label_map(scene: np.ndarray, levels: int) -> None:
    coarse = np.rint(scene[0, :150, :150] / scene[0].max() * levels)
    assert not looks_like_labels(np.kron(coarse, np.ones((4, 4))))


def test_a_mask_that_no_window_sees_is_labels() -> None:
    mask = np.zeros((60, 300, 300))
    mask[2:5, 60:64, 60:64] = 1
    assert looks_like_labels(mask)


@pytest.mark.parametrize("levels", [32, 64, 256])
def test_quantised_images_are_no_labels(scan: np.ndarray, scene: np.ndarray, levels: int) -> None:
    for image in (scan, *scene):
        coarse = np.floor(image / (np.quantile(image, 0.999) + 1) * levels)
        assert not looks_like_labels(np.clip(coarse, 0, levels - 1))


def test_a_scan_in_front_of_a_large_constant_background_is_no_label_map(scan: np.ndarray) -> None:
    whole = np.round(scan / 8)
    for background in (0, -1024, 255):
        padded = np.full((len(whole), 300, 300), float(background))
        padded[:, 120:180, 120:180] = whole[:, 100:160, 100:160]
        assert not looks_like_labels(padded)


@pytest.mark.parametrize("sigma", [0.7, 1.5, 3.0])
def test_nothing_but_noise_of_few_levels_is_no_label_map(sigma: float) -> None:
    noise = np.rint(100 + np.random.default_rng(1).normal(0, sigma, (300, 300)))
    assert not looks_like_labels(noise)


def test_a_ramp_is_no_label_map() -> None:
    assert not looks_like_labels(np.broadcast_to(np.arange(40.0)[:, None, None], (40, 60, 60)))


@pytest.mark.parametrize(("count", "refused"), [(1900, True), (2100, False)])
def test_many_whole_numbers_in_flat_regions_are_an_image(count: int, refused: bool) -> None:
    cells = np.random.default_rng(5).permutation(32 * 128).reshape(32, 128) % count + 1
    values = np.repeat(np.repeat(cells, 12, 0), 12, 1).astype(float)
    assert census([(values, np.ones(values.shape, bool))], 2).labels is refused


def test_random_order_has_no_flatness() -> None:
    noise = np.random.default_rng(3).integers(0, 5, (200, 200)).astype(float)
    found = census([(noise, np.ones(noise.shape, bool))], 2)
    assert found.count == 5
    assert np.abs(found.flatness).max() < 0.02
    assert found.unrelated == pytest.approx(1, abs=0.02)


def test_unrelated_is_the_difference_beyond_the_least_step() -> None:
    stripes = np.repeat([0.0, 10.0, 20.0, 30.0], 25)  # a least step everywhere; labels in this order look the same
    image = np.tile(stripes, (100, 1))
    assert census([(image, np.ones(image.shape, bool))], 2).unrelated == 0
    swapped = np.repeat([0.0, 20.0, 30.0, 10.0], 25)  # differences of 2, 1, 2 steps; of any two, 10 / 6
    image = np.tile(swapped, (100, 1))
    found = census([(image, np.ones(image.shape, bool))], 2)
    assert found.unrelated == pytest.approx((5 / 3 - 1) / (10 / 6 - 1))


def test_invalid_samples_are_not_counted() -> None:
    values = np.where(np.arange(90_000).reshape(300, 300) % 2, 0.5, 7.0)
    values[:, 150:] = 8.0
    valid = values == np.rint(values)
    assert census([(values, valid)], 2).count == 2


def _tissue_file(path: Path, scan: np.ndarray) -> Path:
    tissue = classes(scan, 4)[:, 60:140, 60:140].astype(np.uint8)
    image = nib.Nifti1Image(tissue.transpose(2, 1, 0), np.diag([1, 1, 4, 1]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def test_a_tissue_map_of_a_neutral_name_is_refused_unless_replicated(
    run: Run, tmp_path: Path, scan: np.ndarray
) -> None:
    path = _tissue_file(tmp_path / "volume1.nii.gz", scan)
    for model in ([], ["--model", "floor"], ["--model", "cubic"]):
        code, _, err = run("upscale", path, tmp_path / "o.nii.gz", "--scale", "2x1x1", *model)
        assert code == 3
        assert "label map" in err
    assert not (tmp_path / "o.nii.gz").exists()
    code, out, err = run("upscale", path, tmp_path / "o.nii.gz", "--scale", "2x1x1", "--model", "nearest", "--json")
    assert code == 0
    assert "thickness" not in err
    report = json.loads(out)
    assert report["model"] == "nearest"
    assert not report["warnings"]
    given, product = (np.asarray(nib.load(p).dataobj) for p in (path, tmp_path / "o.nii.gz"))
    assert np.array_equal(product, np.repeat(given, 2, axis=2))


def test_a_label_map_known_by_name_is_replicated_and_says_so(run: Run, tmp_path: Path, scan: np.ndarray) -> None:
    path = _tissue_file(tmp_path / "head_dseg.nii.gz", scan)
    code, out, err = run("upscale", path, tmp_path / "o.nii.gz", "--json")
    assert code == 0
    assert json.loads(out)["model"] == "nearest"
    assert "by nearest" in err
    assert "thickness" not in err + out.split('"facts"')[0]
    assert run("plan", path, tmp_path / "p.nii.gz")[1].count("nearest") == 1


@pytest.mark.parametrize("name", ["head_dseg.nii.gz", "volume1.nii.gz"])  # by name, by content
def test_a_label_map_is_never_interpolated_for_the_name_of_a_model_alone(
    run: Run, tmp_path: Path, scan: np.ndarray, name: str
) -> None:
    path = _tissue_file(tmp_path / name, scan)
    for model in ("floor", "cubic", "linear", "lattice-mri"):
        code, _, err = run("upscale", path, tmp_path / "o.nii.gz", "--scale", "2x1x1", "--model", model)
        assert code == 3
        assert "--kind image" in err
        assert "--model nearest" in err
    code, out, err = run("upscale", path, tmp_path / "o.nii.gz", "--scale", "2x1x1", "--kind", "labels", "--json")
    assert (code, json.loads(out)["model"]) == (0, "nearest"), err
    image = ("--kind", "image", "--model", "floor", "--json", "--overwrite")
    code, out, err = run("upscale", path, tmp_path / "o.nii.gz", "--scale", "2x1x1", *image)
    assert (code, json.loads(out)["model"]) == (0, "floor"), err
    assert ("--kind says so" in err) == ("dseg" in name)
    assert run("verify", tmp_path / "o.nii.gz", "--against", path, "--kind", "image")[0] == 0


def test_an_image_named_like_a_statistic_goes_through_once_its_kind_is_told(
    run: Run, thick: Path, tmp_path: Path
) -> None:
    path = thick.rename(tmp_path / "sub-1_zstat1.nii.gz")
    image = ("--kind", "image")
    for command in (("plan", path, tmp_path / "o.nii.gz"), ("inspect", path), ("ingest", path, tmp_path / "o.zarr")):
        code, _, err = run(*command)
        assert code == 3
        assert "say --kind image" in err
        assert run(*command, *image)[0] == 0
    code, _, err = run("upscale", path, tmp_path / "o.nii.gz", "--model", "floor", *image)
    assert code == 0, err
    assert "the name says a map of a statistic" in err
    assert run("verify", tmp_path / "o.nii.gz", "--against", path, *image)[0] == 0


def test_inspect_does_not_doubt_the_kind_that_is_told(run: Run, tmp_path: Path, scene: np.ndarray) -> None:
    path = write_raster(
        tmp_path / "cover.tif", classes(ndimage.gaussian_filter(scene[0], 1.0), 6)[None].astype(np.uint16)
    )
    for told, doubted in (((), True), (("--kind", "image"), False)):
        _, out, _ = run("inspect", path, "--pixels", *told)
        assert ("looks like a label map" in out) == doubted


def test_labels_that_the_file_declares_are_labels_whatever_is_said(run: Run, tmp_path: Path, scan: np.ndarray) -> None:
    image = nib.load(_tissue_file(tmp_path / "volume1.nii.gz", scan))
    image.header["intent_code"] = 1002
    nib.save(image, tmp_path / "declared.nii.gz")
    for told in (["--kind", "image"], ["--model", "floor"], ["--kind", "image", "--model", "floor"]):
        code, _, err = run("plan", tmp_path / "declared.nii.gz", tmp_path / "o.nii.gz", *told)
        assert code == 3
        assert "declares" in err
        assert "say --kind image" not in err
    assert (
        run("plan", tmp_path / "declared.nii.gz", tmp_path / "o.nii.gz", "--kind", "image", "--model", "nearest")[0]
        == 0
    )


def test_the_kind_of_an_array_can_be_told() -> None:
    cells = np.random.default_rng(5).integers(0, 4, (12, 12))
    labels, header = np.kron(cells, np.ones((8, 8))), raster((96, 96))
    with pytest.raises(InputError, match="label map"):
        upscale_array(labels, header, scale=2, model="floor")
    assert upscale_array(labels, header, scale=2, model="floor", kind="image").shape == (1, 192, 192)
    replicated = upscale_array(labels, header, scale=2, kind="labels")[0]
    assert np.array_equal(replicated, np.kron(labels, np.ones((2, 2))))


def test_a_band_of_classes_among_images_is_refused(run: Run, tmp_path: Path, scene: np.ndarray) -> None:
    cover = classes(ndimage.gaussian_filter(scene[0], 1.0), 6)
    path = write_raster(tmp_path / "stack.tif", np.stack([scene[0], cover]).astype(np.uint16))
    code, _, err = run("upscale", path, tmp_path / "o.tif", "--model", "floor")
    assert code == 3
    assert "band 2" in err


def test_inspect_with_pixels_says_what_looks_like_labels(run: Run, tmp_path: Path, scene: np.ndarray) -> None:
    cover = classes(ndimage.gaussian_filter(scene[0], 1.0), 6)
    path = write_raster(tmp_path / "stack.tif", np.stack([scene[0], cover]).astype(np.uint16))
    assert not any("label map" in line for line in json.loads(run("inspect", path, "--json")[1])["problems"])
    problems = json.loads(run("inspect", path, "--pixels", "--json")[1])["problems"]
    said = [line for line in problems if "looks like a label map" in line]
    assert len(said) == 1
    assert "band 2" in said[0]


@pytest.mark.data
def test_no_real_image_is_taken_for_labels(data: Path) -> None:
    taken = []
    for path in sorted([*data.glob("med/volumes/*/*.nii.gz"), *data.glob("geo/scenes/*/*/*.tif")]):
        with formats.open_source(path) as source:
            values = source.read(Box.whole(source.header.grid.shape))
            for channel, samples in zip(source.header.channels, values, strict=True):
                corner = samples[..., -100:, -100:]  # crops of water and sand have few values
                for image in (samples, corner) if channel.kind == "image" else ():
                    known = np.isfinite(image)
                    if looks_like_labels(np.where(known, image, 0), known):
                        taken.append(f"{path.name} {channel.name} {image.shape}")
    assert not taken
