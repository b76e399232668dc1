"""Real scans of several vendors: each one ends in a usable Source or in a clear error, never in another exception."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from pipelines.errors import GeometryError, InputError, TruescaleError
from pipelines.image import Source
from srmed.dicom import open_dicom
from srmed.nifti import NiftiSink, open_nifti
from tests.contracts.source_contract import whole

pytestmark = pytest.mark.data

ROOT = Path(os.environ.get("TRUESCALE_DATA", "/nonexistent")) / "med"

USABLE_DICOM = {
    "canon_dti_b0": (40, 80, 80, 3.0, 3.0),
    "hitachi_oblique_noise": (4, 64, 64, 4.0, 4.0),
    "knee_ge_mese_oblique_bigendian": (12, 256, 256, 4.0, 3.0),
    "philips_mprage_private_scaling": (5, 256, 256, 1.0, 1.0),
    "siemens_2d_t1_sag": (14, 256, 256, 4.8, 4.0),
}
"""Slices, rows, columns, distance of the slices and thickness [mm], from `dicom_series.csv` and the files' tags."""

REFUSED_DICOM = {
    "cr_single_j2k": "modality is CR",
    "ct_cspine_jpeg_lossless_single": "1 slice",
    "ct_ge_tilt_irregular": "2 stacks",
    "damaged_truncated_jpeg_lossless": "1 slice",
    "deflated_single": "screenshot",
    "emri_small_syntaxes": "multi-frame",
    "enhanced_ct_2frames": "multi-frame",
    "ge_three_plane_localizer": "localizer.*orientation",
    "knee_enhanced_mr_cine": "multi-frame",
    "philips_enhanced_t1_t2_10mm": "multi-frame",
    "philips_epi_gap_oblique": "differ in time point",
    "pydicom_us": "modality is US",
    "siemens_mosaic_syntaxes": "mosaic",
    "siemens_xa30_enhanced_t1": "multi-frame",
    "uih_dti_grid": "mosaic",
}

REFUSED_NIFTI = {
    "analyze_header_only.hdr": "magic",
    "bigendian_float_zstat.nii.gz": "statistic",
    "fourd_oblique_int16.nii.gz": "4-D",
    "fourd_slope_inter.nii": "4-D",
    "int8_4d_qform_only.nii.gz": "4-D",
    "nifti2_4d.nii.gz": "4-D",
    "parrec_t1.PAR": "not a NIfTI",
    "parrec_t1.REC": "not a NIfTI",
    "qform_only_inter_fieldmap.nii.gz": "physical quantity",
    "rgb24.nii.gz": "colour",
    "sform_shear_differs_from_qform_ct.nii.gz": "tilted by 18",
    "tiny_oblique_4d.mgz": "not a NIfTI",
    "vector_5d_zero_pixdim.nii.gz": "5-D|pixdim",
}


def names(folder: str, pattern: str = "*") -> list[str]:
    return sorted(p.name for p in (ROOT / folder).glob(pattern))


def check(source: Source) -> None:
    with source:
        header, values = source.header, whole(source)
        assert values.shape == (1, *header.grid.shape)
        assert np.isfinite(values).any()
        assert np.isfinite(values).all() or header.may_have_invalid
        assert header.channels[0].kind == "classes" or np.ptp(values[np.isfinite(values)]) > 0
        thickness = float(header.facts["thickness_mm"].value or 0)
        assert 0.2 <= thickness / header.grid.spacing[header.slice_axis or 0] <= 3
        assert len(header.anatomical_axes) == 3


@pytest.mark.parametrize("name", sorted(USABLE_DICOM))
def test_a_series_is_usable(data: Path, name: str) -> None:
    *shape, spacing, thickness = USABLE_DICOM[name]
    check(open_dicom(data / "med/dicom" / name))
    with open_dicom(data / "med/dicom" / name) as source:
        assert source.header.grid.shape == tuple(shape)
        assert source.header.grid.spacing[0] == pytest.approx(spacing, abs=1e-4)
        assert source.header.facts["thickness_mm"].value == thickness


@pytest.mark.parametrize("name", sorted(REFUSED_DICOM))
def test_a_series_is_refused_with_its_reason(data: Path, name: str) -> None:
    with pytest.raises(InputError, match=REFUSED_DICOM[name]):
        open_dicom(data / "med/dicom" / name)


def test_every_folder_is_accounted_for(data: Path) -> None:
    assert {p.name for p in (data / "med/dicom").iterdir()} == {*USABLE_DICOM, *REFUSED_DICOM}


def test_a_tilted_ct_is_refused_even_alone(data: Path, tmp_path: Path) -> None:
    for file in (data / "med/dicom/ct_ge_tilt_irregular").iterdir():
        ds = pydicom.dcmread(file)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.save_as(tmp_path / file.name)
    with pytest.raises(InputError, match=r"unevenly|thickness changes|tilted"):
        open_dicom(tmp_path)


@pytest.mark.parametrize("name", names("quirks"))
def test_a_quirk_is_usable_or_refused(data: Path, name: str) -> None:
    if name in REFUSED_NIFTI:
        with pytest.raises(InputError, match=f"(?i){REFUSED_NIFTI[name]}"):
            open_nifti(data / "med/quirks" / name)
    else:
        check(open_nifti(data / "med/quirks" / name))


@pytest.mark.parametrize("name", names("thick/dev", "*.nii*"))
def test_a_thick_scan_is_usable(data: Path, name: str) -> None:
    check(open_nifti(data / "med/thick/dev" / name))


def test_a_real_tilt_is_a_geometry_error(data: Path) -> None:
    with pytest.raises(GeometryError):
        open_nifti(data / "med/quirks/sform_shear_differs_from_qform_ct.nii.gz")


def test_one_image_in_four_orientations_is_one_image_in_the_world(data: Path) -> None:
    sources = [open_nifti(p) for p in sorted((data / "med/quirks").glob("orient_*"))]
    centres, means, slices = [], [], set()
    for source in sources:
        with source:
            names, axis = source.header.anatomical_axes, source.header.slice_axis
            assert axis is not None
            slices.add(frozenset(names[axis].split("-")))
            assert any("no axis is coarser" in problem for problem in source.header.problems)
            grid, values = source.header.grid, whole(source)[0].astype(np.float64)
            index = np.array(np.meshgrid(*map(np.arange, grid.shape), indexing="ij")).reshape(3, -1)
            weight = values.ravel() / values.sum()
            centres.append(grid.world(index @ weight))
            means.append(values.mean())
    np.testing.assert_allclose(centres, [centres[0]] * len(centres), atol=1e-3)
    np.testing.assert_allclose(means, means[0], rtol=1e-6)
    assert len(slices) == 1


def test_values_and_places_agree_with_nibabel(data: Path) -> None:
    for name in ("qform_only_slope_gap.nii.gz", "someones_anatomy_slope_inter.nii.gz", "bigendian_int16.nii"):
        image = nib.load(data / "med/quirks" / name)
        with open_nifti(data / "med/quirks" / name) as source:
            np.testing.assert_allclose(whole(source)[0], np.asanyarray(image.dataobj).T, rtol=1e-6, atol=1e-6)
            last = np.array(source.header.grid.shape, float) - 1
            ras = (image.affine @ [*last[::-1], 1])[:3]
            np.testing.assert_allclose(source.header.grid.world(last), ras * [-1, -1, 1], atol=1e-3)


def opened(folder: Path) -> str:
    """Everything that is told about a folder or a file."""
    opener = open_dicom if folder.is_dir() else open_nifti
    try:
        with opener(folder) as source:
            return repr(source.header) + source.identity
    except TruescaleError as error:
        return str(error)


SECRETS = ("PatientName", "PatientID", "PatientBirthDate", "InstitutionName", "SeriesDescription", "StudyInstanceUID")


@pytest.mark.parametrize("name", names("dicom"))
def test_no_text_of_a_patient_is_passed_on(data: Path, name: str) -> None:
    told = opened(data / "med/dicom" / name)
    for file in (data / "med/dicom" / name).iterdir():
        ds = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(SECRETS))
        for value in (str(ds.get(key, "")) for key in SECRETS):
            assert len(value) < 4 or value not in told


@pytest.mark.program("dcm2niix")
@pytest.mark.parametrize("name", sorted(set(USABLE_DICOM) - {"hitachi_oblique_noise"}))
def test_dcm2niix_puts_every_corner_at_the_same_place(data: Path, tmp_path: Path, name: str) -> None:
    folder = data / "med/dicom" / name
    command = ["dcm2niix", "-z", "n", "-b", "n", "-f", "volume", "-o", str(tmp_path), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    image = nib.load(next(tmp_path.glob("*.nii")))
    with open_dicom(folder) as source:
        grid = source.header.grid
    for corner in np.ndindex(2, 2, 2):
        zyx = np.array(corner) * (np.array(grid.shape) - 1.0)
        ijk = np.linalg.solve(image.affine, [*(grid.world(zyx) * [-1, -1, 1]), 1.0])[:3]
        nearest = np.rint(ijk)
        apart = image.affine[:3, :3] @ (ijk - nearest)
        assert np.linalg.norm(apart) < 2e-3
        assert sorted(nearest.tolist()) == sorted(np.where(nearest > 0, np.array(image.shape) - 1, 0).tolist())


def test_a_real_scan_survives_writing(data: Path, tmp_path: Path) -> None:
    with open_nifti(data / "med/quirks/thick_7p5mm_float32_oblique.nii.gz") as source:
        NiftiSink().write(source, source, tmp_path / "b.nii.gz", {"software": "truescale"})
        with open_nifti(tmp_path / "b.nii.gz") as again:
            assert again.header.grid.same_place(source.header.grid)
            np.testing.assert_array_equal(whole(again), whole(source))
            assert [again.header.facts[f"{n}_code"].value for n in ("sform", "qform")] == [1, 2]
