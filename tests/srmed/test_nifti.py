from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own usage

from pipelines.errors import GeometryError, InputError
from pipelines.grid import Box
from pipelines.image import IN_PLANE, Source
from srmed.nifti import NiftiSource, open_nifti
from tests.contracts.source_contract import SourceContract, whole
from tests.srmed.make_nifti import THICK, edit_header, samples, write_nifti
from tests.srmed.test_geometry import rotation


class NiftiContract(SourceContract):
    suffix = ".nii"

    def make(self, folder: Path) -> Path:
        return write_nifti(folder / f"volume{self.suffix}")

    def open(self, path: Path) -> Source:
        return open_nifti(path)

    def change(self, path: Path) -> None:
        before = path.stat()
        write_nifti(path, samples(seed=1))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


class TestPlain(NiftiContract):
    def damage(self, path: Path) -> bool:
        path.write_bytes(path.read_bytes()[:-100])
        return False


class TestCompressed(NiftiContract):
    suffix = ".nii.gz"

    def damage(self, path: Path) -> bool:
        content = bytearray(path.read_bytes())
        content[-8] ^= 0xFF  # the checksum
        path.write_bytes(content)
        return True


class TestScaledFloatBigEndian(NiftiContract):
    def make(self, folder: Path) -> Path:
        array = samples().astype(">f4")
        array[0, 0, 0] = np.nan
        return write_nifti(folder / "volume.nii", array, scaling=(2.0, -3.0))

    def change(self, path: Path) -> None:
        write_nifti(path, samples(seed=1).astype(">f4"), scaling=(2.0, -3.0))
        os.utime(path, ns=(1, 1))

    def damage(self, path: Path) -> bool:
        path.write_bytes(path.read_bytes()[:-100])
        return False


def corners(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*[(0, n - 1) for n in shape]))


@pytest.mark.parametrize("angles", [(0, 0, 0), (20, -15, 30)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_every_sample_is_where_nibabel_and_itk_have_it(
    tmp_path: Path, angles: tuple[int, ...], order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles) @ np.eye(3)[:, list(order)] @ np.diag(signs) @ np.diag([0.9, 1.1, 5.2])
    affine[:3, 3] = 13, -22, 31
    path = write_nifti(tmp_path / "volume.nii", affine=affine)
    with open_nifti(path) as source:
        grid, values = source.header.grid, whole(source)[0]
    nibabel, itk = nib.load(path), sitk.ReadImage(str(path))
    seen = np.asanyarray(nibabel.dataobj)
    for zyx in corners(grid.shape):
        ijk = zyx[::-1]
        world = grid.world(np.array(zyx, float))
        np.testing.assert_allclose(world, (nibabel.affine @ [*ijk, 1])[:3] * [-1, -1, 1], atol=1e-3)
        np.testing.assert_allclose(world, itk.TransformIndexToPhysicalPoint(ijk), atol=1e-3)
        assert values[zyx] == seen[ijk] == itk[ijk]


def test_values_are_slope_times_stored_plus_intercept(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", scaling=(0.5, -7.0))) as source:
        np.testing.assert_allclose(whole(source)[0], samples().T * 0.5 - 7, rtol=1e-7)
        assert source.header.facts["scl_slope"].value == 0.5


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_of_zero_or_nan_means_none(tmp_path: Path, slope: float) -> None:
    path = edit_header(write_nifti(tmp_path / "a.nii"), scl_slope=slope, scl_inter=9.0)
    with open_nifti(path) as source:
        np.testing.assert_array_equal(whole(source)[0], samples().T)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", ">i2", ">f4", ">u4"])
def test_every_stored_type_and_byte_order_is_read(tmp_path: Path, dtype: str) -> None:
    array = (samples() % 100).astype(dtype)
    with open_nifti(write_nifti(tmp_path / "a.nii.gz", array)) as source:
        assert source.header.dtype == np.dtype(dtype).newbyteorder("=").name
        np.testing.assert_array_equal(whole(source)[0], array.T)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", version=2)) as source:
        np.testing.assert_array_equal(whole(source)[0], samples().T)


def test_infinite_samples_are_invalid_ones(tmp_path: Path) -> None:
    array = samples().astype(np.float64)
    array[0, 0, 0], array[1, 0, 0], array[2, 0, 0] = np.inf, -np.inf, np.nan
    array[3, 0, 0] = 1e300  # float64 holds it
    with open_nifti(write_nifti(tmp_path / "a.nii", array)) as source:
        assert source.header.may_have_invalid
        values = whole(source)[0]
    assert np.isnan(values[0, 0, :3]).all()
    assert np.isnan(values).sum() == 3


def test_integers_are_always_valid(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii")) as source:
        assert not source.header.may_have_invalid


def test_a_fourth_axis_of_one_is_a_volume(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", samples()[..., None])) as source:
        assert source.header.grid.shape == (9, 7, 6)


@pytest.mark.parametrize(
    ("shape", "says"),
    [((6, 7), "2-D"), ((6, 7, 9, 2), "4-D .*not yet"), ((6, 7, 9, 1, 3), "5-D"), ((6,), "1-D")],
)
def test_other_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_nifti(write_nifti(tmp_path / "a.nii.gz", samples(shape)))


RGB = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(("array", "says"), [(RGB, "colour"), (np.zeros((4, 4, 4), np.complex64), "complex")])
def test_samples_of_several_numbers_are_refused(tmp_path: Path, array: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_nifti(write_nifti(tmp_path / "a.nii", array))


@pytest.mark.parametrize("intent", [3, 5, 24, 1004, 1005, 1007, 2003, 2006])
def test_statistics_vectors_and_warps_are_refused(tmp_path: Path, intent: int) -> None:
    with pytest.raises(InputError, match=f"intent code {intent}"):
        open_nifti(write_nifti(tmp_path / "a.nii", intent_code=intent))


@pytest.mark.parametrize("name", ["sub-1_T1map", "sub-1_part-phase_bold", "zstat1", "sub-1_fieldmap"])
def test_maps_named_as_such_are_refused_unless_the_kind_is_told(tmp_path: Path, name: str) -> None:
    path = write_nifti(tmp_path / f"{name}.nii.gz")
    with pytest.raises(InputError, match=r"as its name says.*say --kind image"):
        open_nifti(path)
    with open_nifti(path, kind="image") as image, open_nifti(path, kind="labels") as labels:
        assert (image.header.channels[0].kind, labels.header.channels[0].kind) == ("image", "classes")
        assert any("taken as an image: --kind says so" in line for line in image.header.problems)


def test_the_kind_told_does_not_admit_a_map_that_the_header_declares(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "zstat1.nii", intent_code=5)
    with pytest.raises(InputError, match="intent code 5") as refused:
        open_nifti(path, kind="image")
    assert "--kind" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "sub-1_dseg",
        "sub-1_desc-brain_mask",
        "brain_seg",
        "spine_labels",
        "aseg",
        "aparc+aseg",
        "sub-1_space-T1w_probseg",
    ],
)
def test_label_maps_are_classes_by_name(tmp_path: Path, name: str) -> None:
    with open_nifti(write_nifti(tmp_path / f"{name}.nii.gz")) as source:
        assert source.header.channels[0].kind == "classes"
        assert any("label map" in line for line in source.header.problems)


@pytest.mark.parametrize("name", ["sub-1_T1w", "brainmask", "segmented_T2w", "masked"])
def test_other_names_are_images(tmp_path: Path, name: str) -> None:
    with open_nifti(write_nifti(tmp_path / f"{name}.nii.gz")) as source:
        assert source.header.channels[0].kind == "image"
        assert not any("label map" in line for line in source.header.problems)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_label_maps_are_classes_by_type(tmp_path: Path, dtype: str) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", samples().astype(dtype))) as source:
        assert source.header.channels[0].kind == "classes"


@pytest.mark.parametrize(("name", "dtype"), [("a_dseg", "int16"), ("a", "int64"), ("a", "int16")])
def test_the_kind_told_wins_over_name_and_type(tmp_path: Path, name: str, dtype: str) -> None:
    path = write_nifti(tmp_path / f"{name}.nii", samples().astype(dtype))
    with open_nifti(path, kind="image") as image, open_nifti(path, kind="labels") as labels:
        assert (image.header.channels[0].kind, labels.header.channels[0].kind) == ("image", "classes")


def test_the_kind_told_does_not_win_over_the_intent(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", intent_code=1002), kind="image") as source:
        assert source.header.channels[0].kind == "classes"


def test_label_maps_need_no_thickness(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a_dseg.nii")) as source:
        assert not any("thickness" in line for line in source.header.problems)


def test_label_maps_are_classes_by_intent(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", intent_code=1002)) as source:
        assert source.header.channels[0].kind == "classes"


# ---- damaged files


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        open_nifti(tmp_path / "nothing.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("content", [b"", b"x" * 1000, b"\x1f\x8b\x08", gzip.compress(b""), gzip.compress(b"x" * 999)])
def test_a_file_that_is_no_nifti_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(InputError):
        open_nifti(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("kept", [10, 200, 347, 352, 500, -1])
def test_a_truncated_plain_file_is_refused_when_opened(tmp_path: Path, kept: int) -> None:
    path = write_nifti(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError):
        open_nifti(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_compressed_file_is_refused_at_the_latest_when_read(tmp_path: Path, share: float) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", samples((40, 40, 20)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError), open_nifti(path) as source:
        whole(source)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_flipped_byte_in_a_compressed_file_is_found(tmp_path: Path, place: float) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", samples((40, 40, 20)))
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(InputError), open_nifti(path) as source:
        list(map(source.read, source.blocks(5000)))


def test_a_compressed_file_with_fewer_samples_than_announced_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii")
    short = gzip.compress(path.read_bytes()[:-100])
    (tmp_path / "b.nii.gz").write_bytes(short)
    with open_nifti(tmp_path / "b.nii.gz") as source, pytest.raises(InputError, match="more samples than it holds"):
        whole(source)


def test_a_header_that_announces_an_absurd_size_is_refused_when_opened(tmp_path: Path) -> None:
    path = edit_header(write_nifti(tmp_path / "a.nii"), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("a.nii", "b.nii.gz"):
        with pytest.raises(InputError, match="announces"):
            open_nifti(tmp_path / name)


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": [0, 6, 7, 9, 1, 1, 1, 1]},
        {"dim": [3, 6, 0, 9, 1, 1, 1, 1]},
        {"dim": [3, -6, 7, 9, 1, 1, 1, 1]},
        {"datatype": 0},
        {"datatype": 1},
        {"datatype": 999},
        {"datatype": 1536},
        {"magic": b"ni1"},
        {"magic": b"xyz"},
        {"vox_offset": 3},
        {"vox_offset": -4},
        {"vox_offset": 1e9},
        {"vox_offset": np.nan},
        {"scl_slope": np.inf},
        {"scl_slope": 1, "scl_inter": np.nan},
        {"sizeof_hdr": 100},
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(InputError):
        open_nifti(edit_header(write_nifti(tmp_path / "a.nii"), **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"srow_x": [0, 0, 0, 0], "srow_y": [0, 0, 0, 0], "srow_z": [0, 0, 0, 0]},
        {"srow_x": [np.nan, 0, 0, 0]},
        {"srow_x": [np.inf, 0, 0, 0]},
        {"srow_x": [0, 1, 0, 0]},
        {"pixdim": [1, 1, 0, 5, 0, 0, 0, 0]},
        {"pixdim": [1, 1, np.nan, 5, 0, 0, 0, 0]},
        {"sform_code": 0, "quatern_b": 2},
        {"sform_code": 0, "quatern_b": np.nan},
        {"sform_code": 0, "qoffset_x": np.nan},
    ],
)
def test_a_place_that_makes_no_sense_is_a_geometry_error(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(GeometryError):
        open_nifti(edit_header(write_nifti(tmp_path / "a.nii"), **fields))


# ---- place


def test_the_sform_wins_and_a_difference_is_told(tmp_path: Path) -> None:
    path = edit_header(write_nifti(tmp_path / "a.nii"), qoffset_x=3.0)
    with open_nifti(path) as source:
        np.testing.assert_allclose(source.header.grid.world([0, 0, 0]), [0, 0, 0], atol=1e-6)
        assert any("voxels apart" in line for line in source.header.problems)


def test_forms_that_agree_are_not_mentioned(tmp_path: Path) -> None:
    with open_nifti(edit_header(write_nifti(tmp_path / "a.nii"), qoffset_x=0.05)) as source:
        assert not any("apart" in line for line in source.header.problems)


def test_a_qform_alone_is_used(tmp_path: Path) -> None:
    affine = THICK.copy()
    affine[:3, 3] = 3, -4, 5
    with open_nifti(write_nifti(tmp_path / "a.nii", affine=affine, codes=(0, 1))) as source:
        np.testing.assert_allclose(source.header.grid.world([0, 0, 0]), [-3, 4, 5], atol=1e-5)
        assert source.header.facts["affine_from"].value == "qform"


def test_no_form_at_all_is_told(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", codes=(0, 0))) as source:
        assert any("made up" in line for line in source.header.problems)
        assert source.header.grid.spacing == pytest.approx((5.0, 0.9, 1.0))


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_units_become_millimetres(tmp_path: Path, unit: str, scale: float) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", units=unit)) as source:
        assert source.header.grid.spacing == pytest.approx([5 * scale, 0.9 * scale, 1 * scale])
        assert not any("unit" in line for line in source.header.problems)


def test_an_unknown_unit_is_told(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", units=None)) as source:
        assert any("millimetres are assumed" in line for line in source.header.problems)


def test_a_tilted_stack_is_refused_with_its_angle(tmp_path: Path) -> None:
    affine = THICK.copy()
    affine[1, 2] = 5 * np.tan(np.radians(18.5))
    with pytest.raises(GeometryError, match=r"tilted by 18\.5"):
        open_nifti(write_nifti(tmp_path / "a.nii", affine=affine, codes=(1, 0)))


def test_a_shear_below_a_tenth_of_a_pixel_is_kept(tmp_path: Path) -> None:
    affine = THICK.copy()
    affine[1, 2] = 0.05
    with open_nifti(write_nifti(tmp_path / "a.nii", affine=affine, codes=(1, 0))) as source:
        np.testing.assert_allclose(source.header.grid.world([1, 0, 0]), [0, -0.05, 5], atol=1e-6)


# ---- acquisition


def test_an_assumed_thickness_is_a_problem(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii")) as source:
        fact = source.header.facts["thickness_mm"]
        assert (fact.value, fact.unit, fact.origin) == (5.0, "mm", "assumed")
        assert any("thickness is not known" in line for line in source.header.problems)
        assert [str(p) for p in source.header.channels[0].profiles] == ["slice:5", str(IN_PLANE), str(IN_PLANE)]


def sidecar(path: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.with_name(path.name.split(".")[0] + ".json").write_text(text)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_sidecar_gives_the_thickness(tmp_path: Path, suffix: str) -> None:
    path = sidecar(write_nifti(tmp_path / f"a{suffix}"), {"SliceThickness": 4, "MagneticFieldStrength": 1.5})
    with open_nifti(path) as source:
        header = source.header
    assert (header.facts["thickness_mm"].value, header.facts["thickness_mm"].origin) == (4.0, "sidecar")
    assert header.facts["gap_mm"].value == pytest.approx(1.0)
    assert header.facts["magnetic_field_t"].value == 1.5
    assert str(header.channels[0].profiles[0]) == "slice:4"
    assert header.problems == ()


def test_a_thickness_that_was_told_wins(tmp_path: Path) -> None:
    path = sidecar(write_nifti(tmp_path / "a.nii"), {"SliceThickness": 400})
    with open_nifti(path, thickness_mm=3.0) as source:
        assert source.header.facts["thickness_mm"].origin == "told"
        assert str(source.header.channels[0].profiles[0]) == "slice:3"


@pytest.mark.parametrize(
    "content", ["{", "[1]", '"text"', '{"SliceThickness": "thick"}', '{"SliceThickness": -1}', "\xff"]
)
def test_a_bad_sidecar_is_a_problem_and_not_a_crash(tmp_path: Path, content: str) -> None:
    with open_nifti(sidecar(write_nifti(tmp_path / "a.nii"), content)) as source:
        assert any("sidecar" in line and "ignored" in line for line in source.header.problems)
        assert source.header.facts["thickness_mm"].origin == "assumed"


@pytest.mark.parametrize("thickness", [0.9, 15.5])
def test_an_impossible_thickness_is_refused(tmp_path: Path, thickness: float) -> None:
    with pytest.raises(InputError, match="slice thickness of"):
        open_nifti(sidecar(write_nifti(tmp_path / "a.nii"), {"SliceThickness": thickness}))


def test_overlapping_slices_are_fine(tmp_path: Path) -> None:
    with open_nifti(sidecar(write_nifti(tmp_path / "a.nii"), {"SliceThickness": 7.5})) as source:
        assert source.header.facts["gap_mm"].value == pytest.approx(-2.5)


def test_dim_info_names_the_slice_axis(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", dim_info=2 << 4)) as source:  # slices along j
        assert source.header.slice_axis == 1
        assert source.header.facts["thickness_mm"].value == pytest.approx(0.9)


@pytest.mark.parametrize(("spacing", "axis"), [((5, 1, 1), 2), ((1, 5, 1), 1), ((1, 1, 5), 0), ((2, 2, 2), 0)])
def test_the_coarsest_axis_is_the_slice_axis(tmp_path: Path, spacing: tuple[float, ...], axis: int) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii", affine=np.diag([*spacing, 1.0]))) as source:
        assert source.header.slice_axis == axis
        assert source.header.channels[0].profiles[axis].kind == "slice"


def test_ct_has_a_cosine_profile_and_gaussian_noise(tmp_path: Path) -> None:
    by_values = write_nifti(tmp_path / "a.nii", scaling=(1.0, -1024.0))
    by_sidecar = sidecar(write_nifti(tmp_path / "b.nii"), {"Modality": "CT"})
    by_kernel = sidecar(write_nifti(tmp_path / "c.nii"), {"ConvolutionKernel": "B30f"})
    by_name = write_nifti(tmp_path / "sub-1_ct.nii")
    for path in (by_values, by_sidecar, by_kernel, by_name):
        with open_nifti(path) as source:
            channel = source.header.channels[0]
            assert source.header.modality == "CT"
            assert (str(channel.profiles[0]), channel.noise_model, channel.unit) == ("cosine:5", "gaussian", "HU")
    with open_nifti(write_nifti(tmp_path / "d.nii")) as source:
        assert (source.header.modality, source.header.channels[0].noise_model) == ("MR", "rician")


def test_another_modality_is_refused_without_its_text(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        open_nifti(sidecar(write_nifti(tmp_path / "a.nii"), {"Modality": "Canary Quentin"}))
    assert "Quentin" not in str(raised.value)
    with pytest.raises(InputError, match="PT"):
        open_nifti(sidecar(write_nifti(tmp_path / "a.nii"), {"Modality": "PT"}))


def test_a_3d_acquisition_and_its_interpolation_are_told(tmp_path: Path) -> None:
    path = sidecar(write_nifti(tmp_path / "a.nii"), {"SliceThickness": 10, "MRAcquisitionType": "3D"})
    with open_nifti(path) as source:
        assert any("sinc-like" in line for line in source.header.problems)
        assert any("interpolated by the scanner" in line for line in source.header.problems)


def test_free_text_of_the_header_goes_nowhere(tmp_path: Path) -> None:
    path = write_nifti(
        tmp_path / "a.nii", descrip=b"Canary", aux_file=b"Canary", db_name=b"Canary", intent_name=b"Canary"
    )
    with open_nifti(sidecar(path, {"PatientName": "Canary", "SeriesDescription": "Canary"})) as source:
        assert "Canary" not in repr(source.header)


# ---- streaming


def test_a_compressed_file_is_decoded_once_in_block_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", samples((64, 64, 40)))
    rewinds: list[int] = []
    rewind = gzip._GzipReader._rewind  # type: ignore[attr-defined]  # counts what a user waits for
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda self: (rewinds.append(1), rewind(self)))
    with open_nifti(path) as source:
        rewinds.clear()
        for box in source.blocks(64 * 64 * 3):
            source.read(box)
        assert rewinds == []
        source.read(Box((0, 0, 0), (1, 64, 64)))
        assert rewinds == [1]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_memory_is_bounded_by_the_box(tmp_path: Path, suffix: str) -> None:
    path = write_nifti(tmp_path / f"a{suffix}", np.zeros((256, 256, 300), np.int16))  # 39 MB stored
    with open_nifti(path) as source:
        tracemalloc.start()
        for box in source.blocks(256 * 256 * 10):
            source.read(box)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10 * 256 * 256 * 4 + 14e6  # the box, and chunks of 4 MB in a few forms


def test_opening_does_not_decode_the_samples(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = write_nifti(tmp_path / "a.nii", samples((64, 64, 40))).read_bytes()
    content = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "b.nii.gz").write_bytes(content + b"not deflate")
    with NiftiSource(tmp_path / "b.nii.gz") as source:
        assert source.header.grid.shape == (40, 64, 64)


def test_several_threads_may_read(tmp_path: Path) -> None:
    with open_nifti(write_nifti(tmp_path / "a.nii.gz", samples((40, 40, 30)))) as source:
        expected = whole(source)
        boxes = [Box((k, 3, 5), (k + 4, 30, 37)) for k in range(26)]
        with ThreadPoolExecutor(4) as pool:
            for box, values in zip(boxes, pool.map(source.read, boxes), strict=True):
                np.testing.assert_array_equal(values, expected[(slice(None), *box.slices)])


def test_random_damage_of_the_header_never_ends_in_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    for version, length in ((1, 352), (2, 544)):
        content = write_nifti(tmp_path / "a.nii", version=version).read_bytes()
        for _ in range(100):
            damaged = bytearray(content)
            for place in rng.integers(0, length, rng.integers(1, 5)):
                damaged[place] = rng.choice([0, 1, 127, 128, 255])
            (tmp_path / "a.nii").write_bytes(damaged)
            with suppress(InputError), open_nifti(tmp_path / "a.nii") as source:
                assert whole(source).shape == (1, *source.header.grid.shape)


def test_opening_is_cheap_to_import() -> None:
    code = "import sys, srmed, srmed.nifti, srmed.dicom; print([m for m in ('nibabel', 'pydicom') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
