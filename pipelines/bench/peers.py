"""The peers, run for real: the same network on the same zarr scene, written to zarr, each in its own process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.bench import scenes
from pipelines.bench.cases import normal
from pipelines.bench.child import Work
from pipelines.bench.nets import Doubler
from pipelines.store import create_array

ROI = 128
"""Samples of a side of MONAI's patches."""

BATCH = 4
"""Patches that MONAI computes at once."""

CHUNK = 256
"""Coarse samples of a side of dask's blocks."""


def reference(folder: str, output: str) -> Work:
    """The network once over the whole image, kept for comparison."""
    samples, net = torch.from_numpy(normal(folder)), Doubler().eval()

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            np.save(output, net(samples[None])[0].numpy())
        return {}

    return work


def _zarr_to_zarr(folder: str, output: str, upscale: Callable[[Tensor], Tensor]) -> Work:
    """Read the scene, upscale it in memory, write the product."""

    def work() -> dict[str, Any]:
        shutil.rmtree(output, ignore_errors=True)
        with torch.inference_mode():
            fine = upscale(torch.from_numpy(normal(folder))[None])[0].numpy()
        made = create_array(Path(output), "samples", fine.shape, "float32", (1, CHUNK, CHUNK), None)
        made[:] = fine
        return {}

    return work


def monai_sliding(folder: str, output: str, overlap: float, mode: str, channels_last: bool = True) -> Work:
    """MONAI's SlidingWindowInferer."""
    from monai.inferers import SlidingWindowInferer

    net = Doubler(channels_last=channels_last).eval()
    inferer = SlidingWindowInferer(roi_size=(ROI, ROI), sw_batch_size=BATCH, overlap=overlap, mode=mode)
    return _zarr_to_zarr(folder, output, lambda x: inferer(x, net))


def monai_patches(folder: str, output: str, overlap: float) -> Work:
    """MONAI's PatchInferer with the merger that needs no memory for the scene.

    The merged shape is that of the padded image: with the true one it stops where patches overhang.
    """
    from monai.inferers import PatchInferer, SlidingWindowSplitter, ZarrAvgMerger

    net = Doubler().eval()
    splitter = SlidingWindowSplitter((ROI, ROI), overlap, pad_mode="reflect")

    def work() -> dict[str, Any]:
        shutil.rmtree(output, ignore_errors=True)
        x = torch.from_numpy(normal(folder))[None]
        padded = splitter.get_padded_shape(x)
        inferer = PatchInferer(
            splitter,
            ZarrAvgMerger,
            batch_size=BATCH,
            merged_shape=(*x.shape[:2], *(2 * n for n in padded)),
            cropped_shape=(*x.shape[:2], *(2 * n for n in x.shape[2:])),
            store=f"{output}/samples",
        )
        with torch.inference_mode():
            inferer(x, net)
        return {}

    return work


def dask_overlap(folder: str, output: str) -> Work:
    """dask.array.map_overlap with the halo that the network needs, in one thread."""
    import dask
    from dask import array as da

    net = Doubler().eval()

    def block(samples: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            fine: NDArray[np.float32] = net.valid(torch.from_numpy(np.ascontiguousarray(samples))[None])[0].numpy()
            return fine

    def work() -> dict[str, Any]:
        shutil.rmtree(output, ignore_errors=True)
        coarse = da.from_zarr(f"{folder}/coarse.zarr", component="samples").rechunk((-1, CHUNK, CHUNK))
        scaled = ((coarse - scenes.CENTRE) / scenes.SPREAD).astype(np.float32)
        sides = [tuple(2 * n for n in part) for part in scaled.chunks[1:]]
        fine = da.map_overlap(
            block,
            scaled,
            depth={0: 0, 1: net.halo, 2: net.halo},
            boundary={0: "none", 1: "reflect", 2: "reflect"},
            trim=False,
            chunks=(scaled.chunks[0], *sides),
            dtype=np.float32,
            meta=np.empty((0, 0, 0), np.float32),
        )
        made = create_array(Path(output), "samples", fine.shape, "float32", (1, 2 * CHUNK, 2 * CHUNK), None)
        with dask.config.set(scheduler="threads", num_workers=1):
            da.store(fine, made, lock=False)  # type: ignore[arg-type]  # zarr arrays take blocks, too
        return {}

    return work
