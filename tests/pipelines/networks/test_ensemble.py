from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines import card as cards
from pipelines.errors import UsageError
from pipelines.image import Header
from pipelines.networks import load
from tests.pipelines.files import smooth
from tests.pipelines.test_runner import made, raster, volume

CASES = [
    ("lattice-geo", raster((60, 50)), "2"),
    ("lattice-geo", raster((46, 40)), "5/2"),
    ("lattice-mri", volume((12, 40, 36), 4.0, 4.0), "4x1x1"),
    ("lattice-mri", volume((11, 30, 26), 5.0, 4.0), "25/6x1x1"),
]


@pytest.mark.parametrize(("model", "header", "scale"), CASES)
def test_a_mirrored_image_gives_the_mirrored_product(tmp_path: Path, model: str, header: Header, scale: str) -> None:
    samples = smooth(header.grid.shape).astype(np.float32) + np.arange(header.grid.shape[-1])
    options = {"scale": scale, "model": model, "ensemble": True, "noise": 0}
    plain, _, _ = made(tmp_path / "plain", samples, header, **options)
    for axis in range(samples.ndim):
        turned, _, _ = made(tmp_path / str(axis), np.flip(samples, axis), header, **options)
        assert np.abs(np.flip(turned[0], axis) - plain[0]).max() <= 1e-5 * np.ptp(samples)
    single, _, _ = made(tmp_path / "single", samples, header, **{**options, "ensemble": False})
    assert np.abs(single - plain).max() > 1e-4 * np.ptp(samples)


def test_tiles_of_an_ensemble_agree_with_the_whole(tmp_path: Path) -> None:
    samples, header = smooth((150, 140)).astype(np.float32), raster((150, 140))
    products = [
        made(tmp_path / str(n), samples, header, scale="2", model="lattice-geo", ensemble=True, shard=(n, n))[0]
        for n in (256, 512)
    ]
    assert np.abs(products[0] - products[1]).max() <= 1e-5 * np.ptp(samples)


def test_a_network_on_the_grid_of_the_image_has_no_ensemble(tmp_path: Path) -> None:
    assert load(cards.find("lattice-geo")).multiple_of == (1, 1)
    from pipelines.networks.textbook import build
    from pipelines.networks.textbook.bundle import write_bundle

    card = write_bundle(build("unet", (2, 2), channels=[4, 8]), tmp_path, name="strided")
    with pytest.raises(UsageError, match=r"no mean over mirror images.*--ensemble"):
        made(tmp_path / "run", smooth((40, 40)), raster((40, 40)), scale="2", model=card.path, ensemble=True)
