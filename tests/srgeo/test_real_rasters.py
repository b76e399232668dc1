"""Real files: every odd one ends in a Source that reads completely or in an error that says why."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import Affine
from rio_cogeo.cogeo import cog_validate

from pipelines.errors import InputError
from srgeo.cog import CogSink
from srgeo.raster import open_raster
from tests.srgeo.make_raster import opened, replicated, whole

pytestmark = pytest.mark.data

NOT_YET = {".jp2"}
"""Formats that are refused for now although they are sound."""

REFUSED_ALTHOUGH_SOUND = {
    "huge4GB.tif": "its blocks are missing",
    "uint64.tif": "64-bit integers",
    "cielab.tif": "no radiometry",
}

BLOCK_SAMPLES = 1 << 22
"""Read at once."""


def _refusal(path: Path) -> InputError | None:
    """The error that reading all samples ends in, None if they can be read."""
    try:
        with open_raster(path) as source:
            valid = total = 0
            for box in source.blocks(BLOCK_SAMPLES):
                samples = source.read(box)
                total += samples[0].size
                valid += int(np.isfinite(samples).sum())
            header = source.header
    except InputError as error:
        return error
    assert total == np.prod(header.grid.shape)
    assert valid == total * len(header.channels) or header.may_have_invalid
    return None


def test_odd_files_are_read_or_refused_as_their_list_expects(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = data / "geo" / "quirks"
    wrong = []
    with (folder / "quirks.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name, expected = row["file"], row["expected"]
        error = _refusal(folder / name)
        done = error is None
        if error is not None:
            assert str(folder) not in str(error)
            assert error.what
            assert error.why or error.fix
        if Path(name).suffix in NOT_YET:
            assert not done
            continue
        allowed = {True} if expected.startswith("process") else {False}
        if " or " in expected or "nearest" in expected or name in REFUSED_ALTHOUGH_SOUND:
            allowed = {True, False}
        if done not in allowed:
            wrong.append((name, expected, done))
    assert wrong == []
    assert len(rows) > 60
    assert capfd.readouterr().err == ""


def test_all_scenes_read_without_refusal(data: Path) -> None:
    scenes = sorted((data / "geo" / "scenes").glob("*/*/*.tif"))
    assert len(scenes) > 80
    for path in scenes:
        with open_raster(path) as source:
            samples = whole(source)
            assert np.isfinite(samples).any()
            assert all(c.kind == "image" for c in source.header.channels) or "uav_pix4d" in path.name
            assert "refuse_networks" not in source.header.facts


@pytest.mark.parametrize(
    "name",
    [
        "rotated.tif",
        "geomatrix.tif",
        "inverted_lat.tif",
        "float_nan.tif",
        "byte_point.tif",
        "hro_extmask.tif",
        "test_with_mask_8bit.tif",
        "cog_scale_epsg4326.tif",
        "test_esri_wkt.tif",
        "epsg_2853_with_us_feet.tif",
        "float32_with_nodata_slightly_above_float_max.tif",
        "stats_nodata_neginf.tif",
        "int8.tif",
        "int24.tif",
        "float16.tif",
        "lc.tif",
        "RGBA.uint16.tif",
        "planetscope_nonsquare_px.tif",
        "nz_habitat_anticross_4326_1deg.tif",
        "goes.tif",
        "byte_gcp_pixelispoint.tif",
        "byte_rpc.tif",
    ],
)
def test_the_product_of_an_odd_file_keeps_place_values_and_description(data: Path, tmp_path: Path, name: str) -> None:
    path, out = data / "geo" / "quirks" / name, tmp_path / "o.tif"
    with open_raster(path) as source:
        product = replicated(source)
        CogSink().write(product, source, out, {})
        with open_raster(out) as again:
            np.testing.assert_array_equal(whole(again), whole(product))
            assert again.header.grid.same_place(product.header.grid)
            assert [c.kind for c in again.header.channels] == [c.kind for c in source.header.channels]
    with opened(path) as before, opened(out) as after:
        assert before.crs == after.crs
        assert before.dtypes == after.dtypes
        assert repr(before.nodata) == repr(after.nodata)
        assert (before.descriptions, before.scales, before.offsets, before.units) == (
            after.descriptions,
            after.scales,
            after.offsets,
            after.units,
        )
        assert before.mask_flag_enums == after.mask_flag_enums
        if not before.gcps[0] and before.rpcs is None:
            assert after.transform == before.transform @ Affine.scale(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rasterio about files without georeference
        assert cog_validate(str(out), strict=True) == (True, [], [])
