"""Stopped, killed and refused runs: what stays, and what goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines import batch, runner, workspace
from pipelines.errors import BudgetError, StoreError, TileError
from pipelines.job import Job
from pipelines.planning import Plan
from pipelines.request import Request
from pipelines.sizing import staffed
from pipelines.store import OWN_FILES, OWN_FOLDERS, Ledger, Record, Store
from tests.pipelines.files import Run, smooth, write_raster


def test_a_refused_resume_keeps_the_run(run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.store.shards.write", full)
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

    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    assert code == 4
    assert "disk" in err


def test_a_disk_that_fills_up_leaves_a_run_to_resume(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.store.shards.write", full)
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


def test_a_plan_of_another_version_is_not_resumed(run: Run, thick: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    common = ("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--work", work, "--quiet")
    assert run(*common)[0] == 0
    plan = json.loads((work / "plan.json").read_text())
    del plan["orientation"]
    (work / "plan.json").write_text(json.dumps({**plan, "something_new": 1}))
    code, _, err = run(*common, "--overwrite", "--resume")
    assert code == 3
    assert "another version" in err
    assert run(*common, "--overwrite")[0] == 0


def test_the_default_device_is_the_one_it_stands_for(run: Run, thick: Path, tmp_path: Path) -> None:
    from pipelines.networks import has_cuda

    device = "cuda" if has_cuda() else "cpu"
    common = ("upscale", thick, tmp_path / "o.nii.gz", "--scale", "2x1x1", "--work", tmp_path / "work", "--json")
    assert run(*common, "--quiet")[0] == 0
    code, out, err = run(*common, "--quiet", "--overwrite", "--resume", "--device", device)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["tiles_resumed"] >= 1


def test_a_disk_that_is_full_while_reading_leaves_a_run_to_resume(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.zarr_image.create_array", full)
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    assert code == 5, err
    assert "No space left" in err
    assert "--resume" in err
    monkeypatch.undo()
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet", "--resume")[0] == 0


@pytest.mark.parametrize("stage", ["export", "verify"])
@pytest.mark.parametrize("output", ["o.nii.gz", "o.zarr"])
def test_a_stop_after_the_last_tile_leaves_no_product_and_goes_on(
    thick: Path, tmp_path: Path, stage: str, output: str
) -> None:
    from pipelines import runner
    from pipelines.errors import StoppedError

    reached: list[str] = []
    with pytest.raises(StoppedError, match=stage):
        runner.upscale(
            thick, tmp_path / output, model="floor",
            progress=lambda name, _done, _total: reached.append(name), stopped=lambda: stage in reached,
        )  # fmt: skip
    left = {p.name for p in tmp_path.iterdir()} - {"t2.nii.gz", "t2.json"}
    assert left == {f"{output}.work"}
    report = runner.upscale(thick, tmp_path / output, model="floor", resume=True)
    assert report.tiles_resumed == report.tiles


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("stage", ["export", "verify"])
@pytest.mark.parametrize("output", ["o.nii.gz", "o.zarr"])
def test_what_a_stopped_run_was_to_replace_stays(thick: Path, tmp_path: Path, stage: str, output: str) -> None:
    from pipelines import runner
    from pipelines.errors import StoppedError

    runner.upscale(thick, tmp_path / output, model="cubic")
    before = tree_bytes(tmp_path)
    reached: list[str] = []
    with pytest.raises(StoppedError, match=stage):
        runner.upscale(
            thick, tmp_path / output, model="floor", overwrite=True,
            progress=lambda name, _done, _total: reached.append(name), stopped=lambda: stage in reached,
        )  # fmt: skip
    after = {name: data for name, data in tree_bytes(tmp_path).items() if ".work/" not in name}
    assert after == before
    assert runner.upscale(thick, tmp_path / output, model="floor", resume=True).model == "floor"
    assert tree_bytes(tmp_path) != before
    assert {p.name for p in tmp_path.iterdir()} == {"t2.nii.gz", "t2.json", output, f"{output}.report.json"}


def test_a_product_that_cannot_be_compared_does_not_stay(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object, **__: object) -> None:
        raise StoreError(what="planted")

    monkeypatch.setattr("pipelines.delivery.verify", damaged)
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")[0] == 5
    assert not (tmp_path / "o.nii.gz").exists()
    assert not (tmp_path / "o.nii.gz.report.json").exists()
    monkeypatch.undo()
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet", "--resume")[0] == 0


def test_a_disk_that_fails_while_comparing_is_named_as_such(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("pipelines.delivery.verify", failing)
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    assert code == 5
    assert "could not be compared with its input (Input/output error)" in err
    assert "report" not in err
    assert not (tmp_path / "o.nii.gz").exists()
    monkeypatch.undo()
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet", "--resume")[0] == 0


def test_a_stopped_run_that_may_overwrite_goes_on_with_resume_alone(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    output, work = tmp_path / "o.nii.gz", tmp_path / "work"
    again = ("upscale", thick, output, "--model", "floor", "--work", work, "--quiet", "--resume")
    output.write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.store.shards.write", full)
        assert run("upscale", thick, output, "--model", "floor", "--work", work, "--quiet", "--overwrite")[0] == 5
        assert run(*again)[0] == 5  # stopped once more
    other = tmp_path / "other.nii.gz"
    other.write_bytes(b"someone's")
    assert run("upscale", thick, other, *again[3:])[0] == 2  # it was said of another output
    assert run(*again, "--scale", "2x1x1")[0] == 3  # and of this plan
    assert output.read_bytes() == b"old"
    assert run("plan", thick, output, "--model", "floor", "--work", work, "--resume")[0] == 0
    assert run(*again)[0] == 0
    assert nib.load(output).shape[2] > 12
    assert run(*again)[0] == 2  # it was said of one run


def test_a_failing_export_keeps_the_old_product_and_its_report(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "o.nii.gz"
    assert run("upscale", thick, output, "--model", "cubic", "--quiet")[0] == 0
    before = output.read_bytes(), (tmp_path / "o.nii.gz.report.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("srmed.nifti.os.fsync", full)
    assert run("upscale", thick, output, "--model", "floor", "--quiet", "--overwrite")[0] == 5
    assert (output.read_bytes(), (tmp_path / "o.nii.gz.report.json").read_bytes()) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["plan.json", "ingest.json", ".report.json"])
def test_a_small_file_that_cannot_be_written_ends_cleanly(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    written = Path.write_text

    def full(path: Path, text: str) -> int:
        if name in path.name:
            written(path, text[:10])
            raise OSError(number, os.strerror(number))
        return written(path, text)

    monkeypatch.setattr("pathlib.Path.write_text", full)
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    assert code == 5, err
    assert os.strerror(number) in err
    left = {p.name for p in tmp_path.iterdir()} - {"t2.nii.gz", "t2.json"}
    assert left == (set() if name == "plan.json" else {"o.nii.gz.work"})
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    assert run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet", "--resume")[0] == 0


def test_a_full_disk_under_the_ledger_leaves_a_run_to_resume(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipelines.store.os.fsync", full)
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    assert code == 5, err
    assert "No space left" in err


def test_the_latest_record_of_a_tile_counts_whichever_worker_wrote_it(tmp_path: Path) -> None:
    ledger = Ledger(Store(tmp_path), "run")
    ledger.append("worker-1", Record(0, "run", checksum=1))
    ledger.append("worker-0", Record(0, "run", checksum=2))
    assert ledger.records()[0].checksum == 2
    ledger.append("worker-1", Record(0, "run", checksum=3))
    assert ledger.records()[0].checksum == 3


def test_tiles_that_a_rerun_discards_are_counted(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--work", tmp_path / "work", "--overwrite")
    assert "discarded" not in run(*common)[2]
    assert "discarded: 1; --resume" in run(*common)[2]
    assert "discarded" not in run(*common, "--resume")[2]


def test_a_folder_that_cannot_be_written_is_refused(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.write_text", denied)
    code, _, err = run("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet")
    assert code == 2
    assert "Permission denied" in err
    assert not list(tmp_path.glob("o.nii.gz*"))


def test_each_disk_must_hold_what_goes_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(BudgetError, match="disk"):  # one disk under both
        workspace.require_space({a: 600, b: 600}, "look elsewhere")
    workspace.require_space({a: 400, b: 400}, "look elsewhere")
    monkeypatch.setattr(workspace, "_disk", lambda folder: folder.name)
    workspace.require_space({a: 600, b: 600}, "look elsewhere")
    with pytest.raises(BudgetError, match="look elsewhere"):
        workspace.require_space({a: 100, b: 1000}, "look elsewhere")


def test_a_resumed_run_keeps_its_tiles_whatever_the_memory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_raster(tmp_path / "scene.tif", smooth((1, 600, 600)).astype(np.uint16))
    options = ("--model", "floor", "--quiet", "--json")
    _, out, _ = run("upscale", scene, tmp_path / "whole.tif", *options, "--workers", "1")
    whole = json.loads(out.splitlines()[-1])

    def full_disk(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.store.shards.write", full_disk)
    assert run("upscale", scene, tmp_path / "o.tif", *options, "--workers", "1")[0] == 5
    monkeypatch.undo()
    monkeypatch.setattr("pipelines.sizing.TILES", {2: ((512, 512), (256, 256))})  # what less memory leads to
    less = ("--memory", str(whole["predicted_bytes"] - 1), "--workers", "1")
    _, out, err = run("plan", scene, tmp_path / "p.tif", *options[:2], "--json", *less)
    assert json.loads(out.splitlines()[-1])["tiles"] > whole["tiles"]
    code, out, err = run("upscale", scene, tmp_path / "o.tif", *options, "--resume", *less)
    assert code == 0, err
    report = json.loads(out.splitlines()[-1])
    assert report["tiles"] == whole["tiles"]
    assert (tmp_path / "o.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_a_torn_line_of_the_ledger_swallows_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    Ledger(store, "run").append("worker-0", Record(0, "run", 1))
    with (tmp_path / "ledger" / "worker-0.jsonl").open("a") as file:
        file.write('{"tile": 1, "run": "ru')
    Ledger(store, "run").append("worker-0", Record(2, "run", 3))
    assert sorted(Ledger(store, "run").records()) == [0, 2]


def test_a_run_called_again_after_its_end_leaves_the_product_alone(run: Run, thick: Path, tmp_path: Path) -> None:
    common = ("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--quiet", "--json")
    first = run(*common)[1].splitlines()[-1]
    before = (tmp_path / "o.nii.gz").stat().st_mtime_ns
    code, out, _ = run(*common, "--overwrite", "--resume")
    assert code == 0
    assert json.loads(out.splitlines()[-1]) == json.loads(first)
    assert (tmp_path / "o.nii.gz").stat().st_mtime_ns == before
    plan = ("plan", *common[1:5], "--overwrite", "--json")
    assert json.loads(run(*plan)[1])["done"]
    assert not json.loads(run(*plan, "--noise", "3")[1])["done"]
    assert run(*common, "--overwrite", "--resume", "--noise", "3")[0] == 0
    assert (tmp_path / "o.nii.gz").stat().st_mtime_ns > before


def removals(taken: Path, folder: Path) -> Iterator[int]:
    """`folder` as a kill leaves it after so many steps of `Store.remove`; taken: the whole one."""
    names = [*OWN_FILES[:2], *OWN_FOLDERS, *OWN_FILES[2:]]
    assert {p.name for p in taken.iterdir()} <= set(names)
    for count in range(len(names) + 1):
        shutil.copytree(taken, folder)
        for name in names[:count]:
            workspace.remove(folder / name)
        yield count


def taken_at_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies the work folder of the next run to `folder` before it goes."""

    def remove(store: Store, original: Callable[[Store], None] = Store.remove) -> None:
        if store.fine.exists():
            shutil.copytree(store.folder, folder)
        original(store)

    monkeypatch.setattr(Store, "remove", remove)


def full_disk(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_a_run_killed_while_it_removes_its_work_folder_has_ended(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_raster(tmp_path / "scene.tif", smooth((1, 600, 600)).astype(np.uint16))
    output, common = tmp_path / "o.tif", ("--model", "floor", "--workers", "1", "--quiet", "--json")
    taken_at_its_end(tmp_path / "taken", monkeypatch)
    code, out, _ = run("upscale", scene, output, *common)
    assert code == 0
    needed = json.loads(out.splitlines()[-1])["predicted_bytes"]
    monkeypatch.undo()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("o.tif*")}
    for step in removals(tmp_path / "taken", tmp_path / "o.tif.work"):
        with monkeypatch.context() as patch:
            patch.setattr(runner, "run", None)  # no tile is made
            less: tuple[str, ...] = ()
            if (tmp_path / "o.tif.work" / "plan.json").exists():  # it says with which tiles the product was made
                patch.setattr("pipelines.sizing.TILES", {2: ((512, 512), (256, 256))})
                less = ("--memory", str(needed - 1))
                _, out, _ = run("plan", scene, tmp_path / "p.tif", *common[:4], "--json", *less)
                assert json.loads(out.splitlines()[-1])["tiles"] > 1
            code, _, err = run("upscale", scene, output, *common, "--resume", *less)
        assert (code, step) == (0, step), err
        assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("o.tif*")} == files


def test_a_finish_killed_while_it_removes_the_work_folder_has_ended(
    thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = runner.prepare(Job(str(thick), str(tmp_path / "o.nii.gz"), Request(model="floor")))
    runner.run_part(work, 1, 1)
    taken_at_its_end(tmp_path / "taken", monkeypatch)
    report = runner.finish(work)
    monkeypatch.undo()
    monkeypatch.setattr(runner, "finished", None)  # no product is written
    for step in removals(tmp_path / "taken", work):
        if step < len(OWN_FILES) + len(OWN_FOLDERS):
            assert runner.finish(work).to_json() == report.to_json()
        else:
            work.rmdir()  # an empty folder says nothing
        assert not work.exists()


def test_a_batch_ends_what_a_killed_job_has_left(thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(str(thick), str(tmp_path / "o.nii.gz"), Request(model="floor"), overwrite=True, resume=True)
    taken_at_its_end(tmp_path / "taken", monkeypatch)
    assert batch.carry_out(job).state == "made"
    monkeypatch.undo()
    for _ in removals(tmp_path / "taken", tmp_path / "o.nii.gz.work"):
        assert batch.carry_out(job).state == "kept"
        assert not (tmp_path / "o.nii.gz.work").exists()


def test_a_batch_with_a_work_folder_that_is_kept_makes_nothing_twice(thick: Path, tmp_path: Path) -> None:
    job = Job(str(thick), str(tmp_path / "o.nii.gz"), Request(model="floor"), work=str(tmp_path / "work"))
    job = replace(job, overwrite=True, resume=True)
    assert [batch.carry_out(job).state for _ in range(2)] == ["made", "kept"]
    assert (tmp_path / "work" / "fine.zarr").is_dir()
    (tmp_path / "o.nii.gz").write_bytes(b"damaged")
    assert [batch.carry_out(job).state for _ in range(2)] == ["made", "kept"]


def test_a_folder_that_another_process_removes_is_left_to_it(
    thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, work = Job(str(thick), str(tmp_path / "o.nii.gz"), Request(model="floor")), tmp_path / "o.nii.gz.work"
    taken_at_its_end(tmp_path / "taken", monkeypatch)
    runner.carry_out(job)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "taken", work)
    with workspace.held(work):
        assert runner.over(job) is not None
        assert (work / "plan.json").exists()
    assert runner.over(job) is not None
    assert not work.exists()
    work.with_name("o.nii.gz.work.lock").touch()  # of a process killed at its very end
    assert runner.over(job) is not None
    assert not work.with_name("o.nii.gz.work.lock").exists()


def test_the_product_of_an_interrupted_overwrite_is_made_again(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, asked = tmp_path / "o.nii.gz", ("--model", "floor", "--quiet", "--overwrite")
    assert run("upscale", thick, output, *asked)[0] == 0
    whole = output.read_bytes()
    output.write_bytes(b"damaged" + whole[7:])
    monkeypatch.setattr("pipelines.store.shards.write", full_disk)
    assert run("upscale", thick, output, *asked)[0] == 5
    monkeypatch.undo()
    assert run("upscale", thick, output, *asked, "--resume")[0] == 0
    assert output.read_bytes() == whole


def test_a_finish_of_a_product_made_anew_does_not_take_the_old_one_for_it(thick: Path, tmp_path: Path) -> None:
    job = Job(str(thick), str(tmp_path / "o.nii.gz"), Request(model="floor"), overwrite=True)
    runner.carry_out(job)
    whole = (tmp_path / "o.nii.gz").read_bytes()
    (tmp_path / "o.nii.gz").write_bytes(b"damaged")
    work = runner.prepare(job)
    with pytest.raises(TileError, match="missing"):
        runner.finish(work)
    runner.run_part(work, 1, 1)
    runner.finish(work)
    assert (tmp_path / "o.nii.gz").read_bytes() == whole


def test_nothing_of_someone_else_goes_with_a_product_that_is_there(run: Run, thick: Path, tmp_path: Path) -> None:
    output, asked = tmp_path / "o.nii.gz", ("--model", "floor", "--quiet", "--resume")
    assert run("upscale", thick, output, *asked[:3])[0] == 0
    (tmp_path / "o.nii.gz.work" / "ledger").mkdir(parents=True)
    (tmp_path / "o.nii.gz.work" / "ledger" / "2026.txt").write_text("mine")
    assert run("upscale", thick, output, *asked)[0] == 0
    assert (tmp_path / "o.nii.gz.work" / "ledger" / "2026.txt").read_text() == "mine"


def test_a_replaced_folder_that_a_kill_has_left_goes_with_the_resume(
    thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(str(thick), str(tmp_path / "o.zarr"), Request(model="floor"), overwrite=True, resume=True)
    runner.carry_out(replace(job, resume=False))
    taken_at_its_end(tmp_path / "taken", monkeypatch)
    report = runner.carry_out(replace(job, resume=False))
    monkeypatch.undo()
    shutil.copytree(tmp_path / "taken", tmp_path / "o.zarr.work")
    (tmp_path / ".o.new.zarr.old" / "samples").mkdir(parents=True)
    assert runner.carry_out(job).to_json() == report.to_json()
    assert sorted(p.name for p in tmp_path.glob("*o.*")) == ["o.zarr", "o.zarr.report.json"]
    assert not list(tmp_path.glob(".o*"))


def test_a_product_stays_what_it_is_beside_a_run_of_another_request(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, asked = tmp_path / "o.nii.gz", ("--quiet", "--overwrite")
    assert run("upscale", thick, output, *asked, "--model", "floor")[0] == 0
    whole = output.read_bytes()
    monkeypatch.setattr("pipelines.store.shards.write", full_disk)
    assert run("upscale", thick, output, *asked, "--model", "cubic")[0] == 5
    monkeypatch.undo()
    assert run("upscale", thick, output, *asked, "--model", "floor", "--resume")[0] == 0
    job = Job(str(thick), str(output), Request(model="floor"), overwrite=True, resume=True)
    assert batch.carry_out(job).state == "kept"
    assert output.read_bytes() == whole
    assert (tmp_path / "o.nii.gz.work" / "plan.json").exists()


def test_a_run_is_not_resumed_with_other_libraries(
    run: Run, thick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--work", tmp_path / "work", "--quiet")
    assert run(*asked)[0] == 0
    store = Store(tmp_path / "work")
    plan = store.read_json("plan.json") or {}
    assert set(plan["libraries"]) == {"numpy", "scipy"}  # torch made nothing
    store.write_json("plan.json", {**plan, "libraries": {**plan["libraries"], "scipy": "1.0"}})
    code, _, err = run(*asked, "--overwrite", "--resume")
    assert code == 3
    assert f"another run (different: scipy 1.0, now {plan['libraries']['scipy']})" in err


def test_more_readers_and_writers_are_no_other_run(run: Run, thick: Path, tmp_path: Path) -> None:
    asked = ("upscale", thick, tmp_path / "o.nii.gz", "--model", "floor", "--work", tmp_path / "work", "--quiet")
    assert run(*asked)[0] == 0
    code, out, err = run(*asked, "--overwrite", "--resume", "--readers", "2", "--writers", "2", "--json")
    assert code == 0, err
    report = json.loads(out.splitlines()[-1])
    assert report["tiles_resumed"] == report["tiles"]


def test_a_resume_that_needs_more_than_the_memory_says_so_on_stderr_and_in_the_report(run: Run, tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", smooth((40, 600, 600)).astype(np.uint16))
    folder = runner.prepare(Job(str(image), str(tmp_path / "o.tif"), Request(model="floor", memory="4GB")))
    made = Plan.from_json(Store(folder).read_json("plan.json") or {})
    least = staffed(replace(made, memory_bytes=0), made.card, made.shard).predicted_bytes
    again = ("upscale", image, tmp_path / "o.tif", "--model", "floor", "--resume")
    code, _, err = run(*again, "--memory", f"{least // 10**6 - 1}MB")
    assert code == 0, err
    text = "the tiles of the run that is resumed need"
    assert [line.startswith(f"warning  {text}") for line in err.splitlines() if text in line] == [True]
    report = json.loads((tmp_path / "o.tif.report.json").read_text())
    assert any(text in warning for warning in report["warnings"])
