"""docs/networks.md: its example becomes a network, its table is counted, its figure shows what it says."""

from __future__ import annotations

import re
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipelines
from pipelines.card import CONFIGS
from pipelines.image import ArraySource
from pipelines.networks.textbook import REGISTRY, Network, build
from pipelines.networks.textbook.bundle import write_bundle
from pipelines.networks.textbook.field import traced
from pipelines.training.adversarial import KINDS
from pipelines.training.losses import TERMS
from tests.pipelines.test_runner import _scene, raster

ROOT = CONFIGS.parent
DOC = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and the row of the example, as if they were in the package."""
    file, row = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    module = types.ModuleType("pipelines.networks.textbook.fsrcnn")
    exec(file, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(REGISTRY, "fsrcnn", eval(f"{{{row}}}", {"Network": Network})["fsrcnn"])


@pytest.mark.parametrize("scale", [(2, 2), (3, 1), (2, 2, 2), (4, 1, 1)])
def test_the_example_is_the_floor_and_local_in_2d_and_3d(example: None, scale: tuple[int, ...]) -> None:
    net = build("fsrcnn", scale, channels=4, shrunk=3, layers=1)
    x = torch.randn(1, 1, *(6,) * len(scale))
    assert net(x).shape[2:] == tuple(6 * s for s in scale)
    assert not net(x).any()
    assert max(traced(net).halo) <= 5


def test_the_example_makes_a_product(example: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build("fsrcnn", (2, 2), channels=4, shrunk=3, layers=1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    card = write_bundle(net, tmp_path, name="fsrcnn")
    made = {}
    for model in ("floor", str(tmp_path / f"{card.id}.json")):
        source = ArraySource(_scene((40, 44))[None], raster((40, 44)))
        out = tmp_path / f"{Path(model).stem}.zarr"
        pipelines.upscale(source, out, scale=2, model=model, noise=0, workers=1)
        with pipelines.open(out) as product:
            made[model] = product.read(pipelines.Box.whole((80, 88)))
    first, second = made.values()
    assert np.abs(second - first).max() > 1e-3 * np.ptp(first)


def test_every_network_upsampler_term_and_loss_is_named() -> None:
    for name in (*REGISTRY, *TERMS, *KINDS):
        assert f"`{name}`" in DOC


@pytest.mark.slow
def test_the_table_is_what_is_counted() -> None:
    lines: list[str] = list(runpy.run_path(str(ROOT / "workflows" / "network_table.py"))["table"]())
    assert len(lines) == len(REGISTRY) + 2
    assert "\n".join(lines) in DOC


def test_the_figure_shows_who_starts_with_a_pattern() -> None:
    names: dict[str, Any] = runpy.run_path(str(ROOT / "workflows" / "checkerboard.py"))
    found = {
        (way.split("\n")[0], row.equal): names["pattern"](names["made"](build_way, row, seed=1))
        for way, build_way in names["WAYS"].items()
        for row in names["rows"]()
        if "constant" in row.name
    }
    free = {way for way, equal in found if found[way, equal] < 1e-5 and not equal}
    assert free == {"subpixel", "interpolate"}
    assert {way for way, equal in found if equal and found[way, equal] > 0.1} == {"transposed,"}
