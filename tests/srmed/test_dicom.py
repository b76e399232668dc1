from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - its own usage
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from pipelines.errors import GeometryError, InputError
from pipelines.grid import Box
from pipelines.image import IN_PLANE, Source
from srmed import dicom
from srmed.dicom import open_dicom
from tests.contracts.source_contract import SourceContract, whole
from tests.srmed.make_dicom import CANARY, Series
from tests.srmed.test_geometry import rotation


class TestDicomSource(SourceContract):
    def make(self, folder: Path) -> Path:
        return Series().write(folder / "study of somebody")

    def open(self, path: Path) -> Source:
        return open_dicom(path)

    def change(self, path: Path) -> None:
        Series(seed=1).write(path)

    def damage(self, path: Path) -> bool:
        file = path / "slice3"
        file.write_bytes(file.read_bytes()[:-30])
        return True


def oblique(*angles: float) -> tuple[float, ...]:
    turned = rotation(*angles)
    return (*turned[:, 0], *turned[:, 1])


ORIENTATIONS = {
    "axial": (1.0, 0, 0, 0, 1, 0),
    "sagittal": (0.0, 1, 0, 0, 0, -1),
    "coronal": (1.0, 0, 0, 0, 0, -1),
    "upside down": (-1.0, 0, 0, 0, -1, 0),
    "oblique": oblique(20, -15, 30),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_sample_is_where_itk_has_it(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    series = Series(orientation=orientation)
    folder = series.write(tmp_path / "in")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    itk = reader.Execute()
    with open_dicom(folder) as source:
        grid, values = source.header.grid, whole(source)[0]
    np.testing.assert_array_equal(values, series.pixels())
    for zyx in ((0, 0, 0), (5, 4, 6), (5, 0, 0), (0, 4, 0), (0, 0, 6)):
        index = itk.TransformPhysicalPointToContinuousIndex([float(v) for v in grid.world(np.array(zyx, float))])
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        assert itk[tuple(round(v) for v in index)] == values[zyx]


@pytest.mark.program("dcm2niix")
@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_sample_is_where_dcm2niix_puts_it(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    folder = Series(rows=16, columns=20, orientation=orientation).write(tmp_path / "in")
    (tmp_path / "out").mkdir()
    command = ["dcm2niix", "-z", "n", "-b", "n", "-f", "volume", "-o", str(tmp_path / "out"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    image = nib.load(next((tmp_path / "out").glob("*.nii")))
    with open_dicom(folder) as source:
        grid, values = source.header.grid, whole(source)[0]
    seen = np.asanyarray(image.dataobj)
    for zyx in ((0, 0, 0), (5, 15, 19), (5, 0, 0), (2, 7, 3)):
        ras = grid.world(np.array(zyx, float)) * [-1, -1, 1]
        ijk = np.linalg.solve(image.affine, [*ras, 1.0])[:3]
        np.testing.assert_allclose(ijk, np.rint(ijk), atol=1e-3)
        assert seen[tuple(np.rint(ijk).astype(int))] == values[zyx]


def test_thickness_and_gap_come_from_tags_and_positions(tmp_path: Path) -> None:
    with open_dicom(Series().write(tmp_path / "in")) as source:
        header = source.header
    assert (header.facts["thickness_mm"].value, header.facts["thickness_mm"].origin) == (4.0, "header")
    assert header.facts["gap_mm"].value == pytest.approx(0.8)
    assert header.grid.spacing == pytest.approx((4.8, 0.9, 0.8))
    assert [str(p) for p in header.channels[0].profiles] == ["slice:4", str(IN_PLANE), str(IN_PLANE)]
    assert (header.modality, header.slice_axis, header.channels[0].noise_model) == ("MR", 0, "rician")
    assert header.anatomical_axes == ("foot-head", "anterior-posterior", "right-left")
    assert header.problems == ()


def test_spacing_between_slices_is_not_believed(tmp_path: Path) -> None:
    def stale(ds: Dataset, k: int) -> None:
        ds.SpacingBetweenSlices = 0.8

    with open_dicom(Series(edit=stale).write(tmp_path / "in")) as source:
        assert source.header.grid.spacing[0] == pytest.approx(4.8)


@pytest.mark.parametrize("thickness", [None, 0])
def test_a_missing_thickness_is_assumed_and_told(tmp_path: Path, thickness: float | None) -> None:
    with open_dicom(Series(thickness=thickness).write(tmp_path / "in")) as source:
        assert source.header.facts["thickness_mm"].value == 4.8
        assert source.header.facts["thickness_mm"].origin == "assumed"
        assert any("thickness is not known" in line for line in source.header.problems)


def test_a_told_thickness_wins(tmp_path: Path) -> None:
    with open_dicom(Series(thickness=50).write(tmp_path / "in"), thickness_mm=3.5) as source:
        assert str(source.header.channels[0].profiles[0]) == "slice:3.5"


def test_an_impossible_thickness_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="thickness of 50 mm"):
        open_dicom(Series(thickness=50).write(tmp_path / "in"))


def test_a_thickness_that_changes_is_refused(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        ds.SliceThickness = 4 if k < 3 else 3

    with pytest.raises(InputError, match="thickness changes within the series"):
        open_dicom(Series(edit=edit).write(tmp_path / "in"))


def test_rounded_positions_give_the_spacing_that_was_meant(tmp_path: Path) -> None:
    positions = np.zeros((12, 3))
    positions[:, 2] = np.arange(12) * 3.99999 + 7
    with open_dicom(Series(slices=12, positions=positions).write(tmp_path / "in")) as source:
        assert source.header.grid.spacing[0] == 4.0
        np.testing.assert_allclose(source.header.grid.world([11, 0, 0])[2], positions[11, 2], atol=1e-3)


# ---- order and completeness


def test_file_names_and_instance_numbers_do_not_matter(tmp_path: Path) -> None:
    def shuffled(ds: Dataset, k: int) -> None:
        ds.InstanceNumber = (k * 5) % 6 + 1
        ds.SliceLocation = -k

    plain = Series().write(tmp_path / "plain")
    other = Series(names=lambda k: f"IM{(k * 5 + 2) % 6}.x", edit=shuffled).write(tmp_path / "deep" / "er")
    backwards = Series(names=lambda k: f"{9 - k}").write(tmp_path / "backwards")
    with open_dicom(plain) as a, open_dicom(other.parent) as b, open_dicom(backwards) as c:
        assert a.header.grid == b.header.grid == c.header.grid
        np.testing.assert_array_equal(whole(a), whole(b))
        np.testing.assert_array_equal(whole(a), whole(c))


def test_files_that_are_no_slices_are_left_aside_and_counted(tmp_path: Path) -> None:
    folder = Series().write(tmp_path / "in")
    (folder / "readme.txt").write_text("text")
    (folder / "empty").write_bytes(b"")
    (folder / "short").write_bytes(b"DICM")

    def report(ds: Dataset, k: int) -> None:
        ds.Modality, ds.SOPInstanceUID = "SR", "1.2.3.777"
        del ds.Rows, ds.PixelData

    def scout(ds: Dataset, k: int) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    Series(slices=1, edit=report, names=lambda k: "report").write(folder)
    Series(slices=2, edit=scout, number=9, names=lambda k: f"scout{k}").write(folder)
    with open_dicom(folder) as source:
        assert source.header.grid.shape[0] == 6
        assert source.header.facts["files_left_aside"].value == 6
        assert any("left aside" in line for line in source.header.problems)


def test_exact_copies_are_dropped_and_told(tmp_path: Path) -> None:
    folder = Series().write(tmp_path / "in")
    shutil.copy(folder / "slice2", folder / "copy of slice2")
    with open_dicom(folder) as source:
        assert source.header.grid.shape[0] == 6
        assert any("copies of slices dropped: 1" in line for line in source.header.problems)


def test_two_images_at_one_place_are_refused(tmp_path: Path) -> None:
    folder = Series().write(tmp_path / "in")
    Series(seed=1, names=lambda k: f"other{k}").write(folder)
    for k in (0, 1, 3, 4, 5):
        (folder / f"other{k}").unlink()
    with pytest.raises(InputError, match="1 of 6 positions hold different images, first slice 2"):
        open_dicom(folder)


@pytest.mark.parametrize(("missing", "says"), [((3,), "missing: 1, .*after slice 2"), ((3, 4), "missing: 2")])
def test_missing_slices_are_refused(tmp_path: Path, missing: tuple[int, ...], says: str) -> None:
    folder = Series(slices=9).write(tmp_path / "in")
    for k in missing:
        (folder / f"slice{k}").unlink()
    with pytest.raises(InputError, match=says):
        open_dicom(folder)


def moved(slices: int, shift: float) -> np.ndarray:
    positions = np.zeros((slices, 3))
    positions[:, 2] = np.arange(slices) * 5.0
    positions[slices // 2, 2] += shift
    return positions


def test_uneven_slices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="unevenly spaced"):
        open_dicom(Series(positions=moved(8, 0.1)).write(tmp_path / "in"))


def test_slightly_uneven_slices_are_told(tmp_path: Path) -> None:
    with open_dicom(Series(slices=8, positions=moved(8, 0.02)).write(tmp_path / "in")) as source:
        assert any("beside even positions" in line for line in source.header.problems)


def test_rounding_of_positions_is_not_mentioned(tmp_path: Path) -> None:
    with open_dicom(Series(slices=8, positions=moved(8, 0.004)).write(tmp_path / "in")) as source:
        assert source.header.problems == ()


def test_a_tilted_stack_is_refused(tmp_path: Path) -> None:
    positions = np.zeros((6, 3))
    positions[:, 2] = np.arange(6) * 4.8
    positions[:, 1] = np.arange(6) * 4.8 * np.tan(np.radians(18.5))
    with pytest.raises(GeometryError, match=r"tilted by 18\.5"):
        open_dicom(Series(positions=positions).write(tmp_path / "in"))


def test_a_single_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = Series().write(tmp_path / "in")
    with pytest.raises(InputError, match=r"has 1 slice\. .*Give the folder"):
        open_dicom(folder / "slice0")


# ---- several stacks


def test_several_series_are_listed(tmp_path: Path) -> None:
    folder = Series().write(tmp_path / "in")
    Series(number=8, rows=9, slices=4, names=lambda k: f"b{k}").write(folder)
    with pytest.raises(InputError, match=r"series 3: 6 MR images of 5 x 7; series 8: 4 MR images of 9 x 7") as raised:
        open_dicom(folder)
    assert CANARY not in str(raised.value)


def two_values(name: str, *values: object) -> Callable[[Dataset, int], None]:
    def edit(ds: Dataset, k: int) -> None:
        setattr(ds, name, values[k % 2])

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (two_values("EchoTime", 10, 80), "echo time"),
        (two_values("TemporalPositionIdentifier", 1, 2), "time point"),
        (two_values("DiffusionBValue", 0.0, 1000.0), "b-value"),
        (two_values("FrameOfReferenceUID", "1.2.9", "1.2.8"), "frame of reference"),
        (two_values("PixelSpacing", [1, 1], [2, 2]), "pixel spacing"),
        (two_values("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "M", "IR"]), "image type"),
    ],
)
def test_stacks_within_a_series_are_told_apart(tmp_path: Path, edit: Callable[[Dataset, int], None], says: str) -> None:
    with pytest.raises(InputError, match=f"2 stacks.*differ in {says}"):
        open_dicom(Series(slices=8, edit=edit).write(tmp_path / "in"))


def test_a_jittering_echo_time_is_one_stack(tmp_path: Path) -> None:
    with open_dicom(Series(edit=two_values("EchoTime", 30.001, 30.002)).write(tmp_path / "in")) as source:
        assert source.header.grid.shape[0] == 6


def test_several_orientations_are_a_localizer(tmp_path: Path) -> None:
    edit = two_values("ImageOrientationPatient", [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1])
    with pytest.raises(InputError, match=r"localizer.*orientation"):
        open_dicom(Series(edit=edit).write(tmp_path / "in"))


@pytest.mark.parametrize("name", ["PatientID", "StudyInstanceUID"])
def test_different_patients_in_a_series_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="different patients or studies") as raised:
        open_dicom(Series(edit=two_values(name, "1.2.3", "1.2.4")).write(tmp_path / "in"))
    assert "1.2.4" not in str(raised.value)


# ---- kinds


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("NumberOfFrames", 12, "multi-frame.*not yet.*dcm2niix"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"], "mosaic.*not yet"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "P", "ND"], "phase"),
        ("ImageType", ["DERIVED", "PRIMARY", "ADC"], "maps of a quantity"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], "localizer"),
        ("PhotometricInterpretation", "RGB", "colour"),
        ("SamplesPerPixel", 3, "colour"),
        ("Modality", "PT", "the modality is PT"),
        ("Modality", "US", "the modality is US"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7", "screenshot"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4.1", "not a classic slice"),
        ("BurnedInAnnotation", "YES", "burned into"),
        ("ImagePositionPatient", None, "no usable ImagePositionPatient"),
        ("ImageOrientationPatient", None, "no usable ImageOrientationPatient"),
        ("PixelSpacing", None, "no usable PixelSpacing"),
        ("PixelSpacing", [0, 1], "impossible"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "perpendicular"),
        ("ImageOrientationPatient", [2, 0, 0, 0, 1, 0], "perpendicular"),
        ("RescaleSlope", 0, "impossible"),
    ],
)
def test_what_is_no_magnitude_slice_is_refused(tmp_path: Path, name: str, value: object, says: str) -> None:
    def edit(ds: Dataset, k: int) -> None:
        setattr(ds, name, value)

    with pytest.raises(InputError, match=says):
        open_dicom(Series(edit=edit).write(tmp_path / "in"))


def test_a_3d_acquisition_is_told(tmp_path: Path) -> None:
    with open_dicom(Series(edit=two_values("MRAcquisitionType", "3D", "3D")).write(tmp_path / "in")) as source:
        assert any("sinc-like" in line for line in source.header.problems)


def test_a_derived_series_is_told(tmp_path: Path) -> None:
    edit = two_values("ImageType", *[["DERIVED", "SECONDARY", "M"]] * 2)
    with open_dicom(Series(edit=edit).write(tmp_path / "in")) as source:
        assert any("derived" in line for line in source.header.problems)


def test_in_plane_interpolation_is_told(tmp_path: Path) -> None:
    edit = two_values("AcquisitionMatrix", *[[0, 4, 3, 0]] * 2)
    with open_dicom(Series(rows=6, columns=8, edit=edit).write(tmp_path / "in")) as source:
        assert any("in-plane (2x)" in line for line in source.header.problems)


@pytest.mark.parametrize("content", [{}, {"a": b""}, {"a": b"text"}])
def test_a_folder_without_slices_is_refused(tmp_path: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="no MR or CT slice"):
        open_dicom(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such"):
        open_dicom(tmp_path / "nothing")


# ---- values


def test_rescale_is_applied_per_slice(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 0.5 + k, -10 * k

    series = Series(edit=edit)
    with open_dicom(series.write(tmp_path / "in")) as source:
        k = np.arange(6)[:, None, None]
        np.testing.assert_allclose(whole(source)[0], series.pixels() * (0.5 + k) - 10 * k, rtol=1e-6)
        assert source.header.facts["rescale_per_slice"].value is True


@pytest.mark.parametrize("stored", ["uint8", "int16", "uint16", "int32"])
def test_stored_types_are_read(tmp_path: Path, stored: str) -> None:
    series = Series(stored=stored)
    with open_dicom(series.write(tmp_path / "in")) as source:
        assert source.header.dtype == stored
        np.testing.assert_array_equal(whole(source)[0], series.pixels())


def test_signed_12_bit_samples_keep_their_sign(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        stored = np.full((5, 7), -5, np.int16)
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 1
        ds.PixelData = (stored & 0x0FFF).tobytes()

    with open_dicom(Series(stored="int16", edit=edit).write(tmp_path / "in")) as source:
        assert (whole(source) == -5).all()


def test_monochrome1_is_not_inverted(tmp_path: Path) -> None:
    series = Series(edit=two_values("PhotometricInterpretation", "MONOCHROME1", "MONOCHROME1"))
    with open_dicom(series.write(tmp_path / "in")) as source:
        np.testing.assert_array_equal(whole(source)[0], series.pixels())


@pytest.mark.parametrize(("written", "vr"), [(-2000, "SS"), (63536, "US")])
def test_ct_padding_is_invalid_before_rescaling(tmp_path: Path, written: int, vr: str) -> None:
    def edit(ds: Dataset, k: int) -> None:
        pixels = np.frombuffer(ds.PixelData, np.int16).reshape(5, 7).copy()
        pixels[0, 0] = -2000
        ds.PixelData = pixels.tobytes()
        ds.add_new("PixelPaddingValue", vr, written)
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024

    with open_dicom(Series(modality="CT", stored="int16", edit=edit).write(tmp_path / "in")) as source:
        values, header = whole(source)[0], source.header
    assert np.isnan(values[:, 0, 0]).all()
    assert np.isnan(values).sum() == 6
    assert header.may_have_invalid
    assert (str(header.channels[0].profiles[0]), header.channels[0].unit) == ("cosine:4", "HU")
    assert header.channels[0].noise_model == "gaussian"


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_series_are_decoded(tmp_path: Path, syntax: str) -> None:
    def compressed(ds: Dataset, k: int) -> None:
        if syntax == JPEG2000Lossless:
            frame = encode_array(ds.pixel_array, bits_stored=16)
            ds.PixelData = encapsulate([frame])
            ds["PixelData"].is_undefined_length = True
            ds.file_meta.TransferSyntaxUID = syntax
        else:
            ds.compress(syntax, generate_instance_uid=False)

    series = Series(rows=64, columns=64, edit=compressed)
    with open_dicom(series.write(tmp_path / "packed")) as source:
        np.testing.assert_array_equal(whole(source)[0], series.pixels())


@pytest.mark.parametrize(
    ("syntax", "bits", "plugins", "says"),
    [
        ("1.2.840.10008.1.2.4.201", 16, (), r"High-Throughput JPEG 2000.*truescale\[dicom-codecs\]"),
        ("1.2.840.10008.1.2.4.90", 16, (), r"JPEG 2000.*truescale\[dicom-codecs\]"),
        ("1.2.840.10008.1.2.4.51", 12, ("gdcm", "pillow"), r"JPEG Extended.*pylibjpeg-libjpeg"),
        ("1.2.840.10008.1.2.4.100", 8, (), r"MPEG2.*has no decoder"),
    ],
)
def test_a_missing_decoder_is_named_when_opened(
    tmp_path: Path, syntax: str, bits: int, plugins: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: bool(plugins)))
    monkeypatch.setattr(Decoder, "available_plugins", property(lambda self: plugins))

    def edit(ds: Dataset, k: int) -> None:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.BitsStored, ds.HighBit = bits, bits - 1
        ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        ds["PixelData"].is_undefined_length = True

    with pytest.raises(InputError, match=says):
        open_dicom(Series(edit=edit).write(tmp_path / "in"))


def test_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    series = Series()
    folder = series.write(tmp_path / "in")
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        ds.file_meta, ds.preamble = FileMetaDataset(), None
        ds.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert b"DICM" not in file.read_bytes()[:200]
    with open_dicom(folder) as source:
        np.testing.assert_array_equal(whole(source)[0], series.pixels())


def test_a_slice_cut_short_is_named(tmp_path: Path) -> None:
    folder = Series().write(tmp_path / "in")
    file = folder / "slice4"
    file.write_bytes(file.read_bytes()[:-20])
    with open_dicom(folder) as source:
        assert source.read(Box((0, 0, 0), (4, 5, 7))).shape == (1, 4, 5, 7)
        with pytest.raises(InputError, match="slice 4 of 6"):
            whole(source)


@pytest.mark.parametrize("kept", [140, 200, 300, 500])
def test_a_header_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    folder = Series().write(tmp_path / "in")
    file = folder / "slice4"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError):
        open_dicom(folder)


# ---- reading


def test_each_file_is_decoded_once_per_read_and_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    decode = dicom._decode
    monkeypatch.setattr(dicom, "_decode", lambda s: (decoded.append(s.path.name), decode(s))[1])
    monkeypatch.setattr(dicom, "CACHE_BYTES", 2 * 5 * 7 * 4)
    with open_dicom(Series().write(tmp_path / "in")) as source:
        source.read(Box((1, 0, 0), (3, 5, 7)))
        assert decoded == ["slice1", "slice2"]
        source.read(Box((2, 2, 2), (3, 3, 3)))
        assert decoded == ["slice1", "slice2"]
        whole(source)
        source.read(Box((0, 0, 0), (1, 5, 7)))
    assert decoded[2:] == ["slice0", "slice1", "slice2", "slice3", "slice4", "slice5", "slice0"]


def test_nothing_that_identifies_a_patient_is_passed_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Series(edit=two_values("AccessionNumber", CANARY, CANARY)).write(tmp_path / CANARY)
    with open_dicom(folder) as source:
        text = repr(source.header) + source.identity
    for secret in ("Canary", "Quentin", "19010203", "1.2.3.99", "1.2.3.3"):
        assert secret not in text
    assert "Canary" not in caplog.text


def test_errors_do_not_name_the_patient(tmp_path: Path) -> None:
    for edit in (
        two_values("SliceThickness", 1, 2),
        two_values("SeriesInstanceUID", "1.2.3.4.1", "1.2.3.4.2"),
        two_values("PatientID", CANARY, CANARY + "2"),
        two_values("ImagePositionPatient", [0, 0, 0], [0, 0, 9]),
    ):
        folder = Series(slices=3, edit=edit).write(tmp_path / CANARY)
        with pytest.raises(InputError) as raised:
            open_dicom(folder)
        assert "Canary" not in str(raised.value)


def test_random_damage_of_a_slice_never_ends_in_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    folder = Series(slices=4).write(tmp_path / "in")
    file = folder / "slice2"
    content = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(128, len(content), rng.integers(1, 4)):
            damaged[place] = rng.choice([0, 1, 32, 92, 255])
        file.write_bytes(damaged)
        with suppress(InputError), open_dicom(folder) as source:
            assert whole(source).shape == (1, *source.header.grid.shape)
