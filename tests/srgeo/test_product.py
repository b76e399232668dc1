"""What a product says: its place, validity, bands and tags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine

from pipelines.image import ArraySource
from srgeo.raster import grid_of, open_raster
from tests.srgeo.make_raster import (
    NORTH_UP,
    TRANSFORMS,
    UTM,
    copy_product,
    factor,
    masked_tif,
    opened,
    pixels,
    product_of,
    replicated,
    whole,
    write_product,
    write_tif,
)

# place ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("scale", [2, 3])
def test_the_transform_is_exactly_the_input_s_over_the_scale(tmp_path: Path, name: str, scale: int) -> None:
    copy_product(write_tif(tmp_path / "a.tif", pixels(), transform=TRANSFORMS[name]), tmp_path / "o.tif", scale)
    with opened(tmp_path / "a.tif") as before, opened(tmp_path / "o.tif") as after:
        assert after.transform == before.transform @ Affine.scale(1 / scale)
        assert after.shape == (24 * scale, 31 * scale)
        assert after.crs == before.crs


@pytest.mark.parametrize("name", ["north-up", "rotated", "sheared", "south-up"])
def test_a_scale_that_does_not_fill_the_field_of_view_shares_its_centre(tmp_path: Path, name: str) -> None:
    path = write_tif(tmp_path / "a.tif", pixels(rows=25, columns=31), transform=TRANSFORMS[name])
    with open_raster(path) as source:
        product = product_of(source, np.full((1, 63, 78), 100.0), "5/2")
        write_product(source, product, tmp_path / "o.tif")
        with open_raster(tmp_path / "o.tif") as again:
            centre = [np.mean(s.header.grid.faces(), axis=0) for s in (source, again)]
            np.testing.assert_allclose(centre[0], centre[1], rtol=0, atol=1e-8)
            assert again.header.grid.same_place(product.header.grid)
            np.testing.assert_allclose(
                np.array(source.header.grid.spacing) / again.header.grid.spacing, 2.5, rtol=1e-12
            )


@pytest.mark.parametrize(
    "crs",
    [
        UTM,
        "EPSG:4326",
        "EPSG:3577",
        "EPSG:2263",
        "EPSG:32632+5773",
        None,
        "+proj=laea +lat_0=52.5 +lon_0=10.25 +ellps=GRS80",
    ],
)
def test_the_crs_survives_and_the_frame_is_the_same(tmp_path: Path, crs: str | None) -> None:
    copy_product(write_tif(tmp_path / "a.tif", pixels(), crs=crs), tmp_path / "o.tif")
    with opened(tmp_path / "a.tif") as before, opened(tmp_path / "o.tif") as after:
        assert before.crs == after.crs
        assert (before.crs and before.crs.to_wkt()) == (after.crs and after.crs.to_wkt())
    with open_raster(tmp_path / "a.tif") as a, open_raster(tmp_path / "o.tif") as o:
        assert a.header.grid.frame == o.header.grid.frame


def test_point_files_keep_tag_and_affine(tmp_path: Path) -> None:
    copy_product(
        write_tif(tmp_path / "a.tif", pixels(), after=lambda d: d.update_tags(AREA_OR_POINT="Point")),
        tmp_path / "o.tif",
    )
    with opened(tmp_path / "o.tif") as after:
        assert after.transform == NORTH_UP @ Affine.scale(0.5)
        assert after.tags()["AREA_OR_POINT"] == "Point"


@pytest.mark.parametrize("kind", ["Area", "Point"])
def test_ground_control_points_are_rescaled(tmp_path: Path, kind: str) -> None:
    points = [
        GroundControlPoint(r, c, 400000 + 10 * c, 5e6 - 10 * r, 7.5, f"p{r}-{c}")
        for r, c in ((0, 0), (24, 0), (3.25, 30.5))
    ]
    path = write_tif(tmp_path / "a.tif", pixels(), transform=None, before=lambda d: setattr(d, "gcps", (points, d.crs)))
    if kind == "Point":
        with opened(path) as d:
            crs = d.crs
        path = write_tif(
            tmp_path / "b.tif",
            pixels(),
            transform=None,
            before=lambda d: (d.update_tags(AREA_OR_POINT="Point"), setattr(d, "gcps", (points, crs))),
        )
    copy_product(path, tmp_path / "o.tif", 3)
    with opened(path) as before, opened(tmp_path / "o.tif") as after:
        assert len(after.gcps[0]) == 3
        assert after.gcps[1] == before.gcps[1]
        for a, b in zip(before.gcps[0], after.gcps[0], strict=True):
            assert (b.row, b.col) == pytest.approx((3 * a.row, 3 * a.col), abs=1e-9)
            assert (a.x, a.y, a.z, a.id) == (b.x, b.y, b.z, b.id)
    with open_raster(path) as a, open_raster(tmp_path / "o.tif") as o:
        assert o.header.grid.same_place(a.header.grid.rescaled(factor(3)))


def test_rpc_are_rescaled_around_pixel_centres(tmp_path: Path) -> None:
    terms = [1.0, *[0.01 * n for n in range(1, 20)]]
    rpc = RPC(
        height_off=100, height_scale=500, lat_off=45, lat_scale=0.1, line_den_coeff=terms, line_num_coeff=terms,
        line_off=1000.25, line_scale=1001, long_off=10, long_scale=0.1, samp_den_coeff=terms, samp_num_coeff=terms,
        samp_off=2000.75, samp_scale=2002, err_bias=1.5, err_rand=0.5,
    )  # fmt: skip
    path = write_tif(tmp_path / "a.tif", pixels(), transform=None, crs=None, before=lambda d: setattr(d, "rpcs", rpc))
    copy_product(path, tmp_path / "o.tif", 4)
    with opened(tmp_path / "o.tif") as after:
        got = after.rpcs
    assert got.line_off == pytest.approx((1000.25 + 0.5) * 4 - 0.5, abs=1e-9)
    assert got.samp_off == pytest.approx((2000.75 + 0.5) * 4 - 0.5, abs=1e-9)
    assert (got.line_scale, got.samp_scale) == (4004, 8008)
    assert got.line_num_coeff == terms
    assert (got.lat_off, got.height_scale) == (45, 500)


def test_a_reference_grid_gives_its_own_transform(tmp_path: Path) -> None:
    reference = Affine(4, 0, 400000, 0, -4, 5699900)
    grid = grid_of(
        open_raster(write_tif(tmp_path / "r.tif", pixels(rows=9, columns=8), transform=reference)).description
    )
    with open_raster(write_tif(tmp_path / "a.tif", pixels())) as source:
        header = replace(source.header, grid=grid, may_have_invalid=True)
        data = np.full((1, 9, 8), 50.0, np.float32)
        data[0, :2] = np.nan
        write_product(source, ArraySource(data, header), tmp_path / "o.tif")
    with opened(tmp_path / "o.tif") as after:
        assert after.transform.almost_equals(reference, 1e-9)
    with open_raster(tmp_path / "o.tif") as again:
        assert again.header.grid.same_place(grid)
        np.testing.assert_array_equal(whole(again), data)


# validity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64", "int32"])
@pytest.mark.parametrize("way", ["nodata", "mask"])
def test_validity_and_values_survive(tmp_path: Path, dtype: str, way: str) -> None:
    data = pixels(2, dtype=dtype)
    invalid = np.random.default_rng(1).random((24, 31)) < 0.3
    if way == "mask":
        path = masked_tif(tmp_path / "a.tif", data, invalid)
    else:
        data[0][invalid] = 5
        data[1][~invalid] = 5
        path = write_tif(tmp_path / "a.tif", data, nodata=5)
    copy_product(path, tmp_path / "o.tif")
    with open_raster(path) as a, open_raster(tmp_path / "o.tif") as o:
        np.testing.assert_array_equal(whole(o), whole(a).repeat(2, 1).repeat(2, 2))
    with opened(path) as before, opened(tmp_path / "o.tif") as after:
        assert before.dtypes == after.dtypes
        assert before.nodata == after.nodata
        assert before.mask_flag_enums == after.mask_flag_enums
        np.testing.assert_array_equal(after.read_masks(), before.read_masks().repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize(("dtype", "value"), [("int32", -2147483647), ("uint32", 4294967291), ("float64", 1 / 3)])
def test_wide_types_keep_every_digit(tmp_path: Path, dtype: str, value: float) -> None:
    data = pixels(dtype=dtype)
    data[0, 3] = value
    copy_product(write_tif(tmp_path / "a.tif", data), tmp_path / "o.tif")
    with opened(tmp_path / "o.tif") as after:
        np.testing.assert_array_equal(after.read(), data.repeat(2, 1).repeat(2, 2))


def test_alpha_stays_alpha_and_is_no_image(tmp_path: Path) -> None:
    data = pixels(4, dtype="uint8")
    data[3] = 255
    data[3, 5:9] = 0
    copy_product(write_tif(tmp_path / "a.tif", data, photometric="RGB", alpha="YES"), tmp_path / "o.tif")
    with opened(tmp_path / "o.tif") as after:
        assert [c.name for c in after.colorinterp] == ["red", "green", "blue", "alpha"]
        np.testing.assert_array_equal(after.read(4), data[3].repeat(2, 0).repeat(2, 1))
    with open_raster(tmp_path / "o.tif") as again:
        assert np.isnan(whole(again)[:3]).sum() == 3 * 4 * 4 * 31


def test_an_alpha_band_that_was_not_asked_for_becomes_a_mask(tmp_path: Path) -> None:
    data = pixels(4, dtype="uint8")
    data[3] = 255
    data[3, 5:9] = 0
    path = write_tif(tmp_path / "a.tif", data, photometric="RGB", alpha="YES")
    copy_product(path, tmp_path / "o.tif", bands=(1, 2, 3))
    with opened(tmp_path / "o.tif") as after:
        assert after.count == 3
        np.testing.assert_array_equal(after.read_masks(1), data[3].repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_nodata_of_each_band_becomes_one_value_without_a_sidecar(tmp_path: Path, dtype: str) -> None:
    data = pixels(2, dtype=dtype)
    data[0, 0], data[1, 1], data[0, 2] = 5, 7, 7
    data[1, 3, 0] = 0  # the first value that comes to mind is taken
    path = write_tif(tmp_path / "a.tif", data)
    bands = (f'<PAMRasterBand band="{n}"><NoDataValue>{v}</NoDataValue></PAMRasterBand>' for n, v in ((1, 5), (2, 7)))
    path.with_name("a.tif.aux.xml").write_text(f"<PAMDataset>{''.join(bands)}</PAMDataset>")
    copy_product(path, tmp_path / "o.tif")
    with open_raster(path) as a, open_raster(tmp_path / "o.tif") as o:
        np.testing.assert_array_equal(whole(o), whole(a).repeat(2, 1).repeat(2, 2))
        assert len({repr(b.nodata) for b in o.description.bands}) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "a.tif.aux.xml", "o.tif"]


def test_an_invalid_sample_nobody_announced_becomes_a_mask(tmp_path: Path) -> None:
    with open_raster(write_tif(tmp_path / "a.tif", pixels(2, rows=600, columns=20))) as source:
        product = replicated(source)
        samples = whole(product)
        samples[:, -3:] = np.nan  # in the second window
        write_product(source, ArraySource(samples, product.header), tmp_path / "o.tif")
    with open_raster(tmp_path / "o.tif") as again:
        np.testing.assert_array_equal(whole(again), samples)


def test_told_nodata_is_declared_in_the_product(tmp_path: Path) -> None:
    data = pixels()
    data[0, 0] = 12
    copy_product(write_tif(tmp_path / "a.tif", data), tmp_path / "o.tif", nodata=12)
    with opened(tmp_path / "o.tif") as after:
        assert after.nodata == 12


def test_ringing_over_dark_water_makes_no_holes(tmp_path: Path) -> None:
    data = pixels()
    data[0, 0] = 0
    with open_raster(write_tif(tmp_path / "a.tif", data, nodata=0)) as source:
        product = replicated(source)
        samples = whole(product)
        samples[0, 10:12] = -3.2
        samples[0, 14, 0] = 70000.0
        counts = write_product(source, ArraySource(samples, product.header), tmp_path / "o.tif")
    with opened(tmp_path / "o.tif") as after:
        stored = after.read(1)
        assert (after.read_masks(1) == 0).sum() == 2 * 62
        assert (stored[10:12] == 1).all()
        assert stored[14, 0] == 65535
        assert after.tags()["TRUESCALE_CLIPPED"] == "125"
    assert counts == {"clipped": 125.0}


def test_bits_limit_the_range_and_are_kept(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", pixels() % 4096, nbits=12)
    with open_raster(path) as source:
        samples = np.full((1, 48, 62), 5000.0, np.float32)
        samples[0, 0] = 4000
        counts = write_product(source, product_of(source, samples), tmp_path / "o.tif")
    assert counts["clipped"] == 47 * 62
    with opened(tmp_path / "o.tif") as after:
        assert (after.read(1)[0] == 4000).all()
        assert (after.read(1)[1:] == 4095).all()
        assert after.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "12"


# metadata ---------------------------------------------------------------------------------------------------------


def test_what_the_bands_say_is_carried_over(tmp_path: Path) -> None:
    def describe(d: Any) -> None:
        d.descriptions = ("B02", "B08")
        d.scales, d.offsets = (0.0001, 0.0002), (-0.1, 0.0)
        d.units = ("reflectance", "reflectance")
        d.update_tags(1, WAVELENGTH="490", STATISTICS_MEAN="3")
        d.update_tags(2, WAVELENGTH="842")
        d.update_tags(
            TIFFTAG_DATETIME="2020:01:02 03:04:05", TIFFTAG_XRESOLUTION="72", TIFFTAG_YRESOLUTION="36",
            SENSOR="x", STATISTICS_MAXIMUM="9", OVERVIEW_RESAMPLING="CUBIC", OVR_RESAMPLING_ALG="NEAREST",
        )  # fmt: skip
        d.update_tags(ns="MY_DOMAIN", b="2", a="1")

    copy_product(write_tif(tmp_path / "a.tif", pixels(2), before=describe), tmp_path / "o.tif")
    with opened(tmp_path / "a.tif") as before, opened(tmp_path / "o.tif") as after:
        for name in ("descriptions", "scales", "offsets", "units", "colorinterp", "dtypes"):
            assert getattr(before, name) == getattr(after, name)
        assert after.tags(1) == {"WAVELENGTH": "490"}
        assert after.tags(2) == {"WAVELENGTH": "842"}
        assert after.tags() == {
            "AREA_OR_POINT": "Area",
            "OVR_RESAMPLING_ALG": "AVERAGE",  # as the product's own overviews are made
            "SENSOR": "x",
            "TIFFTAG_DATETIME": "2020:01:02 03:04:05",
            "TIFFTAG_XRESOLUTION": "144",
            "TIFFTAG_YRESOLUTION": "72",
            "TRUESCALE_CLIPPED": "0",
            "TRUESCALE_DEGRADATION": "mtf:0.3",
            "TRUESCALE_DOMAIN_MY_DOMAIN": json.dumps({"a": "1", "b": "2"}),
            "TRUESCALE_MODEL": "floor",
            "TRUESCALE_SOFTWARE": "truescale 0.1.0",
        }


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(
    "colours",
    [
        ["gray", "undefined", "undefined", "undefined"],
        ["red", "green", "blue", "undefined"],
        ["blue", "green", "red", "undefined"],
        ["red", "green", "blue", "nir"],
    ],
)
def test_four_band_imagery_never_becomes_rgba(tmp_path: Path, dtype: str, colours: list[str]) -> None:
    path = write_tif(
        tmp_path / "a.tif",
        pixels(4, dtype=dtype),
        photometric="RGB" if colours[0] == "red" else "MINISBLACK",
        before=lambda d: setattr(d, "colorinterp", [ColorInterp[c] for c in colours]),
    )
    copy_product(path, tmp_path / "o.tif")
    with opened(path) as before, opened(tmp_path / "o.tif") as after:
        assert ColorInterp.alpha not in after.colorinterp
        assert before.colorinterp == after.colorinterp
        assert (after.read_masks() == 255).all()


def test_a_palette_is_kept_and_its_codes_are_only_repeated(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).choice([0, 10, 20, 30, 40], (1, 700, 600)).astype(np.uint8)
    colours = {n: (n, 2 * n, 3 * n, 255) for n in (0, 10, 20, 30, 40)}
    path = write_tif(tmp_path / "a.tif", codes, photometric="PALETTE", before=lambda d: d.write_colormap(1, colours))
    copy_product(path, tmp_path / "o.tif")
    with opened(path) as before, opened(tmp_path / "o.tif") as after:
        assert after.colormap(1) == before.colormap(1)
        assert after.colorinterp == before.colorinterp
        np.testing.assert_array_equal(after.read(1), codes[0].repeat(2, 0).repeat(2, 1))
        for level in after.overviews(1):
            small = after.read(1, out_shape=(after.height // level, after.width // level))
            assert set(np.unique(small)) <= {0, 10, 20, 30, 40}
        assert after.overviews(1)


def test_classes_without_a_palette_get_no_averaged_overviews(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).choice([3, 10, 40], (1, 600, 600)).astype(np.uint8)
    path = write_tif(tmp_path / "a.tif", codes, before=lambda d: setattr(d, "descriptions", ("SCL",)))
    copy_product(path, tmp_path / "o.tif")
    with opened(tmp_path / "o.tif") as after:
        assert set(np.unique(after.read(1, out_shape=(600, 600)))) <= {3, 10, 40}


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".o.tif.partial"
    left.mkdir()
    (left / "plain.tif").write_bytes(b"half")
    copy_product(write_tif(tmp_path / "a.tif", pixels()), tmp_path / "o.tif", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "o.tif"]
