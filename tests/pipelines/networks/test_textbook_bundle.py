"""Bundles of the textbook line: what their cards hold, and that the engine runs them in tiles of any size."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelines
from pipelines import networks
from pipelines.card import ModelCard, find
from pipelines.errors import ModelError
from pipelines.formats import open_source
from pipelines.grid import Box, Placement
from pipelines.image import ArraySource, Header
from pipelines.networks import Condition, load
from pipelines.networks.textbook import build
from pipelines.networks.textbook.bundle import counted, write_bundle
from pipelines.planning import Plan
from pipelines.tiles import Cover, Span
from tests.pipelines.test_runner import _scene, raster, volume

TOLD = Condition((1.0,), (0.0,))


def bundle(folder: Path, network: str, scale: tuple[int, ...], **options: object) -> ModelCard:
    """A network with random weights, none of them zero."""
    torch.manual_seed(5)
    net = build(network, scale, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return write_bundle(net, folder, name=f"{network}-test")


def edsr(folder: Path) -> ModelCard:
    return bundle(folder, "edsr", (2, 2), channels=6, blocks=2)


def unet(folder: Path, scale: tuple[int, ...] = (2, 1, 1)) -> ModelCard:
    return bundle(folder, "unet", scale, channels=[4, 6], units=0)


def placement(coarse: int, scale: int, shift: Fraction = Fraction(0)) -> Placement:
    return Placement(coarse, coarse * scale, Fraction(scale), Fraction(scale - 1, 2) + shift)


def test_a_card_holds_what_was_measured(tmp_path: Path) -> None:
    card = edsr(tmp_path)
    assert find(tmp_path / "edsr-test-1.0.json") == card
    assert (card.axes, card.scales, card.factors, card.multiple_of) == ("image", (2.0, 2.0), (2, 2), (1, 1))
    assert card.halo == (8, 8), "first, two blocks of two, one after them, upsampling, and the last on fine samples"
    per_coarse = 9 * (6 + 4 * 36 + 36 + 4 * 36 + 4 * 6)
    assert card.kmac_per_sample == pytest.approx(per_coarse / 4 / 1000, abs=1e-3)
    assert card.bytes_per_sample >= 2 * 4 * 2 * 4 * 6, "twice the features before and after the shuffle"


@pytest.mark.parametrize(
    ("scale", "axes"), [((2, 2), "image"), ((4, 1), "any"), ((2, 2, 2), "any"), ((2, 1, 1), "through-plane")]
)
def test_a_card_says_which_axes_are_refined(tmp_path: Path, scale: tuple[int, ...], axes: str) -> None:
    card = bundle(tmp_path, "espcn", scale, channels=[3, 3])
    assert card.axes == axes
    assert not card.suits(scale)
    assert "makes exactly" in card.suits(tuple(3 * s for s in scale))


def test_a_volume_network_suits_whichever_axis_is_thick(tmp_path: Path) -> None:
    card = unet(tmp_path)
    assert not card.suits((1, 1, 2))
    assert card.suits((1, 2, 2))
    assert card.suits((2, 2))
    net, samples = load(card), np.random.default_rng(0).normal(size=(1, 40, 44, 48)).astype(np.float32)
    halo, first = card.halo, (16, 20, 20)
    write = Box((2 * first[0], *first[1:]), (2 * first[0] + 4, first[1] + 3, first[2] + 2))
    read = Box((0, 0, 0), (40, 44, 48))
    places = (placement(40, 2), placement(44, 1), placement(48, 1))
    upright = net.residual(samples, read, write, places, TOLD)
    turn = (1, 2, 0)

    def turned(box: Box) -> Box:
        return Box(tuple(box.start[a] for a in turn), tuple(box.stop[a] for a in turn))

    order = (0, *(1 + a for a in turn))
    other = net.residual(samples.transpose(order), turned(read), turned(write), tuple(places[a] for a in turn), TOLD)
    assert upright.shape == (1, 4, 3, 2)
    assert np.abs(upright).max() > 1e-3
    assert np.array_equal(other, upright.transpose(order))
    assert net.reach(places) == halo
    assert net.reach(tuple(places[a] for a in turn)) == (halo[1], halo[2], halo[0])


def test_a_grid_that_starts_elsewhere_is_a_part_of_the_whole(tmp_path: Path) -> None:
    net, samples = load(edsr(tmp_path)), np.random.default_rng(0).normal(size=(1, 30, 30)).astype(np.float32)
    read, whole = Box((0, 0), (30, 30)), (placement(30, 2), placement(30, 2))
    expected = net.residual(samples, read, Box((24, 25), (30, 33)), whole, TOLD)
    cut = tuple(replace(p, first=p.first - 7, fine=50) for p in whole)  # begins seven fine samples later
    assert np.array_equal(net.residual(samples, read, Box((17, 18), (23, 26)), cut, TOLD), expected)


def test_grids_that_cut_samples_are_refused(tmp_path: Path) -> None:
    card = edsr(tmp_path)
    fits, askew = placement(30, 2), placement(30, 2, Fraction(1, 3))
    assert not card.misplaced((fits, fits))
    assert "lie across their faces" in card.misplaced((fits, askew))
    net = load(card)
    with pytest.raises(ModelError, match="axis 1 evenly"):
        net.reach((fits, askew))
    with pytest.raises(ModelError, match="makes the scale 2x2, not 2x3"):
        net.reach((fits, placement(30, 3)))
    with pytest.raises(ModelError, match="too few for the network"):
        net.residual(np.zeros((1, 10, 10), np.float32), Box((0, 0), (10, 10)), Box((0, 0), (4, 4)), (fits, fits), TOLD)


@pytest.mark.parametrize("field", ["halo", "multiple_of"])
@pytest.mark.parametrize("factor", [2, 0.5])
def test_a_card_that_states_another_field_is_refused(tmp_path: Path, field: str, factor: float) -> None:
    card = unet(tmp_path)
    stated = tuple(int(v * factor) for v in getattr(card, field))
    with pytest.raises(ModelError, match=r"states (a halo|multiples) of"):
        load(replace(card, **{field: stated}))  # type: ignore[arg-type]


def test_weights_or_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    card = edsr(tmp_path)
    with pytest.raises(ModelError, match="do not fit its card"):
        load(replace(card, options={**card.options, "blocks": 3}))
    with pytest.raises(ModelError, match="Did you mean 'blocks'"):
        load(replace(card, options={**card.options, "block": 3}))
    with pytest.raises(ModelError, match="no textbook network"):
        load(replace(card, options={"scale": [2, 2]}))


def test_multiply_adds_are_those_of_the_boxes_that_are_computed(tmp_path: Path) -> None:
    card = unet(tmp_path)
    spans = tuple(
        Span(p, 24, halo=h, multiple_of=m)
        for p, h, m in zip(
            (placement(40, 2), placement(44, 1), placement(48, 1)), card.halo, card.multiple_of, strict=True
        )
    )
    net, cover, seen = load(card), Cover(spans), 0
    places = tuple(span.place for span in spans)

    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += x.numel()
            return x.repeat_interleave(2, dim=2)

    net._net = Counting()  # type: ignore[attr-defined]
    for tile in cover:
        net.residual(np.zeros((1, *tile.read.shape), np.float32), tile.read, tile.estimate, places, TOLD)
    assert networks.multiply_adds(card, cover) == pytest.approx(1000 * card.kmac_per_sample * 2 * seen)


def test_half_precision_changes_little(tmp_path: Path) -> None:
    card, samples = edsr(tmp_path), np.random.default_rng(0).normal(size=(1, 30, 30)).astype(np.float32)
    asked = (samples, Box((0, 0), (30, 30)), Box((24, 24), (32, 32)), (placement(30, 2),) * 2, TOLD)
    exact, half = (load(card, precision=p).residual(*asked) for p in ("fp32", "bf16"))
    assert 0 < np.abs(half - exact).max() <= 0.03 * np.abs(exact).max()


CASES = [
    ("edsr", (2, 2), raster((150, 140), bands=2), "2", (512, 256)),
    ("unet", (2, 1, 1), volume((14, 36, 40), 4.0, 4.0), "2x1x1", (64, 32)),
    ("unet", (2, 2, 2), volume((10, 20, 22), 4.0, 4.0), "2x2x2", (64, 32)),
]


@pytest.mark.parametrize(("network", "factors", "header", "scale", "sides"), CASES)
def test_the_tile_size_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    factors: tuple[int, ...],
    header: Header,
    scale: str,
    sides: tuple[int, ...],
) -> None:
    card = edsr(tmp_path) if network == "edsr" else unet(tmp_path, factors)
    model = str(tmp_path / f"{card.id}.json")
    samples = np.stack([_scene(header.grid.shape, k) for k in range(len(header.channels))])
    header = replace(header, dtype="float32")
    plans: list[Plan] = []

    def product(name: str, model: str, side: int) -> np.ndarray:
        tile = (side,) * header.grid.ndim
        monkeypatch.setattr("pipelines.sizing.TILES", dict.fromkeys((2, 3), (tile, tile)))
        monkeypatch.setattr("pipelines.sizing.FULL_DEPTH", 0)
        out, source = tmp_path / f"{name}.zarr", ArraySource(samples, header)
        asked = {"scale": scale, "model": model, "noise": 0, "workers": 1}
        pipelines.upscale(source, out, **asked, on_plan=plans.append)  # type: ignore[arg-type]
        with open_source(out) as made:
            return np.asarray(made.read(Box.whole(made.header.grid.shape)))

    large, small = (product(str(side), model, side) for side in sides)
    assert plans[0].tile_count < plans[1].tile_count
    assert plans[0].model == card.id
    floor = product("floor", "floor", sides[0])
    assert np.abs(large - floor).max() > 1e-3 * np.ptp(samples), "the network does something"
    assert np.abs(large - small).max() <= 1e-5 * np.ptp(samples)


def test_another_scale_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    edsr(tmp_path)
    header = raster((50, 40))
    with pytest.raises(ModelError, match="makes exactly 2x2, not 3x3"):
        pipelines.upscale(
            ArraySource(_scene((50, 40))[None], header),
            tmp_path / "out.zarr",
            scale=3,
            model=str(tmp_path / "edsr-test-1.0.json"),
        )
    assert not (tmp_path / "out.zarr").exists()


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys, pipelines.networks.textbook as t, pipelines.networks.textbook.cost; "
        "assert t.REGISTRY and not {'torch', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_counting_computes_nothing() -> None:
    kmac, held = counted(build("rdn", (2, 2, 2), channels=8, growth=8, blocks=2))
    assert kmac > 10
    assert held > 0
