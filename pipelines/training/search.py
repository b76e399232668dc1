"""Looking for better settings: Optuna tries what `search` of a config allows, each try a short training.

The study is a database beside the runs, so that a search that was stopped goes on with the same call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState

from pipelines.errors import BudgetError, ModelError, UsageError
from pipelines.training.config import TrainingConfig
from pipelines.training.fit import train
from pipelines.training.textbook import built

log = logging.getLogger(__name__)

GROUPS = ("network", "augment", "loss", "adversarial")
"""Keys of a config that hold keys: 'network.channels'."""

NOTHING_BELOW = 3
"""Tries that are carried out to the end before any is given up for being below their median."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best of a search. gain_db: over the floor on held-out pairs; config: the YAML with its settings."""

    gain_db: float
    settings: dict[str, Any]
    config: Path
    tries: int


def search(
    config: Path,
    data: Path,
    count: int,
    *,
    runs: Path | None = None,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _all: None,
    say: Callable[[str], None] = log.info,
) -> Found:
    """The best of `count` tries in all, those of earlier calls included.

    The config's `search` holds `steps` of a try (default: a tenth of the training) and `space`: key -> list of choices,
    or {low, high} of a number, with log: true on a logarithmic scale. A try that is below the median of the others at
    the same step ends early. Raises UsageError for a space that cannot be, and what `train` raises.
    """
    settings = TrainingConfig.read(config)
    space, steps = _space(settings, config.name)
    folder = (runs or Path("runs")) / f"{settings.name}-{settings.version}"
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'search.sqlite'}",
        study_name=settings.name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=NOTHING_BELOW),
    )
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # a call that was killed
        study.tell(trial.number, state=TrialState.FAIL)

    def tried(trial: optuna.Trial) -> float:
        chosen = {key: _suggested(trial, key, told) for key, told in space.items()}
        own = _changed(settings, {**chosen, "steps": steps, "name": f"try-{trial.number}", "patience": 0})

        def pruned(step: int, gain: float) -> bool:
            trial.report(gain, step)
            return trial.should_prune()

        card = train(
            own,
            data,
            overwrite=True,
            runs=folder / "tries",
            copies=folder.parent / "copies",
            device=device,
            progress=progress,
            say=lambda _: None,
            on_look=pruned,
        )
        gain = float(card.training["reached"]["gain_db"])
        said = ", ".join(f"{key} {value}" for key, value in chosen.items())
        if card.training["steps"] < steps:
            say(f"try {trial.number:<4} given up  {said}")
            raise optuna.TrialPruned
        say(f"try {trial.number:<4} {gain:+.2f} dB over the floor  {said}")
        return gain

    done = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
    study.sampler = optuna.samplers.TPESampler(seed=settings.seed + done)  # goes on, rather than beginning again
    # a try that does not fit is one that failed, and no reason to end
    study.optimize(tried, n_trials=max(0, count - done), catch=(ModelError, BudgetError))
    return _written(settings, study, folder / "best.yaml")


def _space(settings: TrainingConfig, name: str) -> tuple[dict[str, Any], int]:
    """What is searched, and the steps of a try. Raises UsageError."""
    told = settings.search
    if not settings.textbook or not isinstance(told.get("space"), Mapping) or not told["space"]:
        raise UsageError(
            what=f"{name} does not say what to search",
            fix="give search: {space: {rate: {low: 1.0e-4, high: 1.0e-2, log: true}, network.channels: [16, 32]}}",
        )
    unknown = set(told) - {"space", "steps"}
    if unknown:
        raise UsageError(what=f"'search' of {name} has the unknown key '{unknown.pop()}'", fix="known: space, steps")
    steps = told.get("steps", max(1, settings.steps // 10))
    if type(steps) is not int or steps < 1:
        raise UsageError(what=f"a try has {steps!r} steps", fix="give a whole number")
    for key, choices in told["space"].items():
        _check_choices(settings, key, choices)
    return dict(told["space"]), steps


def _check_choices(settings: TrainingConfig, key: str, told: Any) -> None:
    if isinstance(told, list) and told:
        for value in told:
            built(_changed(settings, {key: value}))
        return
    ends: list[Any] = [told.get(end) for end in ("low", "high")] if isinstance(told, Mapping) else []
    numbers = len(ends) == 2 and all(type(e) in (int, float) for e in ends) and not set(told) - {"low", "high", "log"}
    if not (numbers and ends[0] < ends[1] and (ends[0] > 0 or not told.get("log"))):
        raise UsageError(
            what=f"'{key}' of the search is {told!r}", fix="give a list of choices, or {low: NUMBER, high: NUMBER}"
        )
    for end in ends:
        _changed(settings, {key: end})


def _suggested(trial: optuna.Trial, key: str, told: Any) -> Any:
    if isinstance(told, list):  # by number: Optuna takes no lists for choices
        return told[trial.suggest_categorical(key, list(range(len(told))))]
    low, high, scale = told["low"], told["high"], bool(told.get("log"))
    if type(low) is int and type(high) is int:
        return trial.suggest_int(key, low, high, log=scale)
    return trial.suggest_float(key, float(low), float(high), log=scale)


def _changed(settings: TrainingConfig, chosen: Mapping[str, Any]) -> TrainingConfig:
    """The config with other values, and nothing to search. Raises UsageError for unknown keys or values."""
    values = settings.to_json()
    values["search"] = {}
    for key, value in chosen.items():
        group, dot, inner = key.partition(".")
        if dot and group not in GROUPS:
            raise UsageError(what=f"'{key}' is no key of a config", fix=f"groups are {', '.join(GROUPS)}")
        if dot:
            values[group] = {**(values.get(group) or {}), inner: value}
        else:
            values[key] = value
    return TrainingConfig.of(values, "the search")


def _written(settings: TrainingConfig, study: optuna.Study, path: Path) -> Found:
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    if not finished:
        raise UsageError(
            what="no try of the search came to its end", why="all failed", fix="search a smaller space, or more tries"
        )
    best = study.best_trial
    space = settings.search["space"]
    chosen = {k: space[k][v] if isinstance(space[k], list) else v for k, v in best.params.items()}
    text = yaml.safe_dump(_changed(settings, chosen).to_json(), sort_keys=False, allow_unicode=True)
    path.write_text(f"# the best of {len(finished)} tries\n{text}", encoding="utf-8")
    return Found(float(best.value or 0.0), chosen, path, len(study.trials))
