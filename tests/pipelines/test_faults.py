"""Faults at random times: what was done stays, and the product has the same bytes."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from pipelines.store import Store
from tests.pipelines import killing
from tests.pipelines.files import Run


@pytest.mark.slow
def test_a_run_killed_at_any_time_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    outcomes = killing.kill_and_resume(20, seed, tmp_path)
    assert len(outcomes) == 20


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once_and_the_run_can_go_on(tmp_path: Path) -> None:
    source, output = killing.scene(tmp_path), tmp_path / "out.tif"
    asked = ["upscale", str(source), str(output), "--model", "floor", "--quiet"]
    process = killing.start(asked, tmp_path)
    ledger = tmp_path / "out.tif.work" / "ledger"
    deadline = time.monotonic() + 60
    while not ledger.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    for _ in range(2):
        killing.os.kill(process.pid or 0, signal.SIGINT)
        time.sleep(0.02)
    process.join()
    assert process.exitcode == 5
    assert "stopped at once" in (tmp_path / "log").read_text()
    assert Store(tmp_path / "out.tif.work").read_json("plan.json") is not None
    again = killing.start([*asked, "--resume"], tmp_path)
    again.join()
    assert again.exitcode == 0


def test_a_ledger_line_of_nonsense_costs_its_tile_only(run: Run, scene: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    asked = ("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--work", work, "--quiet")
    assert run(*asked)[0] == 0
    expected = (tmp_path / "o.tif").read_bytes()
    for ledger in (work / "ledger").glob("*.jsonl"):
        ledger.write_bytes(b'{"tile": \x00\xff\n[]\nnull\n' + ledger.read_bytes()[:40])
    assert run(*asked, "--overwrite", "--resume")[0] == 0
    assert (tmp_path / "o.tif").read_bytes() == expected


def test_a_source_that_disappears_is_named_and_nothing_is_left(
    run: Run, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import stages

    kept, ready = scene.read_bytes(), stages.ready

    def vanishing(*arguments: object) -> None:
        scene.unlink()
        ready(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("pipelines.stages.ready", vanishing)
    code, _, err = run("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--quiet")
    assert code == 3, err  # the open file may still be read, but it is not the one that was planned for
    assert "changed while it was read" in err
    assert not (tmp_path / "o.tif").exists()
    monkeypatch.undo()
    scene.write_bytes(kept)
    assert run("upscale", scene, tmp_path / "o.tif", "--model", "floor", "--quiet", "--resume", "--overwrite")[0] == 0
