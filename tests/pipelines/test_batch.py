"""Many inputs in one call: failures stay alone, a second call does what is missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import batch
from pipelines.errors import UsageError
from tests.pipelines.files import Run, smooth, write_raster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(3):
        write_raster(tmp_path / f"s{k}.tif", (smooth((1, 60, 50)) + k).astype(np.uint16))
    (tmp_path / "broken.tif").write_bytes(b"II*\0 no more")
    (tmp_path / "jobs.yaml").write_text(
        """
options: {model: floor}
jobs:
  - {input: "s?.tif", output: "out/{name}_2x.tif"}
  - {input: broken.tif, output: out/broken_2x.tif}
"""
    )
    return tmp_path


def states(out: str) -> dict[str, str]:
    return {Path(o["output"]).name: o["state"] for o in json.loads(out.splitlines()[-1])}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_input_stops_no_other_and_a_second_call_does_what_is_missing(
    run: Run, folder: Path, workers: int
) -> None:
    common = ("batch", folder / "jobs.yaml", "--workers", workers, "--json", "--quiet")
    code, out, _ = run(*common)
    assert code == 3
    made = {f"s{k}_2x.tif": "made" for k in range(3)}
    assert states(out) == {**made, "broken_2x.tif": "failed"}
    (folder / "out" / "s1_2x.tif").unlink()
    before = (folder / "out" / "s0_2x.tif").stat().st_mtime_ns
    (folder / "broken.tif").unlink()  # GDAL would look into it before it writes over it
    write_raster(folder / "broken.tif", smooth((1, 40, 40)).astype(np.uint16))
    code, out, _ = run(*common)
    assert code == 0
    assert states(out) == {"s0_2x.tif": "kept", "s1_2x.tif": "made", "s2_2x.tif": "kept", "broken_2x.tif": "made"}
    assert (folder / "out" / "s0_2x.tif").stat().st_mtime_ns == before
    assert not list((folder / "out").glob("*.work*"))
    assert {p.name for p in folder.glob("jobs*")} == {"jobs.yaml", "jobs.summary.csv", "jobs.summary.json"}


def test_another_request_or_input_makes_a_product_again(run: Run, folder: Path) -> None:
    run("batch", folder / "jobs.yaml", "--quiet")
    write_raster(folder / "s2.tif", (smooth((1, 60, 50)) + 50).astype(np.uint16))
    _, out, _ = run("batch", folder / "jobs.yaml", "--quiet", "--json")
    assert states(out)["s2_2x.tif"] == "made"
    text = (folder / "jobs.yaml").read_text().replace("model: floor", "model: floor, noise: 3")
    (folder / "jobs.yaml").write_text(text)
    _, out, _ = run("batch", folder / "jobs.yaml", "--quiet", "--json")
    assert states(out)["s0_2x.tif"] == "made"


def test_the_summary_is_a_table_and_a_file_of_both_kinds(run: Run, folder: Path) -> None:
    code, _, err = run("batch", folder / "jobs.yaml", "--summary", folder / "all.x")
    assert code == 3
    assert "3 made, 0 kept, 1 failed" in err
    rows = list(csv.DictReader((folder / "all.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["made"] * 3 + ["failed"]
    assert json.loads((folder / "all.json").read_text())[3]["exit_code"] == 3
    assert all((folder / "out" / f"s{k}_2x.tif.report.json").is_file() for k in range(3))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("jobs: 3", "list of jobs"),
        ("nonsense", "list of jobs"),
        ("jobs: [{input: s0.tif}]", "needs an input and an output"),
        ("jobs: [{input: s0.tif, output: o.tif, scal: 2}]", "'scal'"),
        ("jobs: [{input: 's?.tif', output: o.tif}]", "several jobs write"),
        ("jobs: [{input: 'z?.tif', output: '{name}.tif'}]", "no file matches"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(folder: Path, text: str, match: str) -> None:
    (folder / "jobs.yaml").write_text(text)
    with pytest.raises(UsageError, match=match):
        batch.read_jobs(folder / "jobs.yaml")
