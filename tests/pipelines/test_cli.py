"""The command line from outside: products, exit codes, messages, and what never happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from scipy import ndimage

from pipelines import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the program in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["truescale", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def _scene(shape: tuple[int, ...]) -> np.ndarray:
    scene = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=shape), 1.2)
    return (2000 + 800 * scene / np.abs(scene).max()).astype(np.float32)


@pytest.fixture
def thick(tmp_path: Path) -> Path:
    """Twelve oblique slices of 4 mm, with a sidecar that says 3.5 mm."""
    turn = nib.eulerangles.euler2mat(0.1, -0.2, 0.15)
    affine = nib.affines.from_matvec(turn @ np.diag([-1, 1, 4]), [90, -100, 20])
    path = tmp_path / "t2.nii.gz"
    nib.save(nib.Nifti1Image(_scene((30, 28, 12)), affine), path)
    (tmp_path / "t2.json").write_text(json.dumps({"SliceThickness": 3.5}))
    return path


def write_raster(path: Path, data: np.ndarray, **options: object) -> Path:
    profile = {
        "driver": "GTiff",
        "height": data.shape[1],
        "width": data.shape[2],
        "count": data.shape[0],
        "dtype": data.dtype,
        "crs": "EPSG:32632",
        "transform": Affine(10, 0, 500000, 0, -10, 5100000),
        **options,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(data)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two bands of reflectance in UTM."""
    data = np.stack([_scene((50, 44)), _scene((50, 44)).T[:44, :50].T]).astype(np.uint16)
    return write_raster(tmp_path / "s2.tif", data)


def test_a_volume_becomes_isotropic_and_says_how(run: Run, thick: Path, tmp_path: Path) -> None:
    code, out, _ = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--json", "--quiet")
    assert code == 0
    report = json.loads(out.splitlines()[-1])
    product = nib.load(tmp_path / "o.nii.gz")
    assert product.shape[:2] == (30, 28)
    assert report["shape_after"] == list(product.shape[::-1])
    assert report["facts"]["thickness_mm"]["value"] == 3.5
    assert report["facts"]["thickness_mm"]["origin"] == "sidecar"
    assert np.allclose(report["affine"], product.affine, rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "o.nii.gz.report.json").read_text()) == report
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "o.nii.gz", "o.nii.gz.report.json", "t2.json", "t2.nii.gz",
    ]  # fmt: skip


def test_an_image_doubles_and_keeps_its_corners(run: Run, scene: Path, tmp_path: Path) -> None:
    code, out, _ = run("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--noise", "0", "--json", "--quiet")
    assert code == 0
    with rasterio.open(scene) as before, rasterio.open(tmp_path / "o.tif") as after:
        assert after.transform == before.transform @ Affine.scale(0.5)
        assert after.bounds == before.bounds
        assert (after.crs, after.dtypes) == (before.crs, before.dtypes)
    report = json.loads(out.splitlines()[-1])
    assert report["consistency_rmse"] <= 0.15  # rounding to whole numbers, degraded: 0.079 at 2x
    assert report["consistency_over_noise"] is None


def test_verify_repeats_what_the_report_says(run: Run, scene: Path, tmp_path: Path) -> None:
    _, out, _ = run("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--json", "--quiet")
    report = json.loads(out.splitlines()[-1])
    code, out, _ = run("verify", tmp_path / "o.tif", "--against", scene, "--json", "--quiet")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    for ours, theirs in zip(report["channels"], found["channels"], strict=True):
        assert theirs["rmse"] == pytest.approx(ours["rmse"], rel=1e-6)
        assert theirs["over_noise"] == pytest.approx(ours["over_noise"], rel=1e-6)


def test_a_wrong_product_is_found_out(run: Run, scene: Path, tmp_path: Path) -> None:
    run("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--noise", "0", "--quiet")
    with rasterio.open(tmp_path / "o.tif") as file:
        data, profile = file.read(), file.profile
    write_raster(tmp_path / "moved.tif", np.roll(data, 1, axis=2), transform=profile["transform"])
    _, out, _ = run("verify", tmp_path / "moved.tif", "--against", scene, "--noise", "1", "--json", "--quiet")
    assert min(c["over_noise"] for c in json.loads(out.splitlines()[-1])["channels"]) > 3
    _, out, _ = run("verify", tmp_path / "o.tif", "--against", scene, "--noise", "1", "--json", "--quiet")
    assert max(c["over_noise"] for c in json.loads(out.splitlines()[-1])["channels"]) < 0.15


def test_plan_echoes_axes_and_reads_no_pixel(run: Run, thick: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(thick.read_bytes()[:2000])
    code, out, _ = run("plan", damaged, tmp_path / "o.nii.gz", "--scale", "z=2,y=1", "--model", "floor", "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["scale"] == [2, 1, 1]
    assert plan["axes_named"][0] == "foot-head"
    assert plan["predicted_bytes"] <= plan["memory_bytes"]
    assert not (tmp_path / "o.nii.gz.work").exists()


@pytest.mark.parametrize("asked", [["--spacing", "1"], ["--spacing", "1x0.9x0.95"], ["--scale", "4x1x1"]])
def test_the_grid_asked_for_is_the_grid_made(run: Run, thick: Path, tmp_path: Path, asked: list[str]) -> None:
    _, out, _ = run("plan", thick, tmp_path / "o.nii.gz", *asked, "--model", "floor", "--json")
    plan = json.loads(out)
    if asked[1] == "1":
        assert plan["spacing_after"] == pytest.approx([1, 1, 1], abs=0.05)
    elif asked[0] == "--spacing":
        assert plan["spacing_after"] == pytest.approx([1, 0.9, 0.95], abs=1e-6)
    else:
        assert plan["shape_after"][0] == 48


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


def test_zarr_in_and_out(run: Run, scene: Path, tmp_path: Path) -> None:
    assert run("ingest", scene, tmp_path / "in.zarr", "--quiet")[0] == 0
    assert run("upscale", tmp_path / "in.zarr", tmp_path / "o.zarr", "--model", "floor", "--quiet")[0] == 0
    code, out, _ = run("inspect", tmp_path / "o.zarr", "--json")
    assert code == 0
    assert json.loads(out)["shape"] == [100, 88]
    assert run("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--quiet")[0] == 0


BROKEN: dict[str, tuple[str, Callable[[Path], object], int]] = {
    "missing": ("gone.nii.gz", lambda _: None, 3),
    "empty": ("empty.nii.gz", lambda p: p.write_bytes(b""), 3),
    "unknown kind": ("x.xyz", lambda p: p.write_bytes(b"what is this" * 50), 3),
    "truncated gzip": (
        "cut.nii.gz",
        lambda p: (nib.save(nib.Nifti1Image(_scene((30, 28, 12)), np.diag([1, 1, 4, 1])), p), _cut(p)),
        3,
    ),
    "truncated": (
        "cut.nii",
        lambda p: (nib.save(nib.Nifti1Image(_scene((30, 28, 12)), np.diag([1, 1, 4, 1])), p), _cut(p)),
        3,
    ),
    "2-D": ("flat.nii", lambda p: nib.save(nib.Nifti1Image(_scene((30, 28)), np.eye(4)), p), 3),
    "4-D": ("many.nii", lambda p: nib.save(nib.Nifti1Image(_scene((10, 10, 8, 3)), np.eye(4)), p), 3),
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
    "remote": ("https://example.org/a.nii", lambda _: None, 3),
}


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def _with_sform(path: Path, rows: np.ndarray) -> None:
    image = nib.Nifti1Image(_scene((9, 9, 8)), np.diag([1, 1, 4, 1]))
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
    if name == "remote":
        assert "remote" in err


USAGE: dict[str, tuple[list[str], int]] = {
    "scale below one": (["--scale", "0.5"], 2),
    "absurd scale": (["--scale", "100x1x1"], 2),
    "scale that is no number": (["--scale", "big"], 2),
    "scale with too many axes": (["--scale", "2x2"], 2),
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


def test_a_refused_resume_keeps_the_run(run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.store.checksum", full)
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")[0] == 5
    monkeypatch.undo()
    again = ("upscale", thick, tmp_path / "o.nii.gz", "--resume", "--quiet")
    assert run(*again, "--model", "cubic")[0] == 3
    assert (tmp_path / "o.nii.gz.work" / "coarse.zarr").is_dir()
    assert run(*again, "--model", "floor", "--workers", "2")[0] == 0


def test_a_folder_of_someone_else_is_left_alone(run: Run, thick: Path, tmp_path: Path) -> None:
    work = tmp_path / "o.nii.gz.work"
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")[0] == 2
    assert (work / "notes.txt").read_text() == "mine"


def test_two_runs_of_one_output_do_not_meet(run: Run, thick: Path, tmp_path: Path) -> None:
    lock = tmp_path / "o.nii.gz.work.lock"
    lock.write_text(str(os.getppid()))  # a process that lives
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    assert code == 2
    assert "another run" in err
    lock.write_text("999999999")  # one that does not
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")[0] == 0
    assert not lock.exists()


def test_debug_may_stand_anywhere_and_usage_is_one_line(run: Run, thick: Path, tmp_path: Path) -> None:
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "flor", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert run("upscale", thick)[2].count("\n") == 1


def test_verify_refuses_noise_that_is_no_number(run: Run, thick: Path) -> None:
    assert run("verify", thick, "--against", thick, "--noise", "abc")[0] == 2
    assert run("verify", thick, "--against", thick, "--noise", "-1")[0] == 2


@pytest.mark.parametrize("part", ["top", "middle", "bottom", "larger"])
def test_a_reference_of_a_part_or_of_more_gives_its_grid_and_explains_that_part(
    run: Run, tmp_path: Path, part: str
) -> None:
    scene = write_raster(tmp_path / "s2.tif", _scene((300, 60))[None])
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


def test_a_reference_of_another_place_is_refused(run: Run, tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "s2.tif", _scene((60, 60))[None])
    like = write_raster(
        tmp_path / "like.tif", np.zeros((1, 50, 50), np.float32), transform=Affine(5, 0, 900000, 0, -5, 5100000)
    )
    code, _, err = run("upscale", scene, tmp_path / "o.tif", "--like", like, "--model", "floor")
    assert code == 2
    assert "overlap" in err


def test_resume_of_another_run_is_refused(run: Run, thick: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert run("upscale", thick, tmp_path / "a.nii.gz", "--model", "floor", "--work", work, "--quiet")[0] == 0
    code, _, err = run(
        "upscale", thick, tmp_path / "b.nii.gz", "--model", "cubic", "--work", work, "--resume", "--quiet"
    )
    assert code == 3
    assert "model" in err
    code, _, _ = run("upscale", thick, tmp_path / "b.nii.gz", "--model", "floor", "--work", work, "--resume", "--quiet")
    assert code == 0


def test_cuda_asked_for_and_absent(run: Run, thick: Path, tmp_path: Path) -> None:
    from pipelines.networks import has_cuda

    if has_cuda():
        pytest.skip("this machine has CUDA")
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--device", "cuda", "--model", "floor")
    assert code == 2
    assert "CUDA" in err


def test_a_full_disk_is_told_before_the_run(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import runner

    monkeypatch.setattr(runner.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    assert code == 4
    assert "disk" in err


def test_a_disk_that_fills_up_leaves_a_run_to_resume(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.store import Store

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.store.checksum", full)
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    assert code == 5, err
    assert "--resume" in err
    assert not (tmp_path / "o.nii.gz").exists()
    monkeypatch.undo()
    assert Store(tmp_path / "o.nii.gz.work").read_json("plan.json") is not None


def test_help_plan_and_inspect_load_nothing_heavy(thick: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pipelines import cli; sys.argv = ['truescale', *sys.argv[1:]]\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print('HEAVY', *sorted({'torch', 'monai', 'zarr'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["plan", str(thick), str(tmp_path / "o.nii.gz")], ["inspect", str(thick)]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].strip() == "HEAVY", arguments


def test_the_floor_leaves_torch_out(thick: Path, tmp_path: Path) -> None:
    script = (
        "import sys, pipelines as ts\n"
        "ts.upscale(sys.argv[1], sys.argv[2], model='floor')\n"
        "print(sorted({'torch', 'monai'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(thick), str(tmp_path / "o.nii.gz")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_signal_stops_the_run_so_that_it_can_go_on(thick: Path, tmp_path: Path) -> None:
    import signal
    import time

    big = tmp_path / "big.nii"
    nib.save(nib.Nifti1Image(_scene((220, 200, 40)), np.diag([1, 1, 4, 1])), big)
    command = [sys.executable, "-m", "pipelines.cli", "upscale", str(big), str(tmp_path / "o.nii"), "--model", "floor"]
    command += ["--memory", "1GB", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    ledger = tmp_path / "o.nii.work" / "ledger"
    deadline = time.monotonic() + 120
    while process.poll() is None and not ledger.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 5, err
    assert "--resume" in err
    assert not (tmp_path / "o.nii").exists()
    done = subprocess.run([*command, "--resume", "--json", "--quiet"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["tiles_resumed"] >= 1


def test_no_name_of_a_patient_reaches_report_plan_or_errors(run: Run, tmp_path: Path) -> None:
    image = nib.Nifti1Image(_scene((20, 18, 10)), np.diag([1, 1, 4, 1]))
    image.header["descrip"] = b"DOE^JANE 1970"
    image.header["db_name"] = b"DOE^JANE"
    path = tmp_path / "scan.nii"
    nib.save(image, path)
    work = tmp_path / "work"
    code, out, err = run("upscale", path, tmp_path / "o.nii", "--model", "floor", "--work", work, "--json")
    assert code == 0, err
    everything = [out.encode(), err.encode(), *(p.read_bytes() for p in work.rglob("*") if p.is_file())]
    everything += [(tmp_path / "o.nii").read_bytes(), (tmp_path / "o.nii.report.json").read_bytes()]
    assert not any(b"DOE" in text for text in everything)


def test_three_lines_of_python(thick: Path, tmp_path: Path) -> None:
    import pipelines as ts

    report = ts.upscale(thick, tmp_path / "o.nii.gz", spacing=1.0, model="floor")
    assert report.spacing_after[0] == pytest.approx(1.0, abs=1e-6)
    with ts.open(thick) as source:
        fine = ts.upscale_array(np.asarray(nib.load(thick).dataobj).T, source.header, scale="2x1x1", model="floor")
    assert fine.shape == (1, 24, 28, 30)


def test_a_volume_says_that_it_is_research_only(run: Run, thick: Path, tmp_path: Path) -> None:
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")[0] == 0
    assert b"not a medical device" in bytes(nib.load(tmp_path / "o.nii.gz").header["descrip"])
    assert "not a medical device" in " ".join(run("upscale", "--help")[1].split())
