"""What `ingest` keeps of an image: samples, mask and grid, and nothing that leads to a patient."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import rasterio
from pydicom.dataset import Dataset

import pipelines as ts
from pipelines.zarr_image import KEPT_FACTS
from tests.pipelines.files import Run, smooth, write_raster
from tests.srmed.make_dicom import Series
from tests.srmed.make_nifti import edit_header, write_nifti


def texts(ds: Dataset) -> Iterator[str]:
    """Every text and identifier of a header, and what a hash without salt makes of it."""
    for element in ds.iterall():
        if element.VR in ("UI", "PN", "LO", "SH", "DA", "TM", "ST", "LT") and str(element.value):
            text = str(element.value)
            yield text
            for salt in (b"", b"frame of reference "):
                yield hashlib.sha256(salt + text.encode()).hexdigest()[:8]


def attributes(folder: Path) -> str:
    """Everything that is text in a zarr folder."""
    return "\n".join(p.read_text() for p in sorted(folder.rglob("*.json")))


@pytest.mark.parametrize("output", ["scan.zarr", "work"])
def test_nothing_of_a_dicom_header_stays(run: Run, tmp_path: Path, output: str) -> None:
    def marked(ds: Dataset, k: int) -> None:
        ds.AccessionNumber, ds.StudyDate, ds.StudyTime = "A123456", "19020304", "101112"
        ds.SeriesNumber, ds.MagneticFieldStrength, ds.DeviceSerialNumber = 7731, 2.894, "SN7731"

    folder = Series(slices=8, rows=16, columns=18, number=7731, edit=marked).write(tmp_path / "series")
    if output == "work":
        arguments = ("upscale", folder, tmp_path / "o.zarr", "--model", "floor", "--work", tmp_path / "work", "--quiet")
    else:
        arguments = ("ingest", folder, tmp_path / output, "--quiet")
    code, _, err = run(*arguments)
    assert code == 0, err
    written = attributes(tmp_path / output / "coarse.zarr" if output == "work" else tmp_path / output)
    if output == "work":
        written += attributes(tmp_path / "o.zarr")
    assert "thickness_mm" in written
    found = sorted({t for file in folder.iterdir() for t in texts(pydicom.dcmread(file)) if t in written})
    assert not found
    for value in ("7731", "2.894", "Explicit VR"):
        assert value not in written
    with ts.open(folder) as series:
        assert series.header.grid.frame.id
        assert series.header.grid.frame.id not in written
        assert series.header.grid.frame.id not in attributes(tmp_path / output)  # nor in the plan of a work folder


def test_nothing_of_a_nifti_header_stays(run: Run, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "t2.nii")
    marks = {"descrip": b"Canary 1", "aux_file": b"Canary 2", "db_name": b"Canary 3", "intent_name": b"Canary 4"}
    edit_header(path, **marks, slice_duration=0.7731, cal_max=7731.5)
    assert run("ingest", path, tmp_path / "t2.zarr", "--quiet")[0] == 0
    written = attributes(tmp_path / "t2.zarr")
    assert "Canary" not in written
    assert "7731" not in written
    assert (
        set(json.loads((tmp_path / "t2.zarr" / "zarr.json").read_text())["attributes"]["truescale"]["facts"])
        <= KEPT_FACTS
    )


def test_an_ingested_series_is_super_resolved_like_the_series(run: Run, tmp_path: Path) -> None:
    folder = Series(slices=8, rows=16, columns=18).write(tmp_path / "series")
    assert run("ingest", folder, tmp_path / "scan.zarr", "--quiet")[0] == 0
    for name, source in (("a", folder), ("b", tmp_path / "scan.zarr")):
        code, _, err = run("upscale", source, tmp_path / f"{name}.nii.gz", "--model", "floor", "--quiet")
        assert code == 0, err
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    reports = [json.loads((tmp_path / f"{n}.nii.gz.report.json").read_text()) for n in "ab"]
    assert reports[0]["facts"]["thickness_mm"] == reports[1]["facts"]["thickness_mm"]
    code, _, err = run("verify", tmp_path / "b.nii.gz", "--against", folder, "--quiet")
    assert code == 0, err


@pytest.mark.parametrize(("dtype", "nodata"), [(np.int16, -999), (np.float32, -9999.0), (np.float32, float("nan"))])
def test_a_raster_keeps_its_nodata_through_zarr(run: Run, tmp_path: Path, dtype: type, nodata: float) -> None:
    data = smooth((60, 50)).astype(dtype)[None]
    data[0, :8, :9] = nodata
    scene = write_raster(tmp_path / "s.tif", data, nodata=nodata)
    assert run("ingest", scene, tmp_path / "s.zarr", "--quiet")[0] == 0
    for source in (scene, tmp_path / "s.zarr"):
        code, _, err = run(
            "upscale", source, tmp_path / f"{source.suffix[1:]}_o.tif", "--model", "floor", "--quiet"
        )  # fmt: skip
        assert code == 0, err
    with rasterio.open(tmp_path / "tif_o.tif") as direct, rasterio.open(tmp_path / "zarr_o.tif") as ingested:
        assert str(ingested.nodata) == str(direct.nodata) == str(float(nodata))
        assert np.array_equal(ingested.read(), direct.read(), equal_nan=True)
