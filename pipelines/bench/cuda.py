"""On a CUDA device: the engine against the bare network, that against a matrix product, how busy the device is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.bench import scenes
from pipelines.bench.cases import engine, normal
from pipelines.bench.child import Work, compared, numbers, once, wall_ratio
from pipelines.bench.goals import Asked, Row
from pipelines.bench.nets import Doubler, WholeNet, whole_volume
from pipelines.networks.weights import prepare

MATRIX = 8192
"""Side of the matrices of the product that stands for what the device can do."""

BARE_SIDE = 2048
"""Samples of a side that the bare network is given at once."""

CUDA = "pipelines.bench.cuda:"


def engine_cuda(asked: Asked, folder: Path) -> list[Row]:
    """A synthetic Sentinel-2 tile and a volume, zarr to zarr; all repeated in processes that own the device."""
    side, bands = asked.pick((1024, 4), (10_980, 4))
    scene = str(scenes.prepared(scenes.scene(side, bands), folder / "2"))
    shape = asked.pick((16, 128, 128), (48, 512, 512))
    volume = str(scenes.prepared(scenes.volume(shape), folder / "3"))
    rows = []
    for unit, work, task, fine in (
        ("Mpx/s", scene, "bare_image", 4 * bands * side**2),
        ("Mvox/s", volume, "bare_volume", 4 * int(np.prod(shape))),
    ):
        tasks = {"bare": (f"{CUDA}{task}", work), "engine": ("pipelines.bench.cases:engine", work, "cuda")}
        runs = compared(tasks, asked.pick(2, 3))
        what, ratio = f"zarr to zarr / {task} on CUDA, on the clock", wall_ratio(runs, "engine", "bare")
        rows.append(Row(what=what, value=ratio, most=1.10, raw=numbers(runs)))
        rate = fine / 1e6 / min(run.seconds for run in runs["engine"])
        rows.append(Row(what="fine samples, zarr to zarr", value=rate, unit=unit))
    told = once(f"{CUDA}busy", scene).told
    rows.append(Row(what="device busy while tiles are made", value=told["share"], least=90, unit="%", raw=told))
    reached = once(f"{CUDA}flops").told
    what = "TFLOP/s of the network / of a matrix product, float32"
    rows.append(Row(what=what, value=reached["network"] / reached["product"], raw=reached))
    return rows


def _seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds on the device of one call, between two events; the first call is not counted."""
    work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / repeats


def bare_image(folder: str) -> Work:
    """The network over the image in memory, square by square, back in memory."""
    prepare("cuda", "fp32", None)
    samples, net = torch.from_numpy(normal(folder)), Doubler().eval().cuda()

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            for band in samples:
                for rows in band.split(BARE_SIDE):
                    for part in rows.split(BARE_SIDE, dim=1):
                        net(part[None, None].cuda()).cpu()
        return {}

    return work


def bare_volume(folder: str) -> Work:
    """The network over the volume in memory, both views."""
    prepare("cuda", "fp32", None)
    volume, net = normal(folder)[0], WholeNet("lattice-mri", 4).eval().cuda()

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            whole_volume(net, volume)
        return {}

    return work


def busy(folder: str) -> Work:
    """Share of the time on the clock in which the device computes or copies, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    run = engine(folder, "cuda")
    run()

    def work() -> dict[str, Any]:
        started = time.perf_counter()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            run()
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        device_s = _covered((e.time_range.start, e.time_range.end) for e in profiled.events() if _on_device(e)) / 1e6
        return {"share": 100 * device_s / seconds, "device_s": device_s, "seconds": seconds}

    return work


def _on_device(event: Any) -> bool:
    return str(event.device_type).endswith("CUDA")


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: what several streams do at a time counts once."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def flops() -> Work:
    """TFLOP/s of the network on a square, and of a matrix product."""
    from torch.utils.flop_counter import FlopCounterMode

    prepare("cuda", "fp32", None)
    net = Doubler().eval().cuda()
    x, a = torch.zeros(1, 1, BARE_SIDE, BARE_SIDE, device="cuda"), torch.randn(MATRIX, MATRIX, device="cuda")

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                net(x)
            network = counter.get_total_flops() / _seconds(lambda: net(x)) / 1e12
            product = 2 * MATRIX**3 / _seconds(lambda: a @ a) / 1e12
        return {"network": network, "product": product, "allow_tf32": torch.backends.cuda.matmul.allow_tf32}

    return work
