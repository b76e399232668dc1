from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.pipelines.files import write_raster

TINY = {
    "rasters": """
name: tiny
kind: rasters
data: rasters
network: {name: espcn, channels: [8, 8]}
scale: [2, 2]
extent: 12
""",
    "volumes": """
name: tiny
kind: volumes
data: volumes
network: {name: espcn, channels: [8, 8]}
scale: [4, 1, 1]
extent: [6, 10, 10]
margin: 1
""",
}
"""Configs of a second each, by kind of data."""

SHORT = """
steps: 6
batch: 4
warm_up: 2
average: 0.9
check_every: 3
checked: 4
checkpoint_every: 2
mixed: false
"""


def balls(shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Balls with sharp edges, 0..1: what a network can learn to do better than the floor."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    image = np.zeros(shape)
    for _ in range(40):
        centre = [rng.uniform(0, n) for n in shape]
        inside = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < rng.uniform(3, 9) ** 2
        image += rng.uniform(0.2, 1.0) * inside
    ramp = sum(a / n for a, n in zip(axes, shape, strict=True))
    return (image / image.max() + ramp + rng.normal(0, 0.01, shape)) / 5  # noise, or it would look like labels


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small volumes and three small rasters."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "volumes").mkdir()
    (folder / "rasters").mkdir()
    for n in range(3):
        volume = (1000 * balls((34, 30, 32), n)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "volumes" / f"v{n}.nii.gz")
        write_raster(folder / "rasters" / f"r{n}.tif", (3000 * balls((60, 70), 10 + n)).astype(np.uint16)[None])
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a config: config('rasters', 'steps: 3', ...), each line in the place of one with its key."""

    def write(kind: str, *lines: str) -> Path:
        changed = {line.partition(":")[0] for line in lines}
        text = [line for line in (TINY[kind] + SHORT).splitlines() if line.partition(":")[0] not in changed]
        path = tmp_path / "tiny.yaml"
        path.write_text("\n".join([*text, *lines]))
        return path

    return write


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and few pairs to say what was reached: everything here is tiny."""
    monkeypatch.setattr("pipelines.training.lattice.CHECKED", 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
