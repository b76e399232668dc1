"""Stopped, killed and refused runs: what stays, and what goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.pipelines.files import Run, smooth


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


def test_a_signal_stops_the_run_so_that_it_can_go_on(thick: Path, tmp_path: Path) -> None:

    big = tmp_path / "big.nii"
    nib.save(nib.Nifti1Image(smooth((220, 200, 40)), np.diag([1, 1, 4, 1])), big)
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
