"""Peak resident memory of whole runs, measured by the parent process, at sizes where O(scene) would show."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from pipelines.bench.child import program_peak
from tests.pipelines.files import write_raster

GIGABYTE = 1_000_000_000


def peak_bytes(*arguments: str | Path, slack: float = 1.3) -> int:
    """Peak resident memory of one run; fails if it predicted less, or more than `slack` times as much."""
    peak = program_peak(*arguments)
    report = Path(f"{arguments[2]}.report.json")
    predicted = json.loads(report.read_text())["predicted_bytes"]
    assert peak <= predicted <= slack * peak
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 300, 280), (1, 2, 1000, 900), (20, 96, 90), (30, 200, 180)], ids=str)
def test_a_plan_says_what_a_run_with_the_network_needs(tmp_path: Path, shape: tuple[int, ...]) -> None:
    samples = (3000 + 60 * np.random.default_rng(0).normal(size=shape)).astype(np.int16)
    if len(shape) == 4:
        path, output = write_raster(tmp_path / "scene.tif", samples[0], tiled=True), tmp_path / "out.tif"
    else:
        path, output = tmp_path / "t2.nii", tmp_path / "out.nii.gz"
        nib.save(nib.Nifti1Image(samples.T, np.diag([1, 1, 4, 1])), path)
    peak_bytes("upscale", path, output, "--noise", "0", "--quiet")


@pytest.mark.slow
def test_a_scene_of_6000_pixels_a_side_stays_below_two_gigabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pattern = (3000 + 60 * rng.normal(size=(4, 500, 500))).astype(np.uint16)
    profile = {"driver": "GTiff", "width": 6000, "height": 6000, "count": 4, "dtype": "uint16", "tiled": True}
    profile |= {"crs": "EPSG:32632", "transform": Affine(10, 0, 5e5, 0, -10, 5e6), "photometric": "MINISBLACK"}
    path = tmp_path / "scene.tif"
    with rasterio.open(path, "w", **profile) as file:
        for row in range(0, 6000, 500):
            for column in range(0, 6000, 500):
                file.write(pattern, window=Window(column, row, 500, 500))
    peak = peak_bytes("upscale", path, tmp_path / "out.tif", "--model", "floor", "--scale", "2", "--quiet")
    assert peak <= 2 * GIGABYTE


@pytest.mark.slow
def test_a_volume_of_512_cubed_stays_below_two_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii.gz"
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 512))
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([0.5, 0.5, 1, 1]), 1)
    header["vox_offset"] = 352
    slice_yx = (500 + 20 * np.random.default_rng(0).normal(size=(512, 512))).astype("<i2")
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0" * 4)
        for k in range(512):
            file.write(np.roll(slice_yx, 7 * k, axis=1).tobytes())
    peak = peak_bytes("upscale", path, tmp_path / "out.nii.gz", "--model", "floor", "--scale", "2x1x1", "--quiet")
    assert peak <= 2 * GIGABYTE


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_wide_samples_are_counted_as_wide(tmp_path: Path, dtype: str) -> None:
    samples = (3000 + 60 * np.random.default_rng(0).normal(size=(30, 256, 1536))).astype(dtype)
    path = write_raster(tmp_path / "bands.tif", samples, tiled=True)
    options = ("--model", "floor", "--scale", "2", "--noise", "0", "--quiet")
    peak_bytes("upscale", path, tmp_path / "out.tif", *options, slack=1.5)  # three tiles, of which two are cut short


@pytest.mark.slow
@pytest.mark.parametrize(("bands", "side"), [(12, 1500), (100, 400)])
def test_many_bands_need_no_more_than_the_plan_says(tmp_path: Path, bands: int, side: int) -> None:
    samples = (3000 + 60 * np.random.default_rng(0).normal(size=(bands, side, side))).astype(np.uint16)
    path = write_raster(tmp_path / "bands.tif", samples, tiled=True)
    options = ("--scale", "2", "--workers", "1", "--quiet")
    assert peak_bytes("upscale", path, tmp_path / "out.tif", "--model", "floor", *options) <= 2 * GIGABYTE
