"""`verify` as a judge: what it exits with, which bands it compares, and what it calls a wrong pair."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rasterio

from tests.pipelines.files import Run, smooth, write_raster


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three unlike bands without descriptions."""
    data = np.stack([smooth((40, 36)), 3 * smooth((36, 40)).T, smooth((40, 36))[::-1] / 2]).astype(np.uint16)
    return write_raster(tmp_path / "three.tif", data)


def _described(path: Path, names: tuple[str, ...]) -> None:
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.descriptions = names


@pytest.mark.parametrize("noise", ["auto", "0", "0.01", "20"])
@pytest.mark.parametrize("kind", ["volume", "image"])
def test_a_product_that_explains_its_input_is_passed(
    run: Run, thick: Path, scene: Path, tmp_path: Path, noise: str, kind: str
) -> None:
    given, made = (thick, tmp_path / "o.nii.gz") if kind == "volume" else (scene, tmp_path / "o.tif")
    assert run("upscale", given, made, "--model", "floor", "--noise", noise, "--quiet")[0] == 0
    code, out, _ = run("verify", made, "--against", given, "--noise", noise)
    assert code == 0
    assert out.splitlines()[-1] == "explains the input"


def test_a_product_that_does_not_is_failed_in_one_line_and_in_json(run: Run, scene: Path, tmp_path: Path) -> None:
    run("upscale", scene, tmp_path / "o.tif", "--model", "linear", "--noise", "2", "--quiet")
    code, out, err = run("verify", tmp_path / "o.tif", "--against", scene, "--noise", "2", "--quiet")
    assert code == 3
    assert out.splitlines()[-1] == "does not explain the input"
    assert err.count("\n") == 1
    assert "does not explain" in err
    code, out, _ = run("verify", tmp_path / "o.tif", "--against", scene, "--noise", "2", "--quiet", "--json")
    found = json.loads(out.splitlines()[-1])
    assert (code, found["exit_code"], found["explained"]) == (3, 3, False)
    assert "does not explain" in found["error"]["what"]


def test_one_wrong_band_among_right_ones_fails(run: Run, three: Path, tmp_path: Path) -> None:
    run("upscale", three, tmp_path / "o.tif", "--model", "floor", "--quiet")
    with rasterio.open(tmp_path / "o.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.write(np.roll(file.read(2), 1, axis=1), 2)
    code, _, err = run("verify", tmp_path / "o.tif", "--against", three, "--quiet")
    assert code == 3
    assert "band 2" in err


def test_a_product_of_holes_explains_nothing(run: Run, scene: Path, tmp_path: Path) -> None:
    run("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--quiet")
    with rasterio.open(tmp_path / "o.tif") as file:
        empty, transform = np.zeros_like(file.read()), file.transform
    write_raster(tmp_path / "empty.tif", empty, transform=transform, nodata=0)
    code, _, err = run("verify", tmp_path / "empty.tif", "--against", scene, "--quiet")
    assert code == 3
    assert "no sample" in err


def test_the_bands_chosen_need_not_be_named_again(run: Run, three: Path, tmp_path: Path) -> None:
    assert run("upscale", three, tmp_path / "o.tif", "--model", "floor", "--bands", "3,1", "--quiet")[0] == 0
    code, out, _ = run("verify", tmp_path / "o.tif", "--against", three, "--json", "--quiet")
    assert (code, [c["channel"] for c in json.loads(out)["channels"]]) == (0, ["band 3", "band 1"])
    (tmp_path / "o.tif.report.json").unlink()
    code, _, err = run("verify", tmp_path / "o.tif", "--against", three, "--quiet")
    assert code == 2
    assert "--bands" in err
    assert run("verify", tmp_path / "o.tif", "--against", three, "--bands", "3,1", "--quiet")[0] == 0


def test_bands_are_matched_by_their_descriptions(run: Run, three: Path, tmp_path: Path) -> None:
    _described(three, ("B02", "B03", "B04"))
    assert run("upscale", three, tmp_path / "o.tif", "--model", "floor", "--bands", "3,1,2", "--quiet")[0] == 0
    (tmp_path / "o.tif.report.json").unlink()
    for bands in ([], ["--bands", "2,3,1"]):
        code, out, _ = run("verify", tmp_path / "o.tif", "--against", three, *bands, "--json", "--quiet")
        assert (code, [c["channel"] for c in json.loads(out)["channels"]]) == (0, ["B04", "B02", "B03"])
    _described(tmp_path / "o.tif", ("red", "blue", "green"))  # of other names: in their order
    assert run("verify", tmp_path / "o.tif", "--against", three, "--quiet")[0] == 3
    assert run("verify", tmp_path / "o.tif", "--against", three, "--bands", "3,1,2", "--quiet")[0] == 0


def test_a_wrong_pair_is_not_called_swapped(run: Run, thick: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(smooth((30, 28, 12))[::-1].copy(), nib.load(thick).affine), other)
    code, _, err = run("verify", other, "--against", thick, "--quiet")
    assert code == 2
    assert "no finer grid" in err
    assert "swapped" not in err
    run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    code, _, err = run("verify", tmp_path / "o.nii.gz", "--against", other, "--slice-thickness", "3.5", "--quiet")
    assert code == 3
    assert "swapped" not in err
    code, _, err = run("verify", other, "--against", tmp_path / "o.nii.gz", "--quiet")
    assert code == 2
    assert "coarser than the input along z" in err
    assert "if the two are swapped" in err
