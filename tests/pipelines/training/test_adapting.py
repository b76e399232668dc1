"""A network that learns from the scan that it will refine, and is kept only if that helped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import runner
from pipelines.card import ModelCard, find
from pipelines.errors import ModelError
from pipelines.image import ArraySource
from pipelines.job import Job
from pipelines.request import Request
from pipelines.training import adapting
from tests.pipelines.test_runner import raster, volume
from tests.pipelines.training.conftest import balls

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.zarr"
    runner.ingest(ArraySource(1000 * balls((12, 60, 56), 3).astype(np.float32), volume((12, 60, 56), 4.0, 4.0)), path)
    return path


def job(source: Path, **asked: object) -> Job:
    return Job(str(source), str(source.with_name("fine.zarr")), Request(noise=0, **asked))  # type: ignore[arg-type]  # any field


def test_a_network_that_learned_from_the_scan_is_a_bundle(
    tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"channels": 16, "blocks": 2, "basis": 8, "fold": 2, "thin": True, "phases": 1}
    monkeypatch.setattr(adapting, "SMALL", {"volumes": small})
    monkeypatch.setattr(adapting, "FROM_NOTHING_RATE", 0.01)
    found = adapting.adapt(job(scan, model="self", scale="4x1x1"), 300, tmp_path / "own", most_steps=200)
    assert found.kept
    assert found.gain_db > adapting.LEAST_GAIN_DB
    assert (found.card.domain, found.card.axes, found.card.training["start"]) == ("med", "through-plane", "floor-1.0")
    report = runner.carry_out(job(scan, model=found.card.path, scale="4x1x1"))
    assert report.model == "self-1.0"
    again = adapting.adapt(job(scan, model="self", scale="4x1x1"), 300, tmp_path / "own", resume=True)
    assert (again.steps, again.card) == (0, ModelCard.read(Path(found.card.path)))
    other = adapting._taken_over(tmp_path / "own", {"of": "another"}, found.card)
    assert other is None


def test_what_did_not_help_is_not_kept(tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapting, "LEAST_GAIN_DB", 1e3)
    found = adapting.adapt(job(scan, model="lattice-mri", scale="4x1x1"), 60, tmp_path / "own", most_steps=3)
    assert not found.kept
    assert found.card == find("lattice-mri")
    assert "not kept, lattice-mri" in found.told()
    assert [p.name for p in (tmp_path / "own").iterdir()] == [adapting.OUTCOME]
    again = adapting.adapt(job(scan, model="lattice-mri", scale="4x1x1"), 3, tmp_path / "own", resume=True)
    assert (again.kept, again.steps) == (False, 0)


def test_planes_are_learned_from_and_slices_are_never_made_coarse(scan: Path) -> None:
    made = runner.planned(job(scan, model="floor", scale="4x1x1"))
    with job(scan).open() as opened:
        learned, held = adapting.scenes_of(opened, made, "volumes")
    assert {tuple(sorted(s.samples.shape[1:3])) for s in (*learned, *held)} == {(56, 60)}
    assert sum(s.samples.shape[3] for s in (*learned, *held)) == 12
    assert all(s.thick_axes == (0, 1) for s in (*learned, *held))
    sensor = learned[0].sensor
    assert sensor is not None
    assert (sensor.scale, sensor.profile.value) == (4, 1.0)  # as wide as the slices are apart


def test_the_command_line_adapts_and_says_what_came_of_it(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "scene.zarr"
    header = raster((90, 80))
    runner.ingest(ArraySource(1000 * balls((90, 80), 5).astype(np.float32), header), image)
    product = tmp_path / "fine.zarr"
    asked = ("--scale", 2, "--noise", 0, "--adapt-seconds", 4)
    code, _, err = run("upscale", image, product, "--model", "self", *asked)
    assert code == 0
    assert "adapt    " in err
    assert "dB on the part of the scan held back" in err
    outcome = json.loads((tmp_path / "fine.zarr.adapted" / adapting.OUTCOME).read_text())
    report = json.loads(Path(f"{product}.report.json").read_text())
    assert report["model"] == ("self-1.0" if outcome["card"] else "floor")
    assert run("upscale", image, product, "--model", "floor", "--adapt", *asked, "--overwrite")[0] == 2


def test_an_interpolation_cannot_learn(tmp_path: Path, scan: Path) -> None:
    with pytest.raises(ModelError, match="floor cannot learn from the scan"):
        adapting.adapt(job(scan, model="floor", scale="4x1x1"), 3, tmp_path / "own")
