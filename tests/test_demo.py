"""What the demo says of its products; the whole of it takes minutes (`make demo`)."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.grid import Frame, Grid

WORKFLOWS = Path(__file__).parents[1] / "workflows"


@pytest.mark.parametrize("volume", [True, False])
def test_every_metric_of_the_demo_is_a_number(monkeypatch: pytest.MonkeyPatch, volume: bool) -> None:
    monkeypatch.syspath_prepend(str(WORKFLOWS))
    import demo_pictures

    shape = (24, 24, 24) if volume else (48, 40)
    grid = Grid("zyx"[-len(shape) :], shape, np.eye(len(shape) + 1), Frame("mm", "scanner", ""))
    rng = np.random.default_rng(0)
    truth = 500 + 100 * rng.random((1 if volume else 3, *shape))
    names = tuple(f"B{k}" for k in range(len(truth)))
    images = [demo_pictures.Image(x, grid, names, volume) for x in (truth, truth + rng.normal(size=truth.shape))]
    found = demo_pictures.errors_of(*images, 2.0)
    assert {"psnr", "ssim"} < set(found)
    assert all(math.isfinite(value) for value in found.values())
    sys.modules.pop("demo_pictures")
