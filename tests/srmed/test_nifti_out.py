from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own usage
from numpy.typing import NDArray

from pipelines.degradation import Profile
from pipelines.errors import ExportError, InputError, UsageError
from pipelines.grid import Box, Factor, Frame, Grid
from pipelines.image import IN_PLANE, ArraySource, Channel, Header, Source, slabs
from srmed.dicom import open_dicom
from srmed.geometry import grid_from_ras
from srmed.nifti import NiftiSink, open_nifti
from tests.contracts.source_contract import FailingSource, SinkContract, whole
from tests.srmed.make_dicom import Series
from tests.srmed.make_nifti import THICK, edit_header, samples, write_nifti
from tests.srmed.test_geometry import rotation

NOTE = {"software": "truescale 0.1.0", "model": "floor"}


def product_of(source: Source, scale: tuple[int, int, int] = (5, 1, 1)) -> ArraySource:
    """Random samples on a finer grid of a source."""
    grid = source.header.grid.rescaled(Factor(tuple(Fraction(s) for s in scale)))
    values = np.random.default_rng(3).normal(100, 30, grid.shape).astype(np.float32)
    return ArraySource(values, replace(source.header, grid=grid, dtype="float32"))


def volume(shape: tuple[int, int, int] = (6, 5, 4), affine: NDArray[np.float64] = THICK) -> ArraySource:
    """A product that came from nowhere."""
    grid = grid_from_ras(affine, shape[::-1])
    header = Header(grid, (Channel("intensity", (Profile("slice", 5), IN_PLANE, IN_PLANE)),), domain="med")
    return ArraySource(np.random.default_rng(4).normal(0, 1, shape).astype(np.float32), header)


class NiftiSinkContract(SinkContract):
    def sink(self) -> NiftiSink:
        return NiftiSink()

    def product(self) -> Source:
        affine = THICK.copy()
        affine[:3, :3] = rotation(20, -15, 30) @ affine[:3, :3]
        return volume(affine=affine)

    def open(self, path: Path) -> Source:
        return open_nifti(path)


class TestPlain(NiftiSinkContract):
    suffix = ".nii"


class TestCompressed(NiftiSinkContract):
    suffix = ".nii.gz"


def written(path: Path, original: Path, scale: tuple[int, int, int] = (5, 1, 1)) -> tuple[Path, ArraySource]:
    with open_nifti(original) as source:
        product = product_of(source, scale)
        NiftiSink().write(product, source, path, NOTE)
    return path, product


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("angles", [(0, 0, 0), (20, -15, 30)])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 3)])
def test_a_product_lies_where_nibabel_and_itk_look_for_it(
    tmp_path: Path, signs: tuple[int, ...], angles: tuple[int, ...], codes: tuple[int, int]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles) @ np.diag(signs) @ np.diag([0.9, 1.1, 5.0])
    affine[:3, 3] = 150, -100, 30
    path, product = written(tmp_path / "b.nii.gz", write_nifti(tmp_path / "a.nii", affine=affine, codes=codes))
    nibabel, itk = nib.load(path), sitk.ReadImage(str(path))
    assert (int(nibabel.header["sform_code"]), int(nibabel.header["qform_code"])) == codes
    values = np.asanyarray(nibabel.dataobj)
    for zyx in ((0, 0, 0), (44, 6, 5), (44, 0, 5)):
        world = product.header.grid.world(np.array(zyx, float))
        ijk = zyx[::-1]
        np.testing.assert_allclose(world, (nibabel.affine @ [*ijk, 1])[:3] * [-1, -1, 1], rtol=0, atol=1e-4)
        np.testing.assert_allclose(world, itk.TransformIndexToPhysicalPoint(ijk), rtol=0, atol=1e-3)
        assert values[ijk] == np.float32(product.read(Box(zyx, tuple(n + 1 for n in zyx)))[0, 0, 0, 0]) == itk[ijk]


@pytest.mark.parametrize("unit", ["meter", "micron", "mm"])
def test_the_unit_of_the_file_stays(tmp_path: Path, unit: str) -> None:
    path, product = written(tmp_path / "b.nii", write_nifti(tmp_path / "a.nii", units=unit))
    image = nib.load(path)
    assert image.header.get_xyzt_units()[0] == unit
    np.testing.assert_allclose(image.header.get_zooms(), [1.0, 0.9, 1.0], rtol=1e-6)
    with open_nifti(path) as again:
        np.testing.assert_allclose(again.header.grid.affine, product.header.grid.affine, rtol=1e-6, atol=1e-6)


def test_the_header_keeps_what_holds_and_drops_the_rest(tmp_path: Path) -> None:
    original = write_nifti(
        tmp_path / "a.nii",
        cal_min=3.0,
        cal_max=800.0,
        toffset=7.0,
        intent_code=1001,
        intent_p1=2.0,
        intent_name=b"Canary",
        descrip=b"Canary Quentin 1901",
        aux_file=b"Canary",
        db_name=b"Canary",
        slice_code=1,
        slice_start=0,
        slice_end=4,
        slice_duration=0.5,
        dim_info=3 << 4 | 1 << 2 | 2,
    )
    edit_header(original, pixdim=[1, 1, 0.9, 5, 2.5, 0, 0, 0])
    path, _ = written(tmp_path / "b.nii", original)
    old, new = nib.load(original).header, nib.load(path).header
    changed = {name for name in new if not np.array_equal(new[name], old[name])}
    assert changed == {
        *("dim", "pixdim", "datatype", "bitpix", "srow_z", "qoffset_z", "scl_slope", "scl_inter"),
        *("descrip", "aux_file", "db_name", "intent_name", "slice_code", "slice_end", "slice_duration"),
    }
    assert bytes(new["descrip"]).rstrip(b"\0") == b"truescale 0.1.0"
    assert float(new["pixdim"][4]) == 2.5
    assert b"Canary" not in path.read_bytes()


def test_extensions_are_dropped(tmp_path: Path) -> None:
    image = nib.Nifti1Image(samples(), THICK)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Canary Quentin"))
    nib.save(image, tmp_path / "a.nii")
    path, _ = written(tmp_path / "b.nii", tmp_path / "a.nii")
    assert b"Canary" not in path.read_bytes()
    assert list(nib.load(path).header.extensions) == []


def test_no_form_stays_no_form_and_lies_at_the_same_place(tmp_path: Path) -> None:
    path, product = written(tmp_path / "b.nii", write_nifti(tmp_path / "a.nii", codes=(0, 0)), scale=(5, 2, 1))
    header = nib.load(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    with open_nifti(path) as again:
        np.testing.assert_allclose(again.header.grid.affine, product.header.grid.affine, atol=1e-5)


def test_another_grid_than_the_made_up_one_gets_a_form(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", codes=(0, 0))) as source:
        product = product_of(source)
        moved = replace(product.header, grid=product.header.grid.crop(Box((3, 0, 0), (9, 7, 6))))
        part = ArraySource(np.zeros((6, 7, 6), np.float32), moved)
        NiftiSink().write(part, source, tmp_path / "b.nii", NOTE)
    with open_nifti(tmp_path / "b.nii") as again:
        np.testing.assert_allclose(again.header.grid.affine, moved.grid.affine, atol=1e-5)


def test_a_slightly_sheared_grid_has_no_qform(tmp_path: Path) -> None:
    affine = THICK.copy()
    affine[1, 2] = 0.08
    path, product = written(tmp_path / "b.nii", write_nifti(tmp_path / "a.nii", affine=affine, codes=(1, 1)))
    header = nib.load(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    with open_nifti(path) as again:
        np.testing.assert_allclose(again.header.grid.affine, product.header.grid.affine, atol=1e-5)


def test_integers_become_unscaled_floats(tmp_path: Path) -> None:
    path, product = written(tmp_path / "b.nii.gz", write_nifti(tmp_path / "a.nii", scaling=(0.5, -1024.0)))
    image = nib.load(path)
    assert image.get_data_dtype() == np.float32
    assert (image.dataobj.slope, image.dataobj.inter) == (1.0, 0.0)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).T, whole(product)[0])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
def test_label_maps_keep_their_integers(tmp_path: Path, dtype: str) -> None:
    labels = (samples() % 100).astype(dtype)
    original = write_nifti(tmp_path / "a_dseg.nii", labels)
    with open_nifti(original) as source:
        product = ArraySource(whole(source), replace(source.header, dtype="float32"))  # the input's type counts
        report = NiftiSink().write(product, source, tmp_path / "b_dseg.nii.gz", NOTE)
    image = nib.load(tmp_path / "b_dseg.nii.gz")
    assert image.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), labels)
    assert report["clipped"] == 0


def test_labels_outside_the_type_are_clipped_and_counted(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a_dseg.nii", samples().astype(np.uint8))) as source:
        values = np.zeros(source.header.grid.shape, np.float32)
        values[0, 0, :3] = 300, -1, 255
        product = ArraySource(values, source.header)
        assert NiftiSink().write(product, source, tmp_path / "b_dseg.nii", NOTE)["clipped"] == 2
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "b_dseg.nii").dataobj)[:3, 0, 0], [255, 0, 255])


def test_invalid_samples_stay_invalid(tmp_path: Path) -> None:
    product = volume()
    values = whole(product)[0]
    values[1, 2, 3] = np.nan
    NiftiSink().write(ArraySource(values, product.header), None, tmp_path / "b.nii", NOTE)
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "b.nii").dataobj).T, values)


def test_a_dicom_series_becomes_a_nifti_at_the_same_place(tmp_path: Path) -> None:
    row, column = rotation(20, -15, 30)[:, 0], rotation(20, -15, 30)[:, 1]
    folder = Series(orientation=(*row, *column)).write(tmp_path / "in")
    with open_dicom(folder) as source:
        product = product_of(source, (4, 1, 1))
        NiftiSink().write(product, source, tmp_path / "b.nii.gz", NOTE)
    image, itk = nib.load(tmp_path / "b.nii.gz"), sitk.ReadImage(str(tmp_path / "b.nii.gz"))
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    for zyx in ((0, 0, 0), (23, 4, 6)):
        world = product.header.grid.world(np.array(zyx, float))
        np.testing.assert_allclose(world, itk.TransformIndexToPhysicalPoint(zyx[::-1]), rtol=0, atol=1e-3)


def test_more_than_32767_slices_are_nifti_2(tmp_path: Path) -> None:
    product = volume((40000, 1, 1), np.diag([1.0, 1.0, 0.1, 1.0]))
    NiftiSink().write(product, None, tmp_path / "b.nii", NOTE)
    image = nib.load(tmp_path / "b.nii")
    assert isinstance(image, nib.Nifti2Image)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).T, whole(product)[0])
    with open_nifti(tmp_path / "b.nii") as again:
        assert again.header.grid.shape == (40000, 1, 1)


@pytest.mark.parametrize("name", ["out", "out.dcm", "OUT.DCM"])
def test_dicom_out_is_not_yet(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"DICOM out: not yet. Write \.nii\.gz"):
        NiftiSink().refuse(volume().header, tmp_path / name)


@pytest.mark.parametrize("name", ["out.mgz", "out.tif", "out.gz", "out.img"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be written as"):
        NiftiSink().refuse(volume().header, tmp_path / name)


def test_an_image_of_two_channels_is_refused(tmp_path: Path) -> None:
    header = volume().header
    with pytest.raises(UsageError, match="2 channels"):
        NiftiSink().refuse(replace(header, channels=header.channels * 2), tmp_path / "b.nii")


def test_a_flat_image_is_refused(tmp_path: Path) -> None:
    flat = Header(Grid("yx", (4, 4), np.eye(3), Frame()), volume().header.channels)
    with pytest.raises(UsageError, match="yx"):
        NiftiSink().refuse(flat, tmp_path / "b.nii")


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srmed.nifti.SLAB_SAMPLES", 20)
    failing = FailingSource(volume(), InputError(what="planted"), good=3)
    with pytest.raises(InputError, match="planted"):
        NiftiSink().write(failing, None, tmp_path / "b.nii.gz", NOTE)  # type: ignore[arg-type]  # forwards all but read
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        NiftiSink().write(volume(), None, tmp_path / "nowhere" / "b.nii", NOTE)


class Zeros(ArraySource):
    """A large product that takes no memory."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        small = volume()
        super().__init__(whole(small)[0], small.header)
        self._header = replace(small.header, grid=replace(small.header.grid, shape=shape))

    def read(self, box: Box) -> NDArray[np.float32]:
        return np.zeros((1, *box.shape), np.float32)


def test_writing_holds_a_few_slices_at_a_time(tmp_path: Path) -> None:
    product = Zeros((600, 256, 256))  # 157 MB
    tracemalloc.start()
    NiftiSink().write(product, None, tmp_path / "b.nii.gz", NOTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    with open_nifti(tmp_path / "b.nii.gz") as again:
        for box in slabs(again.header.grid.shape, 8_000_000):
            assert not again.read(box).any()
