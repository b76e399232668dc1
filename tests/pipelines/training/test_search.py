from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from pipelines.errors import UsageError
from pipelines.training.config import TrainingConfig
from pipelines.training.search import search

SPACE = "search: {steps: 3, space: {rate: {low: 1.0e-4, high: 1.0e-2, log: true}, network.channels: [[4, 4], [8, 8]]}}"

Config = Callable[..., Path]


def test_a_search_goes_on_where_it_was_stopped(tmp_path: Path, config: Config, data_folder: Path) -> None:
    path = config("rasters", SPACE)
    said: list[str] = []
    search(path, data_folder, 2, runs=tmp_path, say=said.append)
    found = search(path, data_folder, 3, runs=tmp_path, say=said.append)
    assert [line.split()[:2] for line in said] == [["try", "0"], ["try", "1"], ["try", "2"]]
    assert found.tries == 3
    best = TrainingConfig.read(found.config)
    assert best.rate == found.settings["rate"]
    assert best.network == {"name": "espcn", "channels": found.settings["network.channels"]}
    assert (best.steps, best.search) == (6, {})
    assert len(list((tmp_path / "copies").iterdir())) == 3


def test_a_try_that_was_killed_is_made_again(tmp_path: Path, config: Config, data_folder: Path) -> None:
    path = config("rasters", SPACE)
    search(path, data_folder, 1, runs=tmp_path)
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / 'tiny-1.0' / 'search.sqlite'}")
    study.ask()
    found = search(path, data_folder, 2, runs=tmp_path)
    assert found.tries == 3
    assert [t.state.name for t in study.get_trials()] == ["COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("search: {}", "does not say what to search"),
        ("search: {space: {rtae: [0.1]}}", "unknown key 'rtae'.*'rate'"),
        ("search: {space: {network.chanels: [[4, 4]]}}", "chanels"),
        ("search: {space: {batch: []}}", "give a list of choices|Give a list of choices"),
        ("search: {space: {rate: {low: 0, high: 1, log: true}}}", "low"),
        ("search: {space: {batch: [4]}, tries: 4}", "unknown key 'tries'"),
        ("search: {space: {batch: [4]}, steps: 0}", "0 steps"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(
    tmp_path: Path, config: Config, data_folder: Path, line: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        search(config("rasters", line), data_folder, 1, runs=tmp_path)
