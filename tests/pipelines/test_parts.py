"""A run in three steps, for many machines: prepare once, make the tiles in parts, finish."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines import runner
from pipelines.errors import InputError, UsageError
from pipelines.flow import TileWork
from pipelines.job import Job
from pipelines.planning import Plan
from pipelines.request import Request
from pipelines.store import Store
from pipelines.workspace import held
from tests.pipelines.files import Run, smooth, write_raster


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "image.tif", smooth((1, 560, 540)).astype(np.uint16))


SMALL = ("--model", "floor", "--memory", "870MB", "--quiet")


def test_parts_in_any_order_make_the_bytes_of_one_run(run: Run, image: Path, tmp_path: Path) -> None:
    assert run("upscale", image, tmp_path / "whole.tif", *SMALL)[0] == 0
    code, out, err = run("prepare", image, tmp_path / "o.tif", *SMALL)
    assert code == 0, err
    work = Path(out.strip())
    for part in (3, 1, 2, 2):
        assert run("run", work, "--part", f"{part}/3", "--quiet")[0] == 0
    assert run("finish", work, "--quiet")[0] == 0
    assert (tmp_path / "o.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert not list(tmp_path.glob("o.tif.work*"))


def test_a_missing_part_is_named_and_can_be_made_up_for(run: Run, image: Path, tmp_path: Path) -> None:
    assert run("prepare", image, tmp_path / "o.tif", *SMALL)[0] == 0
    work = tmp_path / "o.tif.work"
    assert run("run", work, "--part", "1/2", "--quiet")[0] == 0
    code, _, err = run("finish", work, "--quiet")
    assert code == 5
    assert "missing" in err
    assert not (tmp_path / "o.tif").exists()
    assert run("run", work, "--quiet")[0] == 0
    assert run("finish", work, "--quiet")[0] == 0


def test_two_parts_may_run_at_once_but_no_part_twice_and_none_beside_its_finish(image: Path, tmp_path: Path) -> None:
    job = Job(str(image), str(tmp_path / "o.tif"), Request(model="floor"))
    work = runner.prepare(job)
    with held(work, part="1-of-2"):
        runner.run_part(work, 2, 2)
        with pytest.raises(UsageError, match="at work"):
            runner.run_part(work, 1, 2)
        with pytest.raises(UsageError, match="at work"):
            runner.finish(work)
    with held(work), pytest.raises(UsageError, match="at work"):
        runner.run_part(work, 1, 2)


def test_a_part_beside_one_of_another_number_of_parts_is_refused(image: Path, tmp_path: Path) -> None:
    work = runner.prepare(Job(str(image), str(tmp_path / "o.tif"), Request(model="floor")))
    with held(work, part="1-of-2"):
        runner.run_part(work, 2, 2)
        for part, parts in ((1, 3), (2, 3), (1, 1), (1, 12)):
            with pytest.raises(UsageError, match="part 1 of 2 is at work"):
                runner.run_part(work, part, parts)
    assert runner.run_part(work, 1, 3) > 0
    assert sorted(p.name for p in tmp_path.glob("*.lock")) == ["o.tif.work.lock"]


def test_a_killed_part_stands_in_the_way_of_no_other(image: Path, tmp_path: Path) -> None:
    work = runner.prepare(Job(str(image), str(tmp_path / "o.tif"), Request(model="floor")))
    work.with_name("o.tif.work.1-of-2.lock").write_text("host 123 2026-01-01 00:00:00\n")
    assert runner.run_part(work, 1, 1) > 0
    assert not work.with_name("o.tif.work.1-of-2.lock").exists()


def test_of_two_processes_with_other_numbers_of_parts_no_two_are_at_work(image: Path, tmp_path: Path) -> None:
    work = runner.prepare(Job(str(image), str(tmp_path / "o.tif"), Request(model="floor")))
    code = (
        "import sys, pathlib; from pipelines.workspace import held\n"
        "with held(pathlib.Path(sys.argv[1]), part='1-of-2'):\n    print('in', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(work)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "in"
        with pytest.raises(UsageError, match="part 1 of 2 is at work"):
            runner.run_part(work, 1, 3)
        other.communicate("\n", timeout=60)
    assert runner.run_part(work, 1, 3) > 0


def test_an_input_that_has_changed_is_not_finished(image: Path, tmp_path: Path) -> None:
    work = runner.prepare(Job(str(image), str(tmp_path / "o.tif"), Request(model="floor")))
    runner.run_part(work, 1, 1)
    write_raster(image, (smooth((1, 560, 540)) + 1).astype(np.uint16))
    with pytest.raises(InputError, match="changed"):
        runner.finish(work)


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b"])
def test_a_part_that_does_not_exist_is_refused(run: Run, image: Path, tmp_path: Path, part: str) -> None:
    assert run("prepare", image, tmp_path / "o.tif", *SMALL)[0] == 0
    assert run("run", tmp_path / "o.tif.work", "--part", part, "--quiet")[0] == 2


def test_a_folder_that_holds_no_run_is_refused(run: Run, tmp_path: Path) -> None:
    assert run("run", tmp_path)[0] == 2
    assert run("finish", tmp_path)[0] == 2


def test_parts_of_two_processes_at_once_share_the_work(image: Path, tmp_path: Path) -> None:
    work = runner.prepare(Job(str(image), str(tmp_path / "o.tif"), Request(model="floor")))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(work), "--quiet", "--part"]
    both = [subprocess.Popen([*command, f"{k}/2"]) for k in (1, 2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert runner.finish(work).consistency_over_noise is not None


def test_a_process_cut_off_from_its_run_writes_into_no_other(run: Run, image: Path, tmp_path: Path) -> None:
    _, out, _ = run("prepare", image, tmp_path / "o.tif", *SMALL)
    store = Store(Path(out.splitlines()[-1]))
    plan = Plan.from_json(store.read_json("plan.json") or {})
    make = TileWork(str(store.folder), plan.run_hash, "cpu", 1).load()
    store.write_json("plan.json", {**plan.to_json(), "noise": 3.0})
    assert make([0]) == []
    assert not store.shard_path((0, 0)).exists()
    store.write_json("plan.json", plan.to_json())
    assert [record.tile for record in make([0])] == [0]
