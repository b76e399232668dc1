"""What cannot be done is refused in one clear line, and nothing half-written is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from pipelines.degradation import Profile
from pipelines.errors import InputError
from pipelines.grid import Factor, Grid
from pipelines.image import ArraySource, Channel, Header
from pipelines.projection import project
from pipelines.request import bytes_text
from tests.pipelines.files import Run, smooth
from tests.srmed.make_dicom import Series

BROKEN: dict[str, tuple[str, Callable[[Path], object], int]] = {
    "missing": ("gone.nii.gz", lambda _: None, 3),
    "empty": ("empty.nii.gz", lambda p: p.write_bytes(b""), 3),
    "unknown kind": ("x.xyz", lambda p: p.write_bytes(b"what is this" * 50), 3),
    "truncated gzip": (
        "cut.nii.gz",
        lambda p: (nib.save(nib.Nifti1Image(smooth((30, 28, 12)), np.diag([1, 1, 4, 1])), p), _cut(p)),
        3,
    ),
    "truncated": (
        "cut.nii",
        lambda p: (nib.save(nib.Nifti1Image(smooth((30, 28, 12)), np.diag([1, 1, 4, 1])), p), _cut(p)),
        3,
    ),
    "2-D": ("flat.nii", lambda p: nib.save(nib.Nifti1Image(smooth((30, 28)), np.eye(4)), p), 3),
    "4-D": ("many.nii", lambda p: nib.save(nib.Nifti1Image(smooth((10, 10, 8, 3)), np.eye(4)), p), 3),
    "all NaN": (
        "nan.nii",
        lambda p: nib.save(nib.Nifti1Image(np.full((9, 9, 8), np.nan, np.float32), np.diag([1, 1, 4, 1])), p),
        3,
    ),
    "constant": (
        "same.nii",
        lambda p: nib.save(nib.Nifti1Image(np.full((9, 9, 8), 5, np.int16), np.diag([1, 1, 4, 1])), p),
        3,
    ),
    "zero affine": ("zero.nii", lambda p: _with_sform(p, np.zeros((3, 4))), 3),
    "NaN affine": ("nanaff.nii", lambda p: _with_sform(p, np.full((3, 4), np.nan)), 3),
    "a VRT by another name": ("x.dat", lambda p: p.write_text('<VRTDataset rasterXSize="9">'), 3),
    "three slices": (
        "few.nii",
        lambda p: nib.save(nib.Nifti1Image(smooth((30, 28, 3)), np.diag([1, 1, 4, 1])), p),
        3,
    ),
    "one slice": (
        "one.nii",
        lambda p: nib.save(nib.Nifti1Image(smooth((30, 28, 1)), np.diag([1, 1, 4, 1])), p),
        3,
    ),
    "remote": ("https://example.org/a.nii", lambda _: None, 3),
}


SAID = {"remote": ("remote",), "is a VRT": ("a VRT by another name",), "slice": ("three slices", "one slice")}
"""Words of the reason, and where they must stand."""


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def _with_sform(path: Path, rows: np.ndarray) -> None:
    image = nib.Nifti1Image(smooth((9, 9, 8)), np.diag([1, 1, 4, 1]))
    header = image.header
    for name, row in zip(("srow_x", "srow_y", "srow_z"), rows, strict=True):
        header[name] = row
    header["sform_code"] = 1
    header["qform_code"] = 0
    with path.open("wb") as file:
        file.write(header.binaryblock + b"\0" * 4 + np.asarray(image.dataobj).tobytes("F"))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_input_ends_in_one_clear_line(run: Run, tmp_path: Path, name: str) -> None:
    file, make, expected = BROKEN[name]
    path = file if "://" in file else tmp_path / file
    if isinstance(path, Path):
        make(path)
    before = sorted(tmp_path.iterdir())
    code, out, err = run("upscale", path, tmp_path / "o.nii.gz", "--scale", "2x1x1", "--model", "floor", "--quiet")
    assert code == expected, err
    assert out == ""
    assert err.startswith("error    ")
    assert err.count("\n") <= 2
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before
    for word, names in SAID.items():
        assert (word in err) or name not in names


USAGE: dict[str, tuple[list[str], int]] = {
    "scale below one": (["--scale", "0.5"], 2),
    "absurd scale": (["--scale", "100x1x1"], 2),
    "scale that is no number": (["--scale", "big"], 2),
    "scale with too many axes": (["--scale", "2x2"], 2),
    "an axis twice": (["--scale", "z=2,z=3"], 2),
    "an impossible thickness": (["--slice-thickness", "50"], 2),
    "spacing and scale": (["--scale", "2", "--spacing", "1"], 2),
    "coarser spacing": (["--spacing", "9x1x1"], 2),
    "its own grid": (["--scale", "1"], 2),
    "unknown model": (["--model", "flor"], 2),
    "unknown degradation": (["--degradation", "sinc:4"], 2),
    "noise that is no number": (["--noise", "loud"], 2),
    "memory too small": (["--memory", "10MB"], 4),
    "memory that is no amount": (["--memory", "lots"], 2),
    "bands of a volume": (["--bands", "1"], 2),
    "a scale beyond numbers": (["--scale", "1e400"], 2),
    "no workers": (["--workers", "0"], 2),
    "negative thickness": (["--slice-thickness", "-3"], 2),
    "unknown option": (["--frobnicate"], 2),
    "a blur wider than any sensor's": (["--degradation", "slice:400"], 2),
    "a blur narrower than any sensor's": (["--degradation", "slice:0.1"], 2),
    "the disk as work folder": (["--work", "/"], 2),
}


@pytest.mark.parametrize("name", USAGE)
def test_a_request_that_cannot_be_met_is_refused_before_any_work(run: Run, thick: Path, name: str) -> None:
    arguments, expected = USAGE[name]
    before = sorted(thick.parent.iterdir())
    model = [] if name == "unknown model" else ["--model", "floor"]
    code, _, err = run("upscale", thick, thick.parent / "o.nii.gz", *model, *arguments)
    assert code == expected, err
    assert "Traceback" not in err
    assert sorted(thick.parent.iterdir()) == before


@pytest.mark.parametrize("spacing", ["9", "4"])
def test_a_spacing_that_no_axis_is_coarser_than_is_named_as_such(run: Run, thick: Path, spacing: str) -> None:
    code, _, err = run("plan", thick, thick.parent / "o.nii.gz", "--spacing", spacing)
    assert code == 2
    assert f"no axis of the input is coarser than {spacing} mm: its spacing is 4 x 1 x 1" in err


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--bands", "0"), "bands 0"),
        (("--bands", "1,1"), "bands 1, 1"),
        (("--bands", "3"), "bands 3"),
        (("--nodata", "-9999"), "cannot occur in uint16"),
    ],
)
@pytest.mark.parametrize("command", ["upscale", "plan", "inspect", "verify"])
def test_what_cannot_be_of_a_raster_is_usage(
    run: Run, scene: Path, tmp_path: Path, command: str, asked: tuple[str, str], said: str
) -> None:
    files = {"inspect": (scene,), "verify": (scene, "--against", scene)}.get(command, (scene, tmp_path / "o.tif"))
    code, _, err = run(command, *files, *asked)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("inspect", "{folder}/gone.tif"), 3, "gone.tif"),
        (("upscale", "{input}"), 2, "OUTPUT"),
        (("upscale", "{input}", "{folder}/o.nii", "--memory", "10MB", "--model", "floor"), 4, "tile"),
        (("plan", "{input}", "{folder}/o.nii", "--model", "flor"), 2, "flor"),
    ],
)
def test_a_failure_is_told_in_json_too(
    run: Run, thick: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, what: str
) -> None:
    got, out, err = run(*(a.format(input=thick, folder=tmp_path) for a in arguments), "--json")
    told = json.loads(out.splitlines()[-1])
    assert (got, told["exit_code"]) == (code, code)
    assert set(told["error"]) == {"what", "why", "fix"}
    assert what in told["error"]["what"]
    assert told["error"]["what"] in err


def test_a_bug_is_told_in_json_too(run: Run, thick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.inspection.inspect", lambda *_, **__: 1 / 0)
    code, out, err = run("inspect", thick, "--json")
    assert (code, json.loads(out)["exit_code"]) == (1, 1)
    assert "ZeroDivisionError, which is a bug" in err


@pytest.mark.parametrize(("file", "expected"), [("t2.nii.gz", 5), ("gone.nii.gz", 3)])
def test_a_full_disk_under_stdout_is_named(thick: Path, file: str, expected: int) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "inspect", thick.with_name(file), "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == expected
    assert done.stderr.count("\n") == 1
    assert ("cannot be written to stdout" in done.stderr) == (expected == 5)


def test_the_nearest_model_name_is_offered(run: Run, thick: Path) -> None:
    assert "floor" in run("upscale", thick, thick.parent / "o.nii.gz", "--model", "flor")[2]


def test_an_existing_output_is_kept_unless_told(run: Run, thick: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.nii.gz"
    output.write_bytes(b"precious")
    code, _, err = run("upscale", thick, output, "--model", "floor", "--quiet")
    assert code == 2
    assert "--overwrite" in err
    assert output.read_bytes() == b"precious"
    assert run("upscale", thick, output, "--model", "floor", "--quiet", "--overwrite")[0] == 0
    assert nib.load(output).shape[2] > 12


@pytest.mark.parametrize("name", ["no/o.nii.gz", "o.xyz", "dicom_out", "o.tif"])
def test_an_output_that_cannot_be_is_refused(run: Run, thick: Path, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.iterdir())
    code, _, err = run("upscale", thick, tmp_path / name, "--model", "floor", "--quiet")
    assert code in (2, 3), err  # a raster sink refuses a volume as an input
    assert sorted(tmp_path.iterdir()) == before


def test_the_input_is_never_overwritten(run: Run, thick: Path) -> None:
    content = thick.read_bytes()
    code, _, err = run("upscale", thick, thick, "--model", "floor", "--overwrite", "--quiet")
    assert code == 2
    assert "is the input" in err
    assert thick.read_bytes() == content


def test_debug_may_stand_anywhere_and_usage_is_one_line(run: Run, thick: Path, tmp_path: Path) -> None:
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "flor", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert run("upscale", thick)[2].count("\n") == 1


def test_verify_refuses_a_product_that_is_no_finer(run: Run, thick: Path) -> None:
    code, _, err = run("verify", thick, "--against", thick, "--quiet")
    assert code == 2
    assert "no finer grid" in err


def test_verify_refuses_noise_that_is_no_number(run: Run, thick: Path) -> None:
    assert run("verify", thick, "--against", thick, "--noise", "abc")[0] == 2
    assert run("verify", thick, "--against", thick, "--noise", "-1")[0] == 2


def test_cuda_asked_for_and_absent(run: Run, thick: Path, tmp_path: Path) -> None:
    from pipelines.networks import has_cuda

    if has_cuda():
        pytest.skip("this machine has CUDA")
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--device", "cuda", "--model", "floor")
    assert code == 2
    assert "CUDA" in err


def test_the_folder_of_three_slices_is_refused_as_the_volume_is(run: Run, tmp_path: Path) -> None:
    folder = Series(slices=3, rows=16, columns=18).write(tmp_path / "in")
    code, _, err = run("upscale", folder, tmp_path / "o.nii.gz", "--model", "floor")
    assert code == 3
    assert "has 3 slices" in err
    code, _, err = run("upscale", folder, tmp_path / "o.nii.gz", "--model", "floor", "--scale", "1x2x2", "--quiet")
    assert code == 0, err


def test_swapped_arguments_of_verify_are_recognised(run: Run, thick: Path, tmp_path: Path) -> None:
    run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    code, _, err = run("verify", thick, "--against", tmp_path / "o.nii.gz", "--quiet")
    assert code == 2
    assert "swapped" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("upscale", "{input}", "{folder}/o"), "one of .nii, .nii.gz, .tif, .tiff, .zarr."),
        (("upscale", "{input}", ""), "no name"),
        (("upscale", "{input}", "{folder}/o.nii", "--model", "latice-mri"), "Did you mean 'lattice-mri'?\n"),
        (("evaluate", "--data", "{folder}/gone"), "gone"),
        (("evaluate",), "TRUESCALE_DATA. See --help."),
        (("evaluate", "--data", "{folder}", "--suite", "quick"), "Choose one of smoke, med, geo, full."),
        (("evaluate", "--data", "{folder}", "--models", "latice-mri"), "Did you mean 'lattice-mri'?"),
        (("evaluate", "--data", "{folder}", "--limit", "0"), "--limit 0"),
        (("evaluate", "--data", "{folder}", "--out", "{folder}"), "holds no evaluation"),
    ],
)
def test_what_is_wrong_is_named(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.delenv("TRUESCALE_DATA", raising=False)
    code, _, err = run(*(a.format(input=thick, folder=tmp_path) for a in arguments))
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["upscale", "ingest", "sample"])
def test_a_read_only_folder_is_named_as_such(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("pipelines.workspace.os.access", lambda _, mode: mode != os.W_OK)  # root may
    arguments = {
        "upscale": (thick, tmp_path / "o.nii.gz", "--model", "floor"),
        "ingest": (thick, tmp_path / "o.zarr"),
        "sample": ("head", tmp_path / "head.nii.gz"),
    }[command]
    code, _, err = run(command, *arguments)
    assert code == 2
    assert "cannot be written" in err
    assert "space" not in err
    assert "--resume" not in err


def test_a_misspelt_keyword_names_the_function(thick: Path, tmp_path: Path) -> None:
    import pipelines as ts

    with pytest.raises(TypeError, match=r"upscale\(\)"):
        ts.upscale(thick, tmp_path / "o.nii.gz", scal=2)  # type: ignore[call-arg]  # the typo is the test


def test_small_amounts_are_not_zero() -> None:
    amounts = {3_210_000_000: "3.21 GB", 45_600_000: "45.6 MB", 12_300: "12.3 KB", 17: "17 bytes"}
    assert {n: bytes_text(n) for n in amounts} == amounts


def test_a_degradation_in_millimetres_means_nothing_for_a_raster(run: Run, scene: Path, tmp_path: Path) -> None:
    code, _, err = run("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--degradation", "slice:40")
    assert code == 2
    assert "millimetres" in err


def test_a_relative_work_folder_is_found(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--work", ".", "--quiet")[0] == 0
    assert (tmp_path / "here" / "plan.json").is_file()


@pytest.mark.parametrize("output", ["t2.nii.gz", "none/o.nii.gz", "o.xyz"])
def test_plan_refuses_what_upscale_refuses(run: Run, thick: Path, tmp_path: Path, output: str) -> None:
    for command in ("plan", "upscale"):
        assert run(command, thick, tmp_path / output, "--model", "floor")[0] == 2


def test_a_folder_of_rasters_is_no_series(run: Run, scene: Path, tmp_path: Path) -> None:
    code, _, err = run("upscale", scene.parent, tmp_path / "o.tif")
    assert code == 3
    assert "folder of rasters" in err


SCENES: dict[str, tuple[dict[str, str], str]] = {
    "a SAFE product": ({"S2A_MSIL2A_X.SAFE/MTD_MSIL2A.xml": "<a/>"}, "holds SAFE products, which are not read yet"),
    "a zipped one": ({"S1A.SAFE.zip": "PK"}, "holds SAFE products, which are not read yet"),
    "one under another name": ({"manifest.safe": "<a/>", "GRANULE/x.jp2": ""}, "SAFE"),
    "a STAC item": ({"item.json": '{"type": "Feature", "stac_version": "1.0.0"}'}, "holds a STAC item"),
    "a STAC item of Landsat": ({"LC09_L2SP_X_MTL.json": '{"stac_version": "1.0.0"}', "a.xml": ""}, "a STAC item"),
    "another JSON file": ({"notes.json": "{}"}, "no MR or CT slice"),
}


def _filled(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", SCENES)
def test_a_folder_of_scenes_is_refused_as_what_it_is(run: Run, tmp_path: Path, name: str) -> None:
    files, said = SCENES[name]
    code, _, err = run("inspect", _filled(tmp_path / "scenes", files))
    assert code == 3
    assert said in err
    assert ("DICOM" in err) == (name == "another JSON file")


@pytest.mark.parametrize("name", SCENES)
def test_a_series_with_such_files_beside_it_is_a_series(run: Run, tmp_path: Path, name: str) -> None:
    folder = Series(slices=4, rows=8, columns=8).write(tmp_path / "series")
    (folder / "gone.json").symlink_to(tmp_path / "nowhere")
    code, _, err = run("inspect", _filled(folder, SCENES[name][0]))
    assert code == 0, err


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_not_called_isotropic(run: Run, tmp_path: Path, axis: int) -> None:
    shape = tuple(1 if a == axis else 24 for a in range(3))
    nib.save(nib.Nifti1Image(smooth((24, 24)).reshape(shape), np.eye(4)), tmp_path / "one.nii")
    code, _, err = run("plan", tmp_path / "one.nii", tmp_path / "o.nii")
    assert code == 3
    assert "the volume has 1 slice" in err
    hint = err.split("--scale ")[1].split(")")[0]
    assert hint.split(",")[2 - axis].endswith("=1")
    assert run("upscale", tmp_path / "one.nii", tmp_path / "o.nii", "--model", "floor", "--scale", hint)[0] == 0
    assert sorted(nib.load(tmp_path / "o.nii").shape) == [1, 48, 48]


def test_samples_beyond_numbers_are_refused(run: Run, thick: Path, tmp_path: Path) -> None:
    given = nib.load(thick)
    samples = given.get_fdata()
    samples[3, 4, 5] = 1e200
    nib.save(nib.Nifti1Image(samples, given.affine), tmp_path / "huge.nii")
    code, _, err = run("upscale", tmp_path / "huge.nii", tmp_path / "o.nii", "--model", "floor")
    assert code == 3
    assert "1e+200" in err
    assert not list(tmp_path.glob("o.nii*"))


def test_an_axis_that_no_sensor_makes_is_refused(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "long.tif"
    options = {"width": 1, "height": 900_000, "count": 1, "dtype": "uint8", "sparse_ok": True}
    with rasterio.open(image, "w", driver="GTiff", crs="EPSG:32632", transform=Affine(10, 0, 0, 0, -10, 0), **options):
        pass
    code, _, err = run("plan", image, tmp_path / "o.tif")
    assert code == 3
    assert "axis y" in err


def test_complex_arrays_and_holes_in_a_bare_projection_are_refused() -> None:
    grid = Grid("yx", (8, 8), np.diag([-10.0, 10.0, 1.0]))
    header = Header(grid, (Channel("b", (Profile("block"),) * 2),))
    with pytest.raises(InputError, match="complex"):
        ArraySource(np.ones((8, 8), complex), header)
    fine = grid.rescaled(Factor((Fraction(2), Fraction(2))))
    observed = np.ones((8, 8))
    observed[2, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        project(np.ones((16, 16)), observed, header.degradation(fine))
