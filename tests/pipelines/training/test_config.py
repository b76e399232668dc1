from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipelines.card import CONFIGS
from pipelines.errors import TruescaleError, UsageError
from pipelines.networks.textbook import REGISTRY
from pipelines.training.config import VALUES, TrainingConfig
from pipelines.training.lattice import LatticeTask
from pipelines.training.textbook import built


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("setps: 6", "unknown key 'setps'.*Did you mean 'steps'"),
        ("kind: videos", "trains on 'videos'.*volumes, rasters"),
        ("network: {name: esdr}", "network 'esdr'.*Did you mean 'edsr'"),
        ("augment: {flip: true}", "'augment' of tiny.yaml has the unknown key 'flip'.*'flips'"),
        ("augment: {noise: 2}", "noise 2.*a number of 0 to 1"),
        ("augment: {mtf: [0.4, 0.2]}", "mtf .*two rising numbers"),
        ("augment: {noises: [pink]}", "gaussian, rician, poisson"),
        ("batch: 0", "batch 0.*whole number of 1 or more"),
        ("rate: .inf", "rate inf"),
        ("steps: yes", "steps True"),
        ("schedule: cosinus", "cosine, constant, step"),
        ("scale: [2, 2, 2]", "Rasters have 2 axes"),
        ("extent: [12, 12, 12]", "no extent for 2 axes"),
        ("extent: 4", "margin of 2"),
        ("name: a/b", "name without"),
        ("adversarial: {kind: hinge}", "from its first step.*init_from"),
        ("[", "cannot be read"),
    ],
)
def test_a_config_that_is_wrong_is_refused(config: Callable[..., Path], line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingConfig.read(config("rasters", line))


def test_a_config_that_lacks_a_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("name: a\nkind: volumes\n")
    with pytest.raises(UsageError, match="lacks steps"):
        TrainingConfig.read(path)


def test_a_lattice_network_has_no_choice_of_the_textbook_ones() -> None:
    told = {"name": "a", "kind": "volumes", "steps": 2}
    with pytest.raises(UsageError, match="chanels"):
        TrainingConfig.of({**told, "network": {"chanels": 8}})
    with pytest.raises(UsageError, match="key 'patience' and names no textbook network"):
        TrainingConfig.of({**told, "network": {"channels": 8}, "patience": 3})


def test_every_key_has_a_rule_or_is_read_by_its_own() -> None:
    for kind, rules in VALUES.items():
        own = {"kind", "augment", "adversarial"}
        assert set(rules) | own >= set(kind.__dataclass_fields__)


def test_a_config_survives_as_plain_values(config: Callable[..., Path]) -> None:
    read = TrainingConfig.read(config("volumes", "augment: {noises: [poisson], mtf: [0.2, 0.3]}"))
    assert TrainingConfig.of(read.to_json()) == read
    with_one = TrainingConfig.read(config("rasters", "adversarial: {start: 2}"))
    assert TrainingConfig.of(with_one.to_json()) == with_one


def test_there_is_a_config_for_every_network_in_2d_and_3d() -> None:
    named = {path.stem for path in (CONFIGS / "training").glob("*.yaml")}
    assert {f"{name}-{axes}d" for name in REGISTRY for axes in (2, 3)} <= named


@pytest.mark.parametrize("path", sorted((CONFIGS / "training").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_config_describes_a_network_that_can_be_built(path: Path) -> None:
    config = TrainingConfig.read(path)
    assert path.stem in (config.name, "smoke")
    net = built(config) if config.textbook else LatticeTask(config, []).network()
    assert sum(p.numel() for p in net.parameters()) < 2_000_000


def test_a_network_that_is_not_local_is_trained_as_it_is(config: Callable[..., Path]) -> None:
    line = "network: {name: rcan, channels: 8, groups: 1, blocks: 1, reduction: 2, window: 0}"
    assert not built(TrainingConfig.read(config("rasters", line))).local


@pytest.mark.parametrize(("mixed", "extent", "refused"), [(True, 8, True), (False, 8, False), (True, 12, False)])
def test_volumes_too_small_for_bfloat16_are_refused(
    config: Callable[..., Path], mixed: bool, extent: int, refused: bool
) -> None:
    lines = ("network: {name: unet, channels: [8, 8, 8]}", f"extent: {[extent] * 3}", f"mixed: {str(mixed).lower()}")
    made = TrainingConfig.read(config("volumes", *lines))
    with pytest.raises(UsageError, match="mixed: false") if refused else nullcontext():
        built(made)


def test_patches_that_strides_do_not_divide_are_refused(config: Callable[..., Path]) -> None:
    line = "network: {name: unet, channels: [8, 8, 8], units: 1}"
    with pytest.raises(UsageError, match=r"multiples of \[4, 4\].*extent: \[12, 16\]"):
        built(TrainingConfig.read(config("rasters", line, "extent: [13, 15]")))


def test_options_of_a_network_are_checked(config: Callable[..., Path]) -> None:
    with pytest.raises(TruescaleError, match=r"did you mean|Did you mean"):
        built(TrainingConfig.read(config("rasters", "network: {name: espcn, chanels: [8, 8]}")))
