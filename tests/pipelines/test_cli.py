"""The command line from outside: products, plans, reports, and what never happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from tests.pipelines.files import Run, smooth, write_raster


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


@pytest.mark.data
def test_a_product_that_does_not_explain_its_input_warns(run: Run, data: Path, tmp_path: Path) -> None:
    source = data / "geo" / "quirks" / "nz_habitat_anticross_4326_1deg.tif"
    code, out, err = run("upscale", source, tmp_path / "o.tif", "--model", "floor", "--json")
    assert code == 0
    worst = max(c["over_noise"] or 0 for c in json.loads(out)["channels"])
    assert worst > 1.2  # few samples between many holes
    assert "differs from the input once degraded" in err
    assert run("verify", tmp_path / "o.tif", "--against", source)[0] == 3


@pytest.mark.parametrize(("model", "said"), [("floor", "explains the input"), ("linear", "differs from the input")])
def test_only_what_explains_the_input_is_said_to(run: Run, scene: Path, tmp_path: Path, model: str, said: str) -> None:
    _, _, err = run("upscale", scene, tmp_path / "o.tif", "--model", model, "--noise", "2")
    assert said in err


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


def test_zarr_in_and_out(run: Run, scene: Path, tmp_path: Path) -> None:
    assert run("ingest", scene, tmp_path / "in.zarr", "--quiet")[0] == 0
    assert run("upscale", tmp_path / "in.zarr", tmp_path / "o.zarr", "--model", "floor", "--quiet")[0] == 0
    code, out, _ = run("inspect", tmp_path / "o.zarr", "--json")
    assert code == 0
    assert json.loads(out)["shape"] == [100, 88]
    assert run("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--quiet")[0] == 0


def test_help_plan_inspect_and_models_load_nothing_heavy(thick: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pipelines import cli; sys.argv = ['truescale', *sys.argv[1:]]\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print('HEAVY', *sorted({'torch', 'monai', 'zarr'} & set(sys.modules)))"
    )
    for arguments in (
        ["--help"],
        ["evaluate", "--help"],
        ["plan", str(thick), str(tmp_path / "o.nii.gz")],
        ["inspect", str(thick)],
        ["models"],
    ):
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


def test_no_name_of_a_patient_reaches_report_plan_or_errors(run: Run, tmp_path: Path) -> None:
    image = nib.Nifti1Image(smooth((20, 18, 10)), np.diag([1, 1, 4, 1]))
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


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_does_not_stop_the_run(thick: Path, tmp_path: Path, stream: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as `| head -0` does
    command = [sys.executable, "-m", "pipelines.cli", "upscale", thick, tmp_path / "o.nii.gz", "--model", "floor"]
    done = subprocess.run([*command, "--json"], **{stream: writing}, check=False)
    os.close(writing)
    assert done.returncode == 0
    assert {p.name for p in tmp_path.iterdir()} - {"t2.nii.gz", "t2.json"} == {"o.nii.gz", "o.nii.gz.report.json"}


@pytest.mark.parametrize("output", ["o.nii.gz", "o.tif"])
def test_a_product_is_recognised_as_one_and_a_sample_is_not(
    run: Run, thick: Path, scene: Path, tmp_path: Path, output: str
) -> None:
    from pipelines import formats

    run("upscale", thick if output.endswith(".gz") else scene, tmp_path / output, "--model", "floor", "--quiet")
    assert "already a super-resolved product" in run("inspect", tmp_path / output)[1]
    sample = tmp_path / f"sample_{output}"
    with formats.open_source(tmp_path / output) as source:
        formats.sink_for(sample).write(source, None, sample, {"software": "truescale sample"})
    assert "already" not in run("inspect", sample)[1]


@pytest.mark.parametrize(("lowest", "said"), [(-1024, "look like CT"), (-300, "magnitude MR"), (-1, "")])
def test_negative_samples_of_an_mr_volume_are_doubted(run: Run, tmp_path: Path, lowest: float, said: str) -> None:
    data = smooth((20, 18, 8))
    data[:4] = lowest
    nib.save(nib.Nifti1Image(data, np.diag([1, 1, 4, 1])), tmp_path / "scan.nii")
    problems = json.loads(run("inspect", tmp_path / "scan.nii", "--pixels", "--json")[1])["problems"]
    code, out, err = run("upscale", tmp_path / "scan.nii", tmp_path / "o.nii", "--model", "floor", "--json")
    assert code == 0, err
    for lines in (problems, json.loads(out)["warnings"], err.splitlines()):
        assert sum("samples down to" in line for line in lines) == bool(said)
        assert not said or any(said in line for line in lines)


def test_models_say_all_that_was_asked_of_them(run: Run) -> None:
    listed = json.loads(run("models", "--json")[1])
    shown = json.loads(run("models", "lattice-mri")[1])
    assert shown in listed
    assert (shown["id"], shown["task"], shown["scale"]) == ("lattice-mri-1.0", "thick slices to thin", "1.5-8x")
    assert shown["weights_bytes"] > 1e6
    assert shown["parameters"] == shown["training"]["parameters"]
    assert shown["receptive_field"] == [17, 59, 59]
    for key in ("domain", "trained_on", "licence", "sha256", "figures"):
        assert shown[key]


def test_the_list_of_models_says_what_each_costs_and_sees(run: Run) -> None:
    listed = {line.split()[0]: line for line in run("models")[1].splitlines()}
    for told in ("276632", "64.9", "29 x 29", "4876a377fab2", "+0.77 dB"):
        assert told in listed["lattice-geo-1.0"]
    assert {"parameters", "kMAC/sample", "sees"} <= set(listed["model"].split())


def test_a_word_that_is_no_model_names_the_nearest(run: Run) -> None:
    code, _, err = run("models", "lattice-mir")
    assert code == 2
    assert "Did you mean 'lattice-mri'" in err


def test_text_for_people_holds_no_none_and_no_plural_of_one(run: Run, scene: Path, tmp_path: Path) -> None:
    told = run("inspect", scene)[1]
    planned = run("plan", scene, tmp_path / "o.tif", "--workers", "1")[1]
    for text in (told, planned):
        assert "None" not in text
        assert "y = y" not in text
        assert "1 workers" not in text
        assert " 0.00 GB" not in text


def test_making_a_sample_is_announced(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.samples_io.write_sample", lambda *_, **__: [tmp_path / "head.nii.gz"])
    code, out, err = run("sample", "head", tmp_path / "head.nii.gz")
    assert code == 0
    assert out == f"{tmp_path / 'head.nii.gz'}\n"
    assert "head" in err


def test_the_keywords_of_python_are_the_options_of_the_command_line() -> None:
    import inspect

    import pipelines as ts
    from pipelines import cli

    names = {p.name for p in cli.upscale.params} - {"source", "output", "no_consistency", "as_json", "quiet"}
    names -= {"adapt", "adapt_seconds"}  # a training of its own: `training.adapting.adapt`, whose card is a model
    assert names | {"consistency"} == set(inspect.signature(ts.upscale).parameters) - {
        *("source", "output", "progress", "stopped", "on_plan")
    }
