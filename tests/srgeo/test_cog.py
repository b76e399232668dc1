"""The file itself: layout, same bytes, and what is left behind when writing fails."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rio_cogeo.cogeo import cog_validate

from pipelines import upscale
from pipelines.errors import ExportError, UsageError
from pipelines.grid import Box, Frame, Grid
from pipelines.image import ArraySource, Channel, Header, Source
from srgeo.cog import CogSink, _bigtiff
from srgeo.product import layout_of
from srgeo.raster import open_raster
from srgeo.sensors import DEFAULT_PROFILE
from tests.contracts.source_contract import SinkContract
from tests.srgeo.make_raster import (
    NORTH_UP,
    ROTATED,
    copy_product,
    masked_tif,
    opened,
    pixels,
    replicated,
    write_tif,
)


class TestCogSink(SinkContract):
    suffix = ".tif"

    def sink(self) -> CogSink:
        return CogSink()

    def product(self) -> Source:
        affine = np.array([[0, 5.0, 399962.5], [-5.0, 0, 5699997.5], [0, 0, 1]])
        grid = Grid("yx", (40, 33), affine, Frame("m", "map", ""))
        data = np.random.default_rng(0).normal(size=(2, 40, 33)).astype(np.float32)
        channel = Channel("red", (DEFAULT_PROFILE, DEFAULT_PROFILE))
        return ArraySource(data, Header(grid, (channel, replace(channel, name="nir")), domain="geo"))

    def open(self, path: Path) -> Source:
        return open_raster(path)


# layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("way", ["plain", "nodata", "mask", "rotated"])
def test_products_are_valid_cogs(tmp_path: Path, dtype: str, way: str) -> None:
    data = pixels(3, rows=400, columns=330, dtype=dtype)
    invalid = np.zeros((400, 330), bool)
    invalid[:90, 40:] = True
    if way == "mask":
        path = masked_tif(tmp_path / "a.tif", data, invalid)
    else:
        path = write_tif(
            tmp_path / "a.tif",
            data,
            nodata=55 if way == "nodata" else None,
            transform=ROTATED if way == "rotated" else NORTH_UP,
        )
    copy_product(path, tmp_path / "o.tif", 3)
    assert cog_validate(str(tmp_path / "o.tif"), strict=True) == (True, [], [])
    with opened(tmp_path / "o.tif") as after:
        assert after.block_shapes == [(512, 512)] * 3
        assert after.overviews(1) == [2, 4]
        assert after.compression.name == "deflate"


@pytest.mark.program("gdalinfo")
def test_gdal_s_own_tool_sees_a_cog_with_the_same_metadata(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "a.tif",
        pixels(4, rows=400, dtype="uint8"),
        nodata=7,
        before=lambda d: (setattr(d, "descriptions", ("R", "G", "B", "N")), setattr(d, "scales", (0.5,) * 4)),
    )
    copy_product(path, tmp_path / "o.tif")
    told = subprocess.run(["gdalinfo", "-json", str(tmp_path / "o.tif")], capture_output=True, check=True, text=True)
    assert told.stderr == ""
    info = json.loads(told.stdout)
    assert info["geoTransform"] == [399960.0, 5.0, 0.0, 5700000.0, 0.0, -5.0]
    assert info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    assert [b["description"] for b in info["bands"]] == ["R", "G", "B", "N"]
    assert [b["noDataValue"] for b in info["bands"]] == [7] * 4
    assert [b["scale"] for b in info["bands"]] == [0.5] * 4
    assert "Alpha" not in [b["colorInterpretation"] for b in info["bands"]]
    assert info["files"] == [str(tmp_path / "o.tif")]


def test_the_first_overview_is_the_mean_of_its_pixels(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", pixels(rows=600, columns=600))
    copy_product(path, tmp_path / "o.tif")
    with opened(tmp_path / "o.tif") as after:
        small = after.read(1, out_shape=(600, 600)).astype(float)
        mean = after.read(1).reshape(600, 2, 600, 2).mean((1, 3))
    assert np.abs(small - mean).max() <= 1


def test_overviews_show_the_same_validity_for_mask_and_nodata(tmp_path: Path) -> None:
    data = pixels(rows=600, columns=600)
    invalid = np.random.default_rng(1).random((600, 600)) < 0.5
    copy_product(masked_tif(tmp_path / "m.tif", data, invalid), tmp_path / "om.tif")
    data[0][invalid] = 3
    copy_product(write_tif(tmp_path / "n.tif", data, nodata=3), tmp_path / "on.tif")
    with opened(tmp_path / "om.tif") as m, opened(tmp_path / "on.tif") as n:
        for shape in ((600, 600), (300, 300)):
            np.testing.assert_array_equal(m.read_masks(1, out_shape=shape), n.read_masks(1, out_shape=shape))


def test_same_input_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path = masked_tif(tmp_path / "a.tif", pixels(3, rows=600, columns=700), np.eye(600, 700, dtype=bool))
    for out in (tmp_path / "o.tif", tmp_path / "other" / "another name.tiff"):
        copy_product(path, out)
    assert (tmp_path / "o.tif").read_bytes() == (tmp_path / "other" / "another name.tiff").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "o.tif").read_bytes()


def test_stale_sidecars_are_removed_and_strangers_stay(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", pixels())
    for name in ("o.tif.aux.xml", "o.tif.msk", "o.tif.ovr", "o.tfw", "o.txt", "o.tif.txt", "oo.tif.aux.xml"):
        (tmp_path / name).write_text(
            '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
        )
    (tmp_path / "o.tif").write_bytes(b"old")
    upscale(path, tmp_path / "o.tif", model="cubic", overwrite=True)
    left = ["a.tif", "o.tif", "o.tif.report.json", "o.tif.txt", "o.txt", "oo.tif.aux.xml"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    with opened(tmp_path / "o.tif") as after:
        assert after.nodata is None


def test_bigtiff_is_chosen_before_four_gigabytes(tmp_path: Path) -> None:
    with open_raster(write_tif(tmp_path / "a.tif", pixels(2))) as source:
        small = layout_of(replicated(source).header, source, {})
    assert _bigtiff(small) == "NO"
    assert _bigtiff(replace(small, shape=(27386, 27386))) == "NO"
    assert _bigtiff(replace(small, shape=(27387, 27387))) == "YES"
    assert _bigtiff(replace(small, shape=(27386, 27386), scheme="mask")) == "YES"


# refusals and failures --------------------------------------------------------------------------------------------


def test_volumes_odd_names_and_odd_types_are_refused(tmp_path: Path) -> None:
    volume = Header(Grid("zyx", (3, 3, 3), np.eye(4)), (Channel("x", (DEFAULT_PROFILE,) * 3),))
    with pytest.raises(UsageError, match="volume"):
        CogSink().refuse(volume, tmp_path / "o.tif")
    with open_raster(write_tif(tmp_path / "a.tif", pixels())) as source:
        for name in ("o.png", "o", "o.vrt"):
            with pytest.raises(UsageError, match="GeoTIFF"):
                CogSink().refuse(source.header, tmp_path / name)
        for name in ("o.tif", "o.TIFF"):
            CogSink().refuse(source.header, tmp_path / name)
        with pytest.raises(UsageError, match="complex64"):
            CogSink().refuse(replace(source.header, dtype="complex64"), tmp_path / "o.tif")


def test_a_product_never_replaces_its_input(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", pixels())
    before = path.read_bytes()
    with pytest.raises(UsageError, match="its own input"):
        copy_product(path, path)
    assert path.read_bytes() == before


def test_a_missing_folder_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        copy_product(write_tif(tmp_path / "a.tif", pixels()), tmp_path / "none" / "o.tif")


@pytest.mark.parametrize("share", [0.02, 0.6, 0.999])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, share: float) -> None:
    path = write_tif(tmp_path / "a.tif", pixels(2, rows=400, columns=400))
    copy_product(path, tmp_path / "o.tif")
    limit = int((tmp_path / "o.tif").stat().st_size * share)
    (tmp_path / "o.tif").unlink()
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from pipelines.errors import ExportError\n"
        "from tests.srgeo.make_raster import copy_product\n"
        "folder = Path(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try: copy_product(folder / 'a.tif', folder / 'o.tif', 2)\n"
        "except ExportError as error: print('refused', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(limit)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("refused"), done.stdout + done.stderr
    assert str(tmp_path) not in done.stdout
    assert all(line.startswith("_tiff") for line in done.stderr.splitlines())  # libtiff's own words
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


class Endless:
    """A product of any size, made when it is read."""

    def __init__(self, header: Header) -> None:
        self.header = header

    def read(self, box: Box) -> np.ndarray:
        return np.full((len(self.header.channels), *box.shape), 7.0 + box.start[0], np.float32)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from dataclasses import replace\n"
        "from tests.srgeo.make_raster import *; from tests.srgeo.test_cog import Endless\n"
        "from srgeo.raster import open_raster\n"
        "folder = Path(sys.argv[1])\n"
        "with open_raster(folder / 'a.tif') as source:\n"
        "    grid = replace(source.header.grid.rescaled(factor(2)), shape=(int(sys.argv[2]),) * 2)\n"
        "    write_product(source, Endless(replace(source.header, grid=grid)), folder / 'o.tif')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    write_tif(tmp_path / "a.tif", pixels(4))
    peak_kb = [
        int(
            subprocess.run(
                [sys.executable, "-c", program, str(tmp_path), str(n)], capture_output=True, check=True
            ).stdout
        )
        for n in (512, 8192)
    ]
    assert peak_kb[1] - peak_kb[0] < 250_000  # the product has 411 MB, 822 MB as floats
