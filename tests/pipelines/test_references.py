"""`--like`: grids of parts, of more, of other axes and of other places."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rasterio
from pydicom.dataset import Dataset
from rasterio.transform import Affine
from scipy import ndimage

from tests.pipelines.files import Run, smooth, write_raster
from tests.srmed.make_dicom import Series


def test_like_takes_the_grid_of_another_file(run: Run, thick: Path, tmp_path: Path) -> None:
    run("upscale", thick, tmp_path / "a.nii.gz", "--model", "floor", "--quiet")
    code, _, err = run(
        "upscale", thick, tmp_path / "b.nii.gz", "--like", tmp_path / "a.nii.gz", "--model", "floor", "--quiet"
    )
    assert code == 0, err
    a, b = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "b.nii.gz")
    assert a.shape == b.shape
    assert np.array_equal(a.affine, b.affine)
    assert np.allclose(a.get_fdata(), b.get_fdata(), rtol=0, atol=0.05)


@pytest.mark.parametrize("turn", [("L", "P", "I"), ("S", "R", "A"), ("A", "I", "R")], ids="".join)
@pytest.mark.parametrize("header", ["nifti", "frequency, phase and slice"])
def test_a_turned_reference_gives_its_own_axes(
    run: Run, thick: Path, tmp_path: Path, turn: tuple[str, ...], header: str
) -> None:
    given = nib.load(thick)
    if header != "nifti":
        given.header.set_dim_info(freq=0, phase=1, slice=2)
        nib.save(nib.Nifti1Image(given.get_fdata(), given.affine, given.header), tmp_path / "t2.nii.gz")
    common = ("--model", "floor", "--quiet", "--noise", "0")
    run("upscale", thick, tmp_path / "a.nii.gz", *common)
    a = nib.load(tmp_path / "a.nii.gz")
    ornt = nib.orientations.ornt_transform(nib.io_orientation(a.affine), nib.orientations.axcodes2ornt(turn))
    nib.save(a.as_reoriented(ornt), tmp_path / "like.nii.gz")
    code, out, err = run("upscale", thick, tmp_path / "b.nii.gz", *common, "--like", tmp_path / "like.nii.gz", "--json")
    assert code == 0, err
    like, b = nib.load(tmp_path / "like.nii.gz"), nib.load(tmp_path / "b.nii.gz")
    report = json.loads(out.splitlines()[-1])
    assert nib.aff2axcodes(b.affine) == turn
    assert report["shape_after"] == list(b.shape[::-1])
    assert np.allclose(b.affine, like.affine, rtol=0, atol=1e-4)
    assert np.allclose(b.get_fdata(), like.get_fdata(), rtol=0, atol=0.02)
    assert report["consistency_rmse"] <= 1e-3
    if header != "nifti":
        came_from = [int(row[0]) for row in ornt]
        assert b.header.get_dim_info() == tuple(came_from)
    code, out, err = run("verify", tmp_path / "b.nii.gz", "--against", thick, "--noise", "0", "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["channels"][0]["rmse"] <= 1e-3


@pytest.mark.parametrize("swapped", [False, True], ids=["south-up", "rows and columns swapped"])
def test_a_turned_raster_as_reference_gives_its_own_transform(
    run: Run, scene: Path, tmp_path: Path, swapped: bool
) -> None:
    with rasterio.open(scene) as given:
        north_up = Affine(5, 0, given.transform.c, 0, -5, given.transform.f)
        rows, columns = 2 * given.height, 2 * given.width
    own = (
        Affine(0, 5, north_up.c, -5, 0, north_up.f)
        if swapped
        else Affine(5, 0, north_up.c, 0, 5, north_up.f - 5 * rows)
    )
    shape = (columns, rows) if swapped else (rows, columns)
    like = write_raster(tmp_path / "like.tif", np.zeros((1, *shape), np.float32), transform=own)
    common = ("--model", "floor", "--quiet", "--noise", "0")
    run("upscale", scene, tmp_path / "a.tif", *common)
    code, out, err = run("upscale", scene, tmp_path / "b.tif", *common, "--like", like, "--json")
    assert code == 0, err
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "b.tif") as b:
        assert b.transform == own
        turned = b.read().swapaxes(1, 2) if swapped else b.read()[:, ::-1]
        assert np.array_equal(turned, a.read())
    code, out, _ = run("verify", tmp_path / "b.tif", "--against", scene, "--noise", "0", "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["channels"][0]["rmse"] <= 0.3


@pytest.mark.parametrize("part", ["top", "middle", "bottom", "larger"])
def test_a_reference_of_a_part_or_of_more_gives_its_grid_and_explains_that_part(
    run: Run, tmp_path: Path, part: str
) -> None:
    scene = write_raster(tmp_path / "s2.tif", smooth((300, 60))[None])
    first, rows = {"top": (0, 200), "middle": (240, 120), "bottom": (400, 200), "larger": (-700, 2400)}[part]
    shift = -700 if part == "larger" else 0
    columns = 1500 if part == "larger" else 120
    like = write_raster(
        tmp_path / "like.tif",
        np.zeros((1, rows, columns), np.float32),
        transform=Affine(5, 0, 500000 + 5 * shift, 0, -5, 5100000 - 5 * first),
    )
    code, out, err = run(
        "upscale", scene, tmp_path / "o.tif", "--like", like, "--model", "floor", "--noise", "0", "--json", "--quiet"
    )
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["consistency_rmse"] <= 1e-3 * 800
    with rasterio.open(tmp_path / "o.tif") as product, rasterio.open(like) as reference:
        assert product.shape == reference.shape
        assert np.allclose(product.transform, reference.transform, rtol=0, atol=1e-6)
        inside = np.isfinite(product.read(1)) & (product.read_masks(1) > 0)
    assert inside.sum() == min(rows, 600) * 120


def test_slices_that_the_reference_cuts_are_told_and_not_counted_as_compared(
    run: Run, thick: Path, tmp_path: Path
) -> None:
    common = ("--model", "floor", "--noise", "0", "--quiet", "--json")
    run("upscale", thick, tmp_path / "a.nii.gz", *common)
    nib.save(nib.load(tmp_path / "a.nii.gz").slicer[:, :, 8:30], tmp_path / "like.nii.gz")
    made = tmp_path / "b.nii.gz"
    code, out, err = run("upscale", thick, made, *common, "--like", tmp_path / "like.nii.gz")
    assert code == 0, err
    report = json.loads(out)
    assert [w.split(": ")[1] for w in report["warnings"] if "not compared" in w] == ["3 slices"]
    assert report["channels"][0]["samples"] == 3 * 30 * 28
    code, out, _ = run("verify", made, "--against", thick, "--noise", "0", "--json", "--quiet")
    found = json.loads(out)
    assert found["channels"][0]["samples"] == 3 * 30 * 28
    assert [part["start"][0] for part in found["parts"] if part["samples"]] == [3, 4, 5]  # 2, 6 and 7 are cut
    assert "of 2520 samples compared" in run("verify", made, "--against", thick, "--noise", "0", "--quiet")[1]


def test_a_reference_of_another_place_is_refused(run: Run, tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "s2.tif", smooth((60, 60))[None])
    like = write_raster(
        tmp_path / "like.tif", np.zeros((1, 50, 50), np.float32), transform=Affine(5, 0, 900000, 0, -5, 5100000)
    )
    code, _, err = run("upscale", scene, tmp_path / "o.tif", "--like", like, "--model", "floor")
    assert code == 2
    assert "overlap" in err


@pytest.mark.parametrize("kind", ["fieldmap", "mask", "t1_dseg", "series", "colour"])
def test_a_reference_need_not_be_an_image(run: Run, thick: Path, tmp_path: Path, kind: str) -> None:
    run("upscale", thick, tmp_path / "a.nii.gz", "--model", "floor", "--quiet")
    a = nib.load(tmp_path / "a.nii.gz")
    shape = (*a.shape, 3) if kind == "series" else a.shape
    data = np.zeros(shape, [("R", "u1"), ("G", "u1"), ("B", "u1")] if kind == "colour" else np.uint8)
    nib.save(nib.Nifti1Image(data, a.affine), tmp_path / f"{kind}.nii.gz")
    common = ("--like", tmp_path / f"{kind}.nii.gz", "--model", "floor", "--json")
    code, out, err = run("upscale", thick, tmp_path / "b.nii.gz", *common, "--quiet")
    assert code == 0, err
    assert nib.load(tmp_path / "b.nii.gz").shape == a.shape
    code, out, err = run("plan", thick, tmp_path / "c.nii.gz", *common)
    assert code == 0, err
    assert json.loads(out)["shape_after"] == list(a.shape[::-1])


def test_a_reference_without_three_axes_in_space_is_refused(run: Run, thick: Path, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(smooth((30, 28)), np.eye(4)), tmp_path / "flat.nii")
    code, _, err = run("upscale", thick, tmp_path / "b.nii.gz", "--like", tmp_path / "flat.nii", "--model", "floor")
    assert code == 3
    assert "three axes" in err


def test_series_of_different_frames_of_reference_have_no_grid_in_common(run: Run, tmp_path: Path) -> None:
    def framed(uid: str) -> Callable[[Dataset, int], None]:
        return lambda ds, _: setattr(ds, "FrameOfReferenceUID", uid)

    size = {"rows": 16, "columns": 18}
    thick = Series(slices=8, **size).write(tmp_path / "thick")
    fine = {"slices": 16, "spacing": 2.4, "thickness": 2.4, "origin": (-30.0, -20.0, 8.8), **size}
    same = Series(**fine).write(tmp_path / "same")
    other = Series(**fine, edit=framed("1.2.3.77")).write(tmp_path / "other")
    unsaid = Series(**fine, edit=framed("")).write(tmp_path / "unsaid")
    common = ("--model", "floor", "--quiet", "--noise", "0")
    for n, like in enumerate((same, unsaid)):
        code, _, err = run("upscale", thick, tmp_path / f"{n}.nii.gz", "--like", like, *common)
        assert code == 0, err
    for command in ("upscale", "plan"):
        code, _, err = run(command, thick, tmp_path / "b.nii.gz", "--like", other, *common)
        assert code == 2
        assert "frame of reference" in err
    code, _, err = run("verify", other, "--against", thick, "--quiet")
    assert code == 2
    assert "frame of reference" in err
    assert run("verify", tmp_path / "0.nii.gz", "--against", thick, "--quiet")[0] == 0


@pytest.mark.parametrize("factor", [0.999999, 1.000001, 0.99998, 1.00002])
def test_a_spacing_that_a_file_has_rounded_is_the_same_spacing(
    run: Run, thick: Path, tmp_path: Path, factor: float
) -> None:
    common = ("--model", "floor", "--quiet", "--noise", "0", "--json")
    code, out, _ = run("upscale", thick, tmp_path / "a.nii.gz", *common)
    plain = json.loads(out.splitlines()[-1])
    a = nib.load(tmp_path / "a.nii.gz")
    rounded = a.affine @ np.diag([factor, factor, 1, 1])
    nib.save(nib.Nifti1Image(np.asarray(a.dataobj), rounded), tmp_path / "like.nii.gz")
    code, out, err = run("upscale", thick, tmp_path / "b.nii.gz", *common, "--like", tmp_path / "like.nii.gz")
    assert code == 0, err
    report = json.loads(out.splitlines()[-1])
    assert report["channels"][0]["degradation"] == plain["channels"][0]["degradation"]
    assert np.allclose(nib.load(tmp_path / "b.nii.gz").get_fdata(), a.get_fdata(), rtol=0, atol=0.1)


def test_an_axis_that_is_only_shifted_is_not_sharpened(run: Run, thick: Path, tmp_path: Path) -> None:
    common = ("--model", "floor", "--quiet", "--noise", "0", "--json")
    run("upscale", thick, tmp_path / "a.nii.gz", *common)
    a = nib.load(tmp_path / "a.nii.gz")
    shifted = a.affine @ nib.affines.from_matvec(np.eye(3), [0.08, 0, 0])
    nib.save(nib.Nifti1Image(np.asarray(a.dataobj), shifted), tmp_path / "like.nii.gz")
    code, out, err = run("upscale", thick, tmp_path / "b.nii.gz", *common, "--like", tmp_path / "like.nii.gz")
    assert code == 0, err
    report = json.loads(out.splitlines()[-1])
    assert "gaussian" not in report["channels"][0]["degradation"]
    assert report["consistency_rmse"] <= 1e-2
    plain = a.get_fdata()[2:-2]
    moved = ndimage.shift(a.get_fdata(), (-0.08, 0, 0), order=3, mode="nearest")[2:-2]
    product = nib.load(tmp_path / "b.nii.gz").get_fdata()[2:-2]
    assert np.diff(product, axis=0).std() <= 1.15 * np.diff(plain, axis=0).std()  # 1.4 with the blur taken back
    assert np.sqrt(np.mean((product - moved) ** 2)) <= 0.1 * plain.std()


def test_a_shift_by_half_a_sample_is_interpolated_and_said_so(run: Run, thick: Path, tmp_path: Path) -> None:
    common = ("--model", "floor", "--quiet", "--noise", "0", "--json")
    run("upscale", thick, tmp_path / "a.nii.gz", *common)
    a = nib.load(tmp_path / "a.nii.gz")
    moved = a.affine @ nib.affines.from_matvec(np.eye(3), [0.5, 0, 0])
    nib.save(nib.Nifti1Image(np.asarray(a.dataobj), moved), tmp_path / "like.nii.gz")
    code, out, err = run("upscale", thick, tmp_path / "b.nii.gz", *common, "--like", tmp_path / "like.nii.gz")
    assert code == 0, err
    assert any("only shifted" in w for w in json.loads(out.splitlines()[-1])["warnings"])
    b = nib.load(tmp_path / "b.nii.gz").get_fdata()
    assert np.nanstd(b) <= 1.05 * np.std(a.get_fdata())  # an inverse would be several times as rough


@pytest.mark.parametrize("offset", [(20, 30), (3.5, 0), (0, 2.5)])
def test_a_raster_reference_of_the_same_pixels_needs_no_network(
    run: Run, scene: Path, tmp_path: Path, offset: tuple[float, float]
) -> None:
    with rasterio.open(scene) as file:
        transform, samples = file.transform, file.read()
    moved = transform @ Affine.translation(*offset[::-1])
    like = write_raster(tmp_path / "like.tif", samples[:1, :20, :12], transform=moved)
    code, out, err = run("upscale", scene, tmp_path / "o.tif", "--like", like, "--quiet", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["model"] == "floor"
    if offset == (20, 30):
        with rasterio.open(tmp_path / "o.tif") as file:
            assert np.array_equal(file.read(), samples[:, 20:40, 30:42])
