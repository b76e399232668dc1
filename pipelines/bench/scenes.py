"""Images that the benches measure with, and work folders prepared from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines import runner
from pipelines.degradation import Profile
from pipelines.grid import Box, Frame, Grid
from pipelines.image import ArraySource, Channel, Header, Source
from pipelines.job import Job
from pipelines.planning import Plan
from pipelines.request import Request
from pipelines.sizing import CHUNK
from pipelines.store import Store
from pipelines.zarr_image import write_image

MODELS = {2: "lattice-geo", 3: "lattice-mri"}
"""The shipped network for images and for volumes."""

SCALE = {2: "2", 3: "4x1x1"}

PATTERN = 1024
"""Samples of a side after which an image repeats."""

CENTRE, SPREAD = 3000.0, 6000.0
"""Of the samples: about those of reflectance x 10000."""


def scene(side: int, bands: int = 1) -> ArraySource:
    """A square image of 10 m samples: uint16, band-limited, a little noise."""
    header = scene_header((side, side), bands)
    return ArraySource(_texture((bands, side, side), (0, 1.2, 1.2)), header)


def scene_header(shape: tuple[int, int], bands: int = 1) -> Header:
    """What `scene` says of itself."""
    affine = np.array([[0.0, 10.0, 5e5], [-10.0, 0.0, 5e6], [0.0, 0.0, 1.0]])
    profile = Profile("mtf", 0.3)
    channels = tuple(Channel(f"B{k + 1}", (profile, profile)) for k in range(bands))
    grid = Grid("yx", shape, affine, Frame("m", "map", ""))
    return Header(grid, channels, dtype="uint16", domain="geo", modality="optical")


def volume(shape: tuple[int, int, int]) -> ArraySource:
    """Slices of 4 mm with samples of 1 mm in them."""
    plane = Profile("gaussian", 1.2)
    grid = Grid("zyx", shape, np.diag([4.0, 1.0, 1.0, 1.0]), Frame("mm", "scanner", ""))
    channel = Channel("MR", (Profile("slice", 4.0), plane, plane))
    header = Header(grid, (channel,), dtype="uint16", domain="med", modality="MR", slice_axis=0)
    return ArraySource(_texture((1, *shape), (0, 0.8, 1.6, 1.6)), header)


def _texture(shape: tuple[int, ...], sigma: Sequence[float]) -> NDArray[np.uint16]:
    rng = np.random.default_rng(7)
    once = (shape[0], *(min(n, PATTERN) for n in shape[1:]))
    pattern = ndimage.gaussian_filter(rng.normal(size=once).astype(np.float32), sigma, mode="wrap")
    noisy = CENTRE + SPREAD / 4 * pattern / pattern.std() + rng.normal(scale=6, size=once)
    samples = np.asarray(np.clip(noisy, 1, 65535), np.uint16)
    repeated = np.tile(samples, [-(-n // p) for n, p in zip(shape, once, strict=True)])
    return np.ascontiguousarray(repeated[tuple(slice(n) for n in shape)])


def prepared(source: Source, folder: Path, *, model: str | None = None, tile: Sequence[int] | None = None) -> Path:
    """A work folder in which only the tiles are missing. tile: other shards than the plan's own [fine samples]."""
    folder.mkdir(parents=True, exist_ok=True)
    ndim = source.header.grid.ndim
    runner.ingest(source, folder / "input.zarr", overwrite=True)
    request = Request(scale=SCALE[ndim], model=model or MODELS[ndim], workers=1, device="cpu", memory="16GB")
    work = runner.prepare(Job(str(folder / "input.zarr"), str(folder / "product.zarr"), request))
    if tile is not None:
        _retile(Store(work), tile)
    return work


def _retile(store: Store, tile: Sequence[int]) -> None:
    made = Plan.from_json(store.read_json("plan.json") or {})
    chunk = CHUNK[made.fine.ndim]
    side = tuple(-(-min(t, n) // chunk) * chunk for t, n in zip(tile, made.fine.shape, strict=True))
    made = replace(made, shard=side)
    store.write_json("plan.json", made.to_json())
    store.create_fine((len(made.channels), *made.fine.shape), (chunk,) * made.fine.ndim, side, made.working)


class Unread(Source):
    """An image of which nothing is ever read: for plans of scenes that no disk here holds."""

    def __init__(self, header: Header) -> None:
        self._header = header

    @property
    def header(self) -> Header:
        return self._header

    @property
    def identity(self) -> str:
        return "unread"

    def blocks(self, max_samples: int) -> Iterator[Box]:
        del max_samples
        return iter(())

    def read(self, box: Box) -> NDArray[np.floating]:
        raise AssertionError(box)


def huge(path: Path, side: int) -> Path:
    """A zarr image of side x side samples that takes no space."""
    write_image(Unread(scene_header((side, side))), scene_header((side, side)), path)
    return path
