"""Networks that are not local: what is blended of their windows, that tiles agree, and that products say so."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelines
from pipelines import networks
from pipelines.card import ModelCard, find
from pipelines.errors import ModelError
from pipelines.formats import open_source
from pipelines.grid import Box
from pipelines.image import ArraySource
from pipelines.networks import Condition, load
from pipelines.networks.textbook import build
from pipelines.networks.textbook.blending import LENGTH, blended, seam_share, windows
from pipelines.networks.textbook.bundle import write_bundle
from pipelines.networks.textbook.field import traced
from pipelines.networks.textbook.network import Textbook
from pipelines.planning import Plan
from tests.pipelines.files import Run
from tests.pipelines.networks.test_textbook_bundle import placement
from tests.pipelines.test_runner import _scene, raster

TOLD = Condition((1.0,), (0.0,))
OPTIONS = {"channels": 4, "groups": 1, "blocks": 1, "reduction": 2}


def rcan(scale: tuple[int, ...] = (2, 2), window: int = 0, spread: float = 0.3) -> Textbook:
    torch.manual_seed(5)
    net = build("rcan", scale, **OPTIONS, window=window)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
    return net.eval()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 16 samples."""
    monkeypatch.setattr("pipelines.networks.textbook.blending.LENGTH", {2: 16, 3: 8})


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scale", [(2, 2), (3, 1), (2, 2, 2)])
def test_weights_of_windows_add_up_to_one(small: None, scale: tuple[int, ...]) -> None:
    class One(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(1, 1, *(n * s for n, s in zip(x.shape[2:], scale, strict=True)))

    net = Textbook(scale, One(), [])
    half = windows(net).halo
    made = blended(net, noise(*(4 * h for h in half)), half)
    for axis, (h, s) in enumerate(zip(half, scale, strict=True)):
        made = made.narrow(2 + axis, h * s, 2 * h * s)
    assert (made - 1).abs().max() <= 1e-6


def test_a_local_network_is_what_it_was_where_no_window_sees_its_edge() -> None:
    """A quarter of a window from either edge is beyond its halo."""
    net = rcan(window=3)
    assert traced(net).halo < (14, 14)
    x = noise(128, 128)
    with torch.inference_mode():
        whole, made = net(x), blended(net, x, (32, 32))
    quarter = (..., slice(92, 100), slice(92, 100))
    assert (made[quarter] - whole[quarter]).abs().max() <= 1e-5 * whole[quarter].abs().max()


def test_tiles_agree_to_the_last_bit_whatever_they_cover(tmp_path: Path, small: None) -> None:
    card = write_bundle(rcan(), tmp_path, name="rcan")
    assert (card.local, card.halo, card.multiple_of) == (False, (8, 8), (8, 8))
    net, places = load(card), (placement(64, 2), placement(72, 2))
    samples = noise(64, 72)[0].numpy()
    whole = net.residual(samples, Box((0, 0), (64, 72)), Box((32, 32), (96, 112)), places, TOLD)
    assert np.abs(whole).max() > 1e-3
    for rows in pairwise((32, 45, 64, 96)):
        for columns in pairwise((32, 80, 97, 112)):
            write = Box((rows[0], columns[0]), (rows[1], columns[1]))
            read = Box(
                tuple((a // 2 - 8) // 8 * 8 for a in write.start),
                tuple(-(-((b - 1) // 2 + 9) // 8) * 8 for b in write.stop),
            )
            tile = net.residual(samples[(slice(None), *read.slices)], read, write, places, TOLD)
            assert np.array_equal(tile, whole[(slice(None), *(slice(a - 32, b - 32) for a, b in (rows, columns)))])


def test_products_of_other_tiles_agree_and_say_that_they_are_not_certified(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = write_bundle(rcan(), tmp_path, name="rcan", samples=noise(32, 40))
    header = replace(raster((150, 140)), dtype="float32")
    source = ArraySource(_scene((150, 140))[None], header)
    plans: list[Plan] = []

    def product(side: int) -> np.ndarray:
        monkeypatch.setattr("pipelines.sizing.TILES", dict.fromkeys((2, 3), ((side, side), (side, side))))
        out = tmp_path / f"{side}.zarr"
        model = str(tmp_path / f"{card.id}.json")
        report = pipelines.upscale(source, out, scale=2, model=model, noise=0, workers=1, on_plan=plans.append)
        said = [w for w in report.warnings if "not certified" in w]
        assert len(said) == 1
        assert "windows of 16x16 samples" in said[0]
        assert f"{card.figures['seam_share']:.1%}" in said[0]
        with open_source(out) as made:
            return np.asarray(made.read(Box.whole(made.header.grid.shape)))

    large, small_tiles = product(512), product(256)
    assert plans[0].tile_count < plans[1].tile_count
    assert np.abs(large - small_tiles).max() <= 1e-5 * np.ptp(large)
    assert any("not certified" in w for w in plans[0].warnings)


def test_seams_are_what_blending_changes(small: None) -> None:
    share = seam_share(rcan(), noise(64, 64), (8, 8))
    assert 1e-3 < share < 1
    assert seam_share(rcan(window=3), noise(160, 160), (40, 40)) < seam_share(rcan(window=3), noise(160, 160), (8, 8))
    with pytest.raises(ModelError, match="too few to measure seams"):
        seam_share(rcan(), noise(31, 64), (8, 8))


def test_the_cost_counts_windows_that_overlap(tmp_path: Path, small: None) -> None:
    blended_card = write_bundle(rcan(), tmp_path, name="blended")
    assert networks.kmac_per_sample(blended_card) == pytest.approx(4 * blended_card.kmac_per_sample)


def test_a_card_of_windows_off_the_grid_is_refused(tmp_path: Path, small: None) -> None:
    card = write_bundle(rcan(), tmp_path, name="rcan")
    with pytest.raises(ModelError, match="states windows of twice 9x8"):
        load(replace(card, halo=(9, 8)))
    with pytest.raises(ModelError, match="is not local"):
        load(replace(card, local=True))


def test_a_card_says_what_was_measured_or_that_nothing_was(tmp_path: Path) -> None:
    card = write_bundle(rcan(), tmp_path, name="rcan")
    assert card.halo == (LENGTH[2] // 2,) * 2
    assert "seams were not measured" in card.caution
    assert "3.1%" in replace(card, figures={"seam_share": 0.031}).caution
    assert json.loads((tmp_path / f"{card.id}.json").read_text())["local"] is False


def test_cards_of_local_networks_have_the_digest_they_had() -> None:
    """Runs that were begun can be resumed: the field that says so is told apart only where it is false."""
    card = find("lattice-geo")
    assert card.local
    assert not card.caution
    assert "local" in card.to_json()
    assert replace(card, local=False).digest != card.digest
    assert card.digest.startswith("fb78243485d65003")
    old = {k: v for k, v in card.to_json().items() if k != "local"}
    assert ModelCard.from_json(old, card.folder).digest == card.digest


def test_a_plan_on_the_command_line_says_so(run: Run, scene: Path, tmp_path: Path) -> None:
    card = write_bundle(rcan(), tmp_path / "model", name="rcan")
    model = tmp_path / "model" / f"{card.id}.json"
    code, out, err = run("plan", scene, tmp_path / "o.tif", "--model", model, "--scale", "2")
    assert code == 0, err
    assert "not certified" in out
