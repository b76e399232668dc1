"""What bands are taken for, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.degradation import Profile
from pipelines.errors import InputError
from pipelines.image import Header
from srgeo.raster import open_raster
from tests.srgeo.make_raster import pixels, whole, write_tif


def _header(path: Path, data: np.ndarray | None = None, *, names: tuple[str, ...] = (), **options: Any) -> Header:
    def name(dataset: Any) -> None:
        if names:
            dataset.descriptions = names

    write_tif(path, pixels(len(names) or 1) if data is None else data, before=name, **options)
    with open_raster(path) as source:
        return source.header


def test_ordinary_bands_are_imagery_with_the_assumed_default(tmp_path: Path) -> None:
    header = _header(tmp_path / "a.tif", names=("B02", "B03", "B04", "B08"))
    assert [c.kind for c in header.channels] == ["image"] * 4
    assert {c.profiles for c in header.channels} == {(Profile("mtf", 0.3), Profile("mtf", 0.3))}
    assert (header.facts["degradation"].value, header.facts["degradation"].origin) == ("mtf:0.3", "assumed")
    assert (header.modality, header.domain, header.slice_axis, header.dtype) == ("optical", "geo", None, "uint16")
    assert header.problems == ()
    assert "refuse_networks" not in header.facts


def test_a_sensor_named_in_the_metadata_gives_each_band_its_own_blur(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "a.tif",
        pixels(3),
        before=lambda d: (
            d.update_tags(SPACECRAFT_NAME="Sentinel-2A"),
            setattr(d, "descriptions", ("B02", "B04", "B10")),
        ),
    )
    with open_raster(path) as source:
        header = source.header
    assert [str(c.profiles[0]) for c in header.channels] == ["mtf:0.26", "mtf:0.24", "mtf:0.3"]
    assert header.facts["sensor"].value == "Sentinel-2 MSI"


def test_zero_is_nodata_in_undeclared_sentinel_2_only(tmp_path: Path) -> None:
    data = pixels(2)
    data[0, 0] = 0
    for tags, invalid in (({"SPACECRAFT_NAME": "Sentinel-2A"}, 31), ({"QUANTIFICATION_VALUE": "10000"}, 0)):
        path = write_tif(tmp_path / "a.tif", data, after=lambda d, tags=tags: d.update_tags(**tags))
        with open_raster(path) as source:
            assert np.isnan(whole(source)).sum() == invalid
            assert source.header.may_have_invalid == bool(invalid)
            assert any("0 is nodata" in p for p in source.header.problems) == bool(invalid)
    path = write_tif(tmp_path / "b.tif", data, nodata=9, after=lambda d: d.update_tags(SPACECRAFT_NAME="Sentinel-2A"))
    with open_raster(path) as source:
        assert source.header.facts["nodata"].origin == "header"


@pytest.mark.parametrize(
    "name", ["SCL", "QA_PIXEL", "QA_RADSAT", "MSK_CLOUDS", "Fmask", "land cover", "classes", "label", "SCL (classes)"]
)
def test_bands_named_as_classes_are_replicated(tmp_path: Path, name: str) -> None:
    header = _header(tmp_path / "a.tif", names=("B02", name))
    assert [c.kind for c in header.channels] == ["image", "classes"]
    assert any(name in p and "replicated" in p for p in header.problems)


@pytest.mark.parametrize(
    "name", ["B02", "glass", "mosaic", "green", "masked reflectance", "video", "NIR", "aspen", "classic"]
)
def test_ordinary_names_are_not_taken_for_classes(tmp_path: Path, name: str) -> None:
    assert _header(tmp_path / "a.tif", names=("B04", name)).channels[1].kind == "image"


@pytest.mark.parametrize("stem", ["T32UPU_SCL_20m", "LC08_X_QA_PIXEL", "site_labels", "esa_landcover_2020"])
def test_a_single_integer_band_may_be_classes_by_the_name_of_its_file(tmp_path: Path, stem: str) -> None:
    assert _header(tmp_path / f"{stem}.tif").channels[0].kind == "classes"
    assert _header(tmp_path / f"{stem}.tif", pixels(dtype="float32")).channels[0].kind == "image"


@pytest.mark.parametrize("name", ["B02", "SCL", "azimuth"])
def test_the_kind_told_wins_over_names(tmp_path: Path, name: str) -> None:
    path = write_tif(tmp_path / "a.tif", pixels(), after=lambda d: setattr(d, "descriptions", (name,)))
    with open_raster(path, kind="image") as image, open_raster(path, kind="labels") as labels:
        assert image.header.channels[0].kind == "image"
        assert labels.header.channels[0].kind == "classes"
        assert any("--kind says so" in p for p in image.header.problems) == (name != "B02")


def test_the_kind_told_wins_over_nothing_that_the_file_declares(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "p.tif", pixels(dtype="uint8"), photometric="PALETTE",
        before=lambda d: d.write_colormap(1, {3: (1, 2, 3, 255)}),
    )  # fmt: skip
    with open_raster(path, kind="image") as source:
        assert source.header.channels[0].kind == "classes"
        assert not source.header.channels[0].guess


def test_palettes_thematic_layers_categories_and_single_bits_are_classes(tmp_path: Path) -> None:
    small = pixels(dtype="uint8")
    palette = _header(
        tmp_path / "p.tif", small, photometric="PALETTE", after=lambda d: d.write_colormap(1, {3: (1, 2, 3, 255)})
    )
    thematic = _header(tmp_path / "t.tif", small, after=lambda d: d.update_tags(1, LAYER_TYPE="thematic"))
    bit = _header(tmp_path / "b.tif", small % 2, nbits=1)
    (tmp_path / "c.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category>a</Category></CategoryNames></PAMRasterBand>'
        "</PAMDataset>"
    )
    categories = _header(tmp_path / "c.tif", small)
    assert [h.channels[0].kind for h in (palette, thematic, bit, categories)] == ["classes"] * 4


def test_four_bands_of_eight_bits_are_four_image_bands(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16"):
        header = _header(tmp_path / "a.tif", pixels(4, dtype=dtype), photometric="RGB", alpha="NO")
        assert [c.kind for c in header.channels] == ["image"] * 4
        assert not header.may_have_invalid


def test_infrared_that_a_writer_flagged_as_alpha_is_imagery_by_its_name(tmp_path: Path) -> None:
    header = _header(
        tmp_path / "a.tif", pixels(4, dtype="uint8"), names=("R", "G", "B", "NIR"), photometric="RGB", alpha="YES"
    )
    assert [c.kind for c in header.channels] == ["image"] * 4
    assert not header.may_have_invalid
    assert any("taken as imagery" in p for p in header.problems)


def test_a_declared_alpha_band_without_a_name_is_believed_with_a_word(tmp_path: Path) -> None:
    header = _header(tmp_path / "a.tif", pixels(4, dtype="uint8"), photometric="RGB", alpha="YES")
    assert [c.kind for c in header.channels] == ["image", "image", "image", "alpha"]
    assert any("infrared" in p for p in header.problems)


def test_a_band_named_alpha_is_alpha_even_without_the_flag(tmp_path: Path) -> None:
    data = pixels(4, dtype="uint8")
    data[3] = 255
    data[3, 0] = 0
    path = write_tif(tmp_path / "a.tif", data, before=lambda d: setattr(d, "descriptions", ("R", "G", "B", "alpha")))
    with open_raster(path) as source:
        assert source.header.channels[3].kind == "alpha"
        assert np.isnan(whole(source)).sum() == 3 * 31


@pytest.mark.parametrize(
    ("names", "unit", "modality"),
    [
        (("elevation",), "", "elevation"),
        (("DEM",), "", "elevation"),
        (("surface",), "m", "elevation"),
        (("VV", "VH"), "", "radar"),
        (("Sigma0_VV",), "", "radar"),
        (("x",), "dB", "radar"),
    ],
)
def test_surfaces_and_radar_refuse_networks_with_a_reason(
    tmp_path: Path, names: tuple[str, ...], unit: str, modality: str
) -> None:
    path = write_tif(
        tmp_path / "a.tif",
        pixels(len(names), dtype="float32"),
        before=lambda d: (
            setattr(d, "descriptions", names),
            setattr(d, "units", (unit,) * len(names)) if unit else None,
        ),
    )
    with open_raster(path) as source:
        assert source.header.facts["refuse_networks"].value
        assert source.header.modality == modality
        assert [c.kind for c in source.header.channels] == ["image"] * len(names)


def test_a_dem_is_known_by_its_file_name_or_vertical_system(tmp_path: Path) -> None:
    assert "refuse_networks" in _header(tmp_path / "srtm_33.tif").facts
    assert "refuse_networks" in _header(tmp_path / "x.tif", crs="EPSG:32632+5773").facts
    assert "refuse_networks" not in _header(tmp_path / "demo.tif").facts
    assert "refuse_networks" not in _header(tmp_path / "dem_rgb.tif", pixels(3)).facts


def test_angles_are_replicated(tmp_path: Path) -> None:
    assert [c.kind for c in _header(tmp_path / "a.tif", names=("B02", "SZA", "azimuth")).channels][1:] == [
        "classes"
    ] * 2


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.zeros((1, 4, 4), np.complex64), "complex"),
        (np.zeros((1, 4, 4), np.uint64), "64-bit"),
        (np.zeros((1, 4, 4), np.int64), "64-bit"),
    ],
)
def test_samples_that_no_float_can_carry_are_refused(tmp_path: Path, data: np.ndarray, match: str) -> None:
    with pytest.raises(InputError, match=match):
        open_raster(write_tif(tmp_path / "a.tif", data))


def test_inks_are_refused(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", pixels(4, dtype="uint8"), photometric="CMYK")
    with pytest.raises(InputError, match="CMYK"):
        open_raster(path)


def test_lossy_compression_and_indices_are_mentioned(tmp_path: Path) -> None:
    lossy = _header(tmp_path / "a.tif", pixels(3, dtype="uint8"), compress="JPEG", photometric="YCBCR", tiled=True)
    assert any("JPEG" in p for p in lossy.problems)
    assert any("index" in p for p in _header(tmp_path / "b.tif", pixels(dtype="float32"), names=("NDVI",)).problems)


def test_the_header_says_nothing_of_the_folder(tmp_path: Path) -> None:
    assert str(tmp_path) not in repr(_header(tmp_path / "a.tif", nodata=0))


def test_a_colour_from_a_sidecar_is_no_obstacle(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", pixels(4))
    bands = '<PAMRasterBand band="4"><ColorInterp>NIR</ColorInterp></PAMRasterBand>'
    path.with_name("a.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    with open_raster(path) as source:
        assert [c.kind for c in source.header.channels] == ["image"] * 4
        assert source.description.bands[3].colour in ("nir", "undefined")


def test_nan_told_of_whole_numbers_makes_none_of_them_nodata(tmp_path: Path) -> None:
    write_tif(tmp_path / "a.tif", np.zeros((1, 8, 8), np.uint16), nodata=0)
    with open_raster(tmp_path / "a.tif", nodata=float("nan")) as source:
        assert not source.header.may_have_invalid
        assert np.isfinite(whole(source)).all()
