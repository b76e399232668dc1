"""GeoTIFF in: places, windows, validity, and what is refused."""

from __future__ import annotations

import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from pipelines.errors import GeometryError, InputError, UsageError
from pipelines.grid import Box
from pipelines.image import Source
from srgeo.raster import corner_transform, grid_of_reference, open_raster
from tests.contracts.source_contract import SourceContract
from tests.srgeo.make_raster import NORTH_UP, TRANSFORMS, pixels, whole, write_tif


class TestRasterSource(SourceContract):
    def make(self, folder: Path) -> Path:
        return write_tif(folder / "scene.tif", pixels(2), tiled=True, blockxsize=16, blockysize=16, compress="deflate")

    def open(self, path: Path) -> Source:
        return open_raster(path)

    def change(self, path: Path) -> None:
        write_tif(path, pixels(2, seed=1), tiled=True, blockxsize=16, blockysize=16, compress="deflate")

    def damage(self, path: Path) -> bool:
        data = bytearray(path.read_bytes())
        with open_raster(path) as source:
            dataset = source._dataset()
            at = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
            size = int(dataset.get_tag_item("BLOCK_SIZE_0_0", "TIFF", bidx=1))
        data[at : at + size] = b"\xff" * size
        path.write_bytes(data)
        return True


class TestStrippedRasterWithNodata(TestRasterSource):
    def make(self, folder: Path) -> Path:
        return write_tif(folder / "scene.tif", pixels(3, rows=40), nodata=11, compress="lzw", blockysize=7)

    def change(self, path: Path) -> None:
        write_tif(path, pixels(3, rows=40, seed=1), nodata=11, compress="lzw", blockysize=7)


class TestFloatRasterWithNan(TestRasterSource):
    def make(self, folder: Path) -> Path:
        data = pixels(1, dtype="float32")
        data[0, :3, 5] = np.nan
        return write_tif(folder / "scene.tif", data, nodata=np.nan, compress="deflate")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_grid_holds_the_centres_of_the_pixels(tmp_path: Path, name: str) -> None:
    t = TRANSFORMS[name]
    grid = grid_of_reference(write_tif(tmp_path / "a.tif", pixels(), transform=t))
    a, b, c, d, e, f = tuple(t)[:6]
    for row, column in ((0, 0), (23, 30), (7, 19)):
        x, y = a * (column + 0.5) + b * (row + 0.5) + c, d * (column + 0.5) + e * (row + 0.5) + f
        np.testing.assert_allclose(grid.world([row, column]), [x, y], rtol=0, atol=1e-9 * 6e6)
    np.testing.assert_allclose(tuple(corner_transform(grid))[:6], tuple(t)[:6], rtol=1e-12, atol=1e-8)
    assert grid.axes == "yx"
    assert grid.shape == (24, 31)
    assert (grid.frame.unit, grid.frame.kind) == ("m", "map")


@pytest.mark.parametrize(
    ("crs", "unit"), [("EPSG:4326", "degree"), ("EPSG:2263", "us-ft"), ("EPSG:3857", "m"), ("EPSG:2222", "ft")]
)
def test_the_frame_names_unit_and_crs(tmp_path: Path, crs: str, unit: str) -> None:
    grid = grid_of_reference(write_tif(tmp_path / "a.tif", pixels(), crs=crs))
    assert grid.frame.unit == unit
    assert crs.removeprefix("EPSG:") in grid.frame.id
    other = grid_of_reference(write_tif(tmp_path / "b.tif", pixels(), crs="EPSG:32633"))
    assert grid.frame != other.frame


def test_without_crs_the_affine_stays_and_no_frame_is_invented(tmp_path: Path) -> None:
    with open_raster(write_tif(tmp_path / "a.tif", pixels(), crs=None)) as source:
        assert corner_transform(source.header.grid) == NORTH_UP
        assert (source.header.grid.frame.kind, source.header.grid.frame.id) == ("none", "")
        assert any("no CRS" in p for p in source.header.problems)


def test_without_georeference_the_grid_is_in_pixels(tmp_path: Path) -> None:
    with open_raster(write_tif(tmp_path / "a.tif", pixels(), crs=None, transform=None)) as source:
        np.testing.assert_array_equal(source.header.grid.world([0, 0]), [0.5, 0.5])
        assert source.header.grid.frame.unit == "pixel"
        assert any("no georeference" in p for p in source.header.problems)


def test_area_and_point_files_share_the_affine_that_gdal_reports(tmp_path: Path) -> None:
    point = write_tif(tmp_path / "p.tif", pixels(), after=lambda d: d.update_tags(AREA_OR_POINT="Point"))
    area = write_tif(tmp_path / "a.tif", pixels())
    assert grid_of_reference(point) == grid_of_reference(area)


@pytest.mark.parametrize("values", ["0,0,0,0,0,0", "5,nan,0,5,0,-10", "5,10,20,5,1,2", "1,0,0,0,0,-10"])
def test_a_transform_without_area_is_a_geometry_error(tmp_path: Path, values: str) -> None:
    path = write_tif(tmp_path / "a.tif", pixels())
    beside = "<PAMDataset><GeoTransform>{}</GeoTransform></PAMDataset>"
    path.with_name("a.tif.aux.xml").write_text(beside.format(values))
    with pytest.raises(GeometryError):
        open_raster(path)


def test_control_points_alone_give_a_pixel_grid_and_say_so(tmp_path: Path) -> None:
    points = [GroundControlPoint(r, c, 400000 + 10 * c, 5e6 - 10 * r) for r in (0, 24) for c in (0, 31)]
    path = write_tif(tmp_path / "a.tif", pixels(), transform=None, gcps=points)
    with open_raster(path) as source:
        assert source.header.grid.frame.kind == "none"
        assert any("control points" in p for p in source.header.problems)


def test_bands_are_chosen_in_the_order_asked(tmp_path: Path) -> None:
    data = pixels(4)
    path = write_tif(tmp_path / "a.tif", data, after=lambda d: setattr(d, "descriptions", ("B02", "B03", "B04", "B08")))
    with open_raster(path, bands=(4, 1)) as source:
        assert [c.name for c in source.header.channels] == ["B08", "B02"]
        np.testing.assert_array_equal(whole(source), data[[3, 0]].astype(np.float32))
        assert source.header.facts["bands"].value == "4, 1"
    for wrong in ((0,), (5,), (1, 1), ()):
        with pytest.raises(UsageError, match="bands"):
            open_raster(path, bands=wrong)


def test_choosing_bands_or_nodata_changes_the_identity(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", pixels(2))
    identities = {open_raster(path, bands=b, nodata=n).identity for b in (None, (1,), (2,)) for n in (None, 0, 11)}
    assert len(identities) == 9


def test_a_new_sidecar_changes_the_identity(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", pixels())
    before = open_raster(path).identity
    path.with_name("a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    assert open_raster(path).identity != before


def test_reading_outside_is_refused(tmp_path: Path) -> None:
    with open_raster(write_tif(tmp_path / "a.tif", pixels())) as source, pytest.raises(UsageError):
        source.read(Box((0, 0), (25, 31)))


@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 16, "blockysize": 32}, {"blockysize": 5}])
@pytest.mark.parametrize("limit", [1, 31, 200, 512, 1600, 10**9])
def test_blocks_follow_the_file_as_far_as_the_limit_allows(tmp_path: Path, layout: dict[str, int], limit: int) -> None:
    with open_raster(write_tif(tmp_path / "a.tif", pixels(rows=70, columns=50), **layout)) as source:
        boxes = list(source.blocks(limit))
        rows, columns = source.description.block
    hits = np.zeros((70, 50), int)
    for box in boxes:
        hits[box.slices] += 1
        assert box.size <= limit
    assert (hits == 1).all()
    if limit >= rows * 50:
        assert all(b.start[0] % rows == 0 and b.shape[1] == 50 for b in boxes)
    elif limit >= rows * columns:
        assert all(b.start[0] % rows == 0 and b.start[1] % columns == 0 for b in boxes)


def test_threads_read_with_handles_of_their_own(tmp_path: Path) -> None:
    data = pixels(2, rows=300, columns=200)
    path = write_tif(tmp_path / "a.tif", data, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    wrong: list[Box] = []
    with open_raster(path) as source:
        boxes = list(source.blocks(64 * 64)) * 5

        def work(seed: int) -> None:
            for n in np.random.default_rng(seed).permutation(len(boxes)):
                same = np.array_equal(source.read(boxes[n]), data[(slice(None), *boxes[n].slices)])
                wrong.extend([] if same else [boxes[n]])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(source._handles) == 5
    assert not wrong


def test_a_closed_source_opens_again_when_it_is_read(tmp_path: Path) -> None:
    source = open_raster(write_tif(tmp_path / "a.tif", pixels()))
    source.close()
    assert whole(source).shape == (1, 24, 31)
    source.close()


def test_it_pickles_with_its_choices(tmp_path: Path) -> None:
    source = open_raster(write_tif(tmp_path / "a.tif", pixels(3)), bands=(2,), nodata=11)
    again = pickle.loads(pickle.dumps(source))
    assert again.header == source.header
    assert again.header.facts["nodata"].origin == "told"


# validity ---------------------------------------------------------------------------------------------------------


def _garbage(data: np.ndarray, invalid: np.ndarray, value: float) -> np.ndarray:
    result = data.copy()
    result[..., invalid] = value
    return result


def _variant(folder: Path, name: str, data: np.ndarray, invalid: np.ndarray) -> Path:
    path = folder / f"{name}.tif"
    shown = np.where(invalid, 0, 255).astype(np.uint8)
    dirty = data.copy()
    dirty[..., invalid] = np.random.default_rng(3).integers(0, 65535, dirty[..., invalid].shape)
    if name == "mask":
        return write_tif(path, dirty, after=lambda d: d.write_mask(shown))
    if name == "msk":
        flags = {"INTERNAL_MASK_FLAGS_1": "2", "INTERNAL_MASK_FLAGS_2": "2"}
        write_tif(folder / "msk.tif.msk", shown[None], transform=None, crs=None, after=lambda d: d.update_tags(**flags))
        return write_tif(path, dirty)
    if name == "alpha":
        dirty = np.concatenate([dirty, (~invalid)[None].astype(data.dtype)])

        def colours(d: object) -> None:
            d.colorinterp = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]  # type: ignore[attr-defined]

        return write_tif(path, dirty, before=colours)
    kind, value = {
        "nodata 0": ("uint16", 0),
        "nodata 65535": ("uint16", 65535),
        "nodata -9999": ("int16", -9999),
        "nodata nan": ("float32", np.nan),
        "nodata -3.4e38": ("float32", -3.4e38),
        "infinite": ("float32", np.inf),
        "nan undeclared": ("float64", np.nan),
    }[name]
    declared = None if name in ("infinite", "nan undeclared") else value
    return write_tif(path, _garbage(data.astype(kind), invalid, value), nodata=declared)


@pytest.mark.parametrize(
    "name",
    [
        "nodata 0",
        "nodata 65535",
        "nodata -9999",
        "nodata nan",
        "nodata -3.4e38",
        "infinite",
        "nan undeclared",
        "mask",
        "msk",
        "alpha",
    ],
)
def test_every_way_to_mark_invalid_samples_reads_the_same(tmp_path: Path, name: str) -> None:
    data = pixels(2)
    invalid = np.random.default_rng(1).random((24, 31)) < 0.2
    path = _variant(tmp_path, name, data, invalid)
    with open_raster(path) as source:
        samples = whole(source)[:2]
        assert source.header.may_have_invalid
    np.testing.assert_array_equal(samples, np.where(invalid, np.float32(np.nan), data.astype(np.float32)))


def test_integers_without_any_mark_are_all_valid(tmp_path: Path) -> None:
    with open_raster(write_tif(tmp_path / "a.tif", pixels())) as source:
        assert not source.header.may_have_invalid
        assert np.isfinite(whole(source)).all()


def test_validity_is_per_band(tmp_path: Path) -> None:
    data = pixels(2)
    data[0, :5] = 0
    data[1, 10:] = 0
    with open_raster(write_tif(tmp_path / "a.tif", data, nodata=0)) as source:
        np.testing.assert_array_equal(np.isnan(whole(source)), data == 0)


def test_each_band_may_have_its_own_nodata(tmp_path: Path) -> None:
    data = pixels(2)
    data[0, 0] = 5
    data[1, 1] = 7
    data[0, 2] = 7
    path = write_tif(tmp_path / "a.tif", data)
    bands = "".join(
        f'<PAMRasterBand band="{n}"><NoDataValue>{v}</NoDataValue></PAMRasterBand>' for n, v in ((1, 5), (2, 7))
    )
    path.with_name("a.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    with open_raster(path) as source:
        bad = np.isnan(whole(source))
    assert bad[0, 0].all()
    assert bad[1, 1].all()
    assert bad.sum() == 62


def test_told_nodata_wins_over_mask_and_header(tmp_path: Path) -> None:
    data = pixels(1)
    data[0, 0] = 42
    data[0, 5] = 11
    data[0, 6] = 50
    path = write_tif(
        tmp_path / "a.tif",
        data,
        nodata=11,
        after=lambda d: d.write_mask(np.where(np.arange(24)[:, None] == 6, 0, 255).astype("u1").repeat(31, 1)),
    )
    with open_raster(path, nodata=42) as source:
        np.testing.assert_array_equal(np.isnan(whole(source)), data == 42)
        assert source.header.facts["nodata"].origin == "told"
    with open_raster(path) as source:
        bad = np.isnan(whole(source))[0]
        assert bad[6].all()
        assert bad.sum() == 31
        assert any("mask decides" in p for p in source.header.problems)


@pytest.mark.parametrize("place", ["sidecar", "tag", "big tag"])
def test_nodata_that_cannot_occur_is_reported_and_never_matches(tmp_path: Path, place: str) -> None:
    path = write_tif(
        tmp_path / "a.tif",
        pixels(dtype="uint8"),
        nodata=None if place == "sidecar" else 255,
        bigtiff="YES" if place == "big tag" else "NO",
    )
    if place == "sidecar":
        path.with_name("a.tif.aux.xml").write_text(
            '<PAMDataset><PAMRasterBand band="1"><NoDataValue>-9999</NoDataValue></PAMRasterBand></PAMDataset>'
        )
    else:
        content = path.read_bytes()
        assert content.count(b"255\0") == 1
        path.write_bytes(content.replace(b"255\0", b"-99\0"))
    with open_raster(path) as source:
        assert np.isfinite(whole(source)).all()
        assert any("cannot occur" in p for p in source.header.problems)
        assert not source.header.may_have_invalid


@pytest.mark.parametrize("nodata", [-1, -9999, 0.5, 70000])
def test_told_nodata_that_cannot_occur_is_refused(tmp_path: Path, nodata: float) -> None:
    with pytest.raises(UsageError, match="cannot occur in uint16"):
        open_raster(write_tif(tmp_path / "a.tif", pixels()), nodata=nodata)


def test_huge_floats_are_fill_values(tmp_path: Path) -> None:
    data = pixels(dtype="float32")
    data[0, 0, :3] = [9.96921e36, -3.4e38, 1e25]
    with open_raster(write_tif(tmp_path / "a.tif", data)) as source:
        assert np.isnan(whole(source)[0, 0, :3]).tolist() == [True, True, False]


def test_alpha_decides_even_when_it_is_not_among_the_bands_asked(tmp_path: Path) -> None:
    invalid = np.zeros((24, 31), bool)
    invalid[:4] = True
    path = _variant(tmp_path, "alpha", pixels(2), invalid)
    with open_raster(path, bands=(2, 1)) as source:
        assert [c.kind for c in source.header.channels] == ["image", "image"]
        np.testing.assert_array_equal(np.isnan(whole(source)), np.stack([invalid, invalid]))


def test_the_alpha_band_itself_is_always_valid(tmp_path: Path) -> None:
    invalid = np.zeros((24, 31), bool)
    invalid[:4] = True
    with open_raster(_variant(tmp_path, "alpha", pixels(2), invalid)) as source:
        assert [c.kind for c in source.header.channels] == ["image", "image", "alpha"]
        np.testing.assert_array_equal(whole(source)[2], (~invalid).astype(np.float32))


def test_damage_names_the_window_and_no_folder(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", pixels(rows=300, columns=300), compress="deflate", blockysize=10)
    path.write_bytes(path.read_bytes()[:-2000])
    with open_raster(path) as source, pytest.raises(InputError, match=r"a\.tif.*rows 290 to 300") as caught:
        source.read(Box((290, 0), (300, 300)))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("keep", [4, 8, 100, 400])
def test_a_truncated_header_is_an_input_error(tmp_path: Path, keep: int) -> None:
    path = write_tif(tmp_path / "a.tif", pixels())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as caught, open_raster(path) as source:
        whole(source)
    assert str(tmp_path) not in str(caught.value)


def test_nothing_reaches_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tif(tmp_path / "a.tif", pixels(rows=300, columns=300), compress="deflate", blockysize=10)
    path.write_bytes(path.read_bytes()[:-2000])

    def attempt() -> None:
        with pytest.raises(InputError), open_raster(path) as source:
            whole(source)

    attempt()
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert capfd.readouterr().err == ""


def _with_tag_of_another_type(path: Path, tag: int) -> None:
    """The first directory of a small-endian TIFF, where GDAL will ignore a tag and warn."""
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entry = next(
        e for e in range(start + 2, start + 2 + 12 * count, 12) if struct.unpack_from("<H", content, e)[0] == tag
    )
    struct.pack_into("<H", content, entry + 2, 12)
    path.write_bytes(content)


def test_what_gdal_says_of_odd_tags_does_not_reach_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, geo_keys = write_tif(tmp_path / "a.tif", pixels()), 34735
    _with_tag_of_another_type(path, geo_keys)
    with open_raster(path) as source:
        whole(source)
        assert any("no CRS" in line for line in source.header.problems)
    grid_of_reference(path)
    assert capfd.readouterr() == ("", "")


def test_the_affine_of_a_product_of_control_points_is_read_from_its_tag(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "a.tif",
        pixels(),
        transform=None,
        crs=None,
        after=lambda d: d.update_tags(TRUESCALE_PIXEL_GRID="0.5 0 0 0 0.5 0"),
    )
    assert corner_transform(grid_of_reference(path)) == Affine(0.5, 0, 0, 0, 0.5, 0)
