"""`truescale bench` says what was measured and whether it is enough; no test asks how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.bench import suite
from pipelines.bench.child import CaseError, once
from pipelines.bench.goals import Asked, Row
from pipelines.screen import describe_bench
from tests.pipelines.files import Run

CHEAP = ("certify", "seams")
"""Benches whose figures do not depend on what else the machine does."""


@pytest.fixture(scope="module")
def measured() -> suite.Outcome:
    return suite.run(CHEAP, Asked(quick=True), lambda *_: None)


def test_every_bench_of_the_design_has_a_name() -> None:
    asked = "engine-2d engine-3d engine-peers kept-heap seams memory recompute bytes store resume ledger dask start"
    assert {*asked.split(), "slurm", "certify"} <= set(suite.BENCHES)


def test_benches_run_in_one_order_whatever_was_typed(measured: suite.Outcome) -> None:
    assert [row.bench for row in measured.rows] == ["seams"] * 4 + ["certify"] * 2


def test_tiles_show_nowhere(measured: suite.Outcome) -> None:
    differ = [row for row in measured.rows if row.unit == "samples"]
    assert [row.value for row in differ] == [0, 0]
    assert all(row.state == "met" for row in measured.rows if row.bench == "seams")


def test_the_table_names_goal_figure_and_machine(measured: suite.Outcome) -> None:
    text = describe_bench(measured)
    assert "halo of lattice-geo (2-D) certified" in text
    assert "<= 0 samples" in text
    assert "torch" in text
    assert "None" not in text


def test_json_holds_what_the_table_shows(run: Run) -> None:
    code, out, err = run("bench", "slurm", "engine-cuda", "--quick", "--device", "cpu", "--json", "--quiet")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert {row["bench"] for row in found["rows"]} == {"slurm", "engine-cuda"}
    last = found["rows"][-1]
    assert (last["state"], last["value"]) == ("not run", None)
    assert "CUDA" in last["why"]


def test_an_unknown_bench_is_refused_with_the_nearest(run: Run) -> None:
    code, _, err = run("bench", "kept-heaps")
    assert code == 2
    assert "Did you mean 'kept-heap'?" in err


@pytest.mark.parametrize(
    ("value", "most", "least", "state"),
    [
        (1.1, 1.1, None, "met"),
        (1.11, 1.1, None, "MISSED"),
        (1.5, None, 1.6, "MISSED"),
        (None, 1.1, None, "not run"),
        (2.0, None, None, "-"),
    ],
)
def test_a_goal_is_met_missed_or_open(value: float | None, most: float | None, least: float | None, state: str) -> None:
    assert Row(what="a figure", value=value, most=most, least=least).state == state


def test_a_missed_goal_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    missed = Row(what="a figure", value=2.0, most=1.0)
    monkeypatch.setattr("pipelines.bench.hosts.slurm", lambda _asked, _folder: [missed])
    code, out, _ = run("bench", "slurm", "--device", "cpu", "--quiet")
    assert code == 0
    assert "MISSED" in out


def test_a_bench_that_fails_stops_no_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(asked: Asked, folder: Path) -> list[Row]:
        raise CaseError("its process was lost")

    monkeypatch.setattr("pipelines.bench.hosts.slurm", broken)
    code, out, _ = run("bench", "slurm", "engine-cuda", "--device", "cpu", "--quiet")
    assert code == 0
    assert "its process was lost" in out
    assert "no CUDA device" in out


def test_an_error_of_a_case_comes_back_as_text() -> None:
    with pytest.raises(CaseError, match="the work folder"):
        once("pipelines.bench.cases:engine", "/nowhere")
