from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from pipelines.card import BUILT_IN, CONFIGS, ModelCard, available, find
from pipelines.errors import ModelError
from pipelines.grid import Placement


def bundle(folder: Path, **changes: object) -> ModelCard:
    """A card with weights of four bytes, written to `folder`."""
    (folder / "net-1.0.safetensors").write_bytes(b"abcd")
    card = ModelCard(
        name="net",
        domain="med",
        network="lattice",
        axes="through-plane",
        scales=(1.5, 8.0),
        halo=(8, 29, 29),
        multiple_of=(1, 1, 1),
        sha256="88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589",
        weights_file="net-1.0.safetensors",
        figures={"gain_db": {"4|0": 2.1}},
        folder=folder,
    )
    card = replace(card, **changes)  # type: ignore[arg-type]
    card.write(folder / f"{card.id}.json")
    return card


def test_a_card_survives_json() -> None:
    card = replace(BUILT_IN["floor"], scales=(2.0, 4.0), halo=(14, 14), blur_fwhm_coarse=(0.9, 1.5))
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_a_card_is_found_by_name_version_and_path(tmp_path: Path) -> None:
    card = bundle(tmp_path)
    newer = bundle(tmp_path, version="1.10")
    bundle(tmp_path, version="1.9")
    assert find("net-1.0", tmp_path) == find("net@1.0", tmp_path) == find(tmp_path / "net-1.0.json") == card
    assert find("net", tmp_path) == newer


def test_an_unknown_name_is_refused_with_the_nearest_known(tmp_path: Path) -> None:
    bundle(tmp_path)
    with pytest.raises(ModelError, match=r"no model 'cubbic'.*nearest, linear, cubic, floor, net.*'cubic'"):
        find("cubbic", tmp_path)
    with pytest.raises(ModelError, match=r"no model card absent\.json"):
        find(tmp_path / "absent.json")


def test_weights_that_differ_from_the_card_are_refused(tmp_path: Path) -> None:
    card = bundle(tmp_path)
    card.verify()
    (tmp_path / card.weights_file).write_bytes(b"abce")
    with pytest.raises(ModelError, match="not those of its card"):
        card.verify()
    (tmp_path / card.weights_file).unlink()
    with pytest.raises(ModelError, match="missing"):
        card.verify()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"name": "a", "colour": 1}', '{"version": "1"}', '{"name": "a", "axes": "x"}']
)
def test_a_file_that_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(ModelError):
        ModelCard.read(path)


def test_the_reason_against_a_scale_names_the_trained_range(tmp_path: Path) -> None:
    assert "1.5 to 8, not 9" in bundle(tmp_path).suits((9, 1, 1))


def test_the_halo_follows_the_upsampled_axis(tmp_path: Path) -> None:
    card = bundle(tmp_path)
    same, cut = Placement(20, 20, Fraction(1), Fraction(0)), Placement(20, 10, Fraction(1), Fraction(-5))
    thick = Placement(9, 36, Fraction(4), Fraction(3, 2))
    assert card.reach((same, same, thick)) == (29, 29, 8)
    assert card.reach((thick, same, cut)) == (8, 29, 31), "a residual that is interpolated needs two samples more"
    assert BUILT_IN["floor"].reach((thick, thick)) == (0, 0)


def test_the_axis_that_is_refined_most_is_the_networks(tmp_path: Path) -> None:
    card = bundle(tmp_path)
    assert not card.suits((4, 1.016, 1))
    assert "more than the others" in card.suits((2, 2, 1))


def test_the_shipped_bundles_are_whole_and_small() -> None:
    shipped = [card for card in available() if card.network]
    assert {card.name for card in shipped} >= {"lattice-mri", "lattice-geo"}
    for card in shipped:
        card.verify()
        assert card.weights is not None
        assert card.weights.stat().st_size <= 8e6
        assert card.id == Path(card.weights_file).stem
        assert (CONFIGS / "training" / f"{card.name}.yaml").is_file()


def test_cards_need_neither_torch_nor_numpy() -> None:
    code = "import sys, pipelines.card as c; c.available(); assert not {'torch', 'numpy', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
