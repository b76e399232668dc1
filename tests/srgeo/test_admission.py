"""What is refused before GDAL sees a file, and before a header makes it allocate."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

import srgeo.admission
from pipelines.errors import InputError
from srgeo.raster import grid_of_reference, open_raster
from tests.srgeo.make_raster import NORTH_UP, opened, pixels, write_tif

VRT = """<VRTDataset rasterXSize="4" rasterYSize="4">
<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">
<SourceFilename relativeToVRT="0">{}</SourceFilename></VRTRasterBand></VRTDataset>"""


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL must not be asked at all."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("GDAL was asked to open it")

    monkeypatch.setattr(srgeo.admission.rasterio, "open", refuse)


@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize("name", ["a.vrt", "a.tif", "A.TIFF", "scene"])
def test_a_vrt_is_refused_under_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(VRT.format("/etc/hostname"))
    with pytest.raises(InputError, match="VRT"):
        open_raster(tmp_path / name)
    with pytest.raises(InputError, match="VRT"):
        grid_of_reference(tmp_path / name)


@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize(
    ("text", "match"),
    [
        (VRT.format("/etc/hostname"), "VRT"),
        (" \n<VRTDataset>", "VRT"),
        ("https://example.org/a.tif", "remote"),
        ("s3://bucket/a.tif", "remote"),
        ("s3:/bucket/a.tif", "remote"),
        ("file:///data/a.tif", "remote"),
        ("/vsicurl/https://example.org/a.tif", "remote"),
        ("/vsizip/a.zip/a.tif", "remote"),
        ("/vsimem/a.tif", "remote"),
        ("SENTINEL2_L1C:/a/MTD_MSIL1C.xml:10m:EPSG_32632", "SENTINEL2_L1C"),
        ("GTIFF_DIR:1:a.tif", "GTIFF_DIR"),
        ("NETCDF:a.nc:x", "NETCDF"),
        ("MEM:::DATAPOINTER=1", "MEM"),
    ],
)
def test_paths_that_are_no_local_file_are_refused(text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        open_raster(text)
    with pytest.raises(InputError, match=match):
        open_raster(Path(text))


@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000 is not read yet"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x89PNG\r\n", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"hello", "no GeoTIFF"),
        (b"II*", "no GeoTIFF"),
    ],
)
def test_other_contents_are_refused_with_their_name(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(InputError, match=match):
        open_raster(path)


@pytest.mark.usefixtures("never_opened")
def test_safe_products_are_refused_as_folder_zip_and_inside(tmp_path: Path) -> None:
    folder = tmp_path / "S2A_MSIL1C_X.SAFE"
    folder.mkdir()
    (folder / "MTD_MSIL1C.xml").write_text("<a/>")
    with zipfile.ZipFile(tmp_path / "S2A_MSIL1C_X.zip", "w") as archive:
        archive.writestr("x", "y")
    for path in (folder, folder / "MTD_MSIL1C.xml", tmp_path / "S2A_MSIL1C_X.zip"):
        with pytest.raises(InputError, match=r"SAFE.*not read yet"):
            open_raster(path)


@pytest.mark.usefixtures("never_opened")
def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        open_raster(tmp_path / "none.tif")
    with pytest.raises(InputError, match="regular file"):
        open_raster(tmp_path)


@pytest.mark.parametrize("ending", [".msk", ".ovr"])
def test_a_disguised_mask_beside_the_file_is_refused(tmp_path: Path, ending: str) -> None:
    path = write_tif(tmp_path / "a.tif", pixels())
    (tmp_path / f"a.tif{ending}").write_text(VRT.format("/etc/hostname"))
    with pytest.raises(InputError, match="no TIFF"):
        open_raster(path)


def test_a_header_that_declares_terabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=1_000_000, height=1_000_000, count=2, dtype="uint8", tiled=True,
        blockxsize=4096, blockysize=4096, sparse_ok=True, bigtiff="YES", crs="EPSG:32632", transform=NORTH_UP,
    ):  # fmt: skip
        pass
    assert path.stat().st_size < 5_000_000
    with pytest.raises(InputError, match="2 TB"):
        open_raster(path)


@pytest.mark.parametrize("tiled", [True, False])
def test_a_block_that_decodes_to_too_much_is_refused(tmp_path: Path, tiled: bool) -> None:
    path = tmp_path / "a.tif"
    blocks = {"blockxsize": 16384, "blockysize": 16384, "tiled": True} if tiled else {"blockysize": 20000}
    with rasterio.open(
        path, "w", driver="GTiff", width=20000, height=20000, count=1, dtype="uint16", sparse_ok=True, **blocks,
        compress="deflate", crs="EPSG:32632", transform=NORTH_UP,
    ):  # fmt: skip
        pass
    with pytest.raises(InputError, match="blocks of"):
        open_raster(path)


def test_more_bands_than_any_sensor_has_are_refused(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", np.zeros((4097, 1, 1), np.uint8))
    with pytest.raises(InputError, match="4097 bands"):
        open_raster(path)


def test_a_directory_that_points_outside_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 0x7FFFFFFF))
    with pytest.raises(InputError):
        open_raster(path)


def test_big_endian_and_big_tiff_are_read(tmp_path: Path) -> None:
    data = pixels()
    for n, options in enumerate(({"endianness": "BIG"}, {"bigtiff": "YES"}, {"endianness": "BIG", "bigtiff": "YES"})):
        path = write_tif(tmp_path / f"{n}.tif", data, **options)
        with opened(path) as dataset, open_raster(path) as source:
            np.testing.assert_array_equal(
                source.read(source.header.grid and next(source.blocks(10**6))), dataset.read()
            )
