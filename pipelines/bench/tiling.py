"""The engine against the bare network and against its peers; what tiles cost, and whether they show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import runner
from pipelines.bench import scenes
from pipelines.bench.child import Child, Run, compared, cpu_ratio, numbers, once, program_peak, wall_ratio
from pipelines.bench.goals import Asked, Row

CASES, CASES_OF_PEERS = "pipelines.bench.cases:", "pipelines.bench.peers:"
"""Modules that only the processes of the cases import: they bring torch."""

BORDER = 32
"""Fine samples along the edge of a scene that its border can reach through the network."""

QUICK = "too long for --quick"

PEERS: dict[str, tuple[Any, ...]] = {
    "MONAI SlidingWindow .25 constant": (None, "monai_sliding", 0.25, "constant"),
    "MONAI SlidingWindow .25 gaussian": (1.6, "monai_sliding", 0.25, "gaussian"),
    "MONAI SlidingWindow .5 gaussian": (3.0, "monai_sliding", 0.5, "gaussian"),
    "MONAI SlidingWindow .25 constant, as found": (2.7, "monai_sliding", 0.25, "constant", False),
    "MONAI PatchInferer + ZarrAvgMerger .25": (1.9, "monai_patches", 0.25),
    "dask map_overlap 256": (1.3, "dask_overlap"),
}
"""Name -> (how many times the engine's time it should take, case, its arguments)."""

STAGES = ("network", "projection", "read", "write")


def engine_2d(asked: Asked, folder: Path) -> list[Row]:
    """Zarr to zarr against the network once over the whole image."""
    side, bands, rounds = asked.pick((256, 1, 2), (1024, 2, 3))
    work = str(scenes.prepared(scenes.scene(side, bands), folder))
    runs = compared({"bare": (f"{CASES}bare_image", work), "engine": (f"{CASES}engine", work)}, rounds)
    return _against_bare(runs, f"{bands} x {side}^2, 2x, its own tiles", 1.10)


def engine_3d(asked: Asked, folder: Path) -> list[Row]:
    """The same of a volume, at full depth, in tiles of 128 and 192 in the plane."""
    rows = []
    for tile, most in asked.pick(((64, None),), ((128, 1.20), (192, 1.15))):
        side, depth = (3 if tile == 128 else 2) * tile, asked.pick(8, 12)
        volume = scenes.volume((depth, side, side))
        work = str(scenes.prepared(volume, folder / str(tile), tile=(4 * depth, tile, tile)))
        runs = compared({"bare": (f"{CASES}bare_volume", work), "engine": (f"{CASES}engine", work)}, 2)
        rows += _against_bare(runs, f"{depth} x {side}^2, 4x in z, tiles of {tile} in y, x", most)
    return rows


def _against_bare(runs: Mapping[str, Sequence[Run]], image: str, most: float | None) -> list[Row]:
    """Everything over the bare network, and the network's stage alone."""
    quickest = min(runs["engine"], key=lambda run: run.cpu_s)
    busy = quickest.cpu_s / sum(quickest.told.values())  # stages are told in time on the clock
    bare = min(run.cpu_s for run in runs["bare"])
    stages = {stage: quickest.told[stage] * busy / bare for stage in STAGES}
    raw = {**numbers(runs), "stages_over_bare": stages}
    shares = ", ".join(f"{stage} {share:.2f}" for stage, share in stages.items())
    wall = f"on the clock {wall_ratio(runs, 'engine', 'bare'):.2f}"
    return [
        Row(
            what=f"zarr to zarr (network, cubic, projection, codec) / bare network, cpu; {image}",
            value=cpu_ratio(runs, "engine", "bare"),
            most=most,
            why=f"{wall}; {shares}",
            raw=raw,
        ),
        Row(
            what="its network stage alone (halo, blocks and head included) / bare network, cpu",
            value=stages["network"],
            most=most,
            why="the cpu time shared out by the time of the stages on the clock",
        ),
    ]


def engine_peers(asked: Asked, folder: Path) -> list[Row]:
    """MONAI and dask with the same network on the same scene, zarr to zarr."""
    side, rounds = asked.pick((256, 1), (1024, 3))
    work, whole = str(scenes.prepared(scenes.scene(side), folder)), str(folder / "whole.npy")
    once(f"{CASES_OF_PEERS}reference", work, whole)
    outputs = {name: str(folder / f"{number}.zarr") for number, name in enumerate(PEERS)}
    tasks = {name: (f"{CASES_OF_PEERS}{task[0]}", work, outputs[name], *task[1:]) for name, (_, *task) in PEERS.items()}
    plain_heap = [name for name in tasks if "as found" in name]
    runs = compared({"engine": (f"{CASES}engine", work), **tasks}, rounds, plain_heap)
    truth = np.load(whole)
    rows = [_peer(name, outputs[name], truth, runs) for name in PEERS]
    image = f"1 x {side}^2, 2x, one compute thread each; the engine also projects, its peers do not"
    return [replace(rows[0], why=f"{rows[0].why}; all: {image}"), *rows[1:]]


def _peer(name: str, output: str, truth: NDArray[np.float32], runs: Mapping[str, Sequence[Run]]) -> Row:
    """A peer against the engine: time, seams, memory."""
    worst, inside, typical = _seam(output, truth)
    more = _megabytes(runs, name) / max(1, _megabytes(runs, "engine"))
    seams = {"seam_max": worst, "seam_inside": inside, "seam_rmse": typical}
    told = f"seams of {worst:.1e} of the range at most, {inside:.1e} away from the border, {typical:.1e} RMSE"
    return Row(
        what=f"{name} / engine, cpu",
        value=cpu_ratio(runs, name, "engine"),
        least=PEERS[name][0],
        why=f"{told}; memory above start {more:.1f} x the engine's",
        raw={**numbers({name: runs[name], "engine": runs["engine"]}), **seams},
    )


def _megabytes(runs: Mapping[str, Sequence[Run]], name: str) -> float:
    return max(run.above_bytes for run in runs[name]) / 1e6


def _seam(output: str, truth: NDArray[np.float32]) -> tuple[float, float, float]:
    """Difference from the whole image over its range: largest, largest away from its border, root mean square."""
    import zarr

    made = np.asarray(zarr.open_array(f"{output}/samples", mode="r")[:]).reshape(truth.shape)
    difference = np.abs(made - truth) / np.ptp(truth)
    inside = difference[:, BORDER:-BORDER, BORDER:-BORDER]
    return float(difference.max()), float(inside.max()), float(np.sqrt(np.mean(np.square(difference))))


def kept_heap(asked: Asked, folder: Path) -> list[Row]:
    """One tile of 512 x 512 with the allocator as found and with the kept heap."""
    del folder
    task = (f"{CASES}tile_512",)
    runs = compared({"default": task, "kept": task}, asked.pick(1, 6), plain_heap=("default",))
    value = cpu_ratio(runs, "default", "kept")
    return [Row(what="512^2 tile, default allocator / kept heap, cpu", value=value, least=1.4, raw=numbers(runs))]


def seams(asked: Asked, folder: Path) -> list[Row]:
    """The network over tiles against the whole; and against the same network written plainly."""
    side, shape, plane = asked.pick((256, (8, 64, 64), 32), (512, (16, 192, 192), 64))
    scene = str(scenes.prepared(scenes.scene(side), folder / "2"))
    volume = str(scenes.prepared(scenes.volume(shape), folder / "3"))
    rows = []
    for name, work, tiles in (
        ("2-D", scene, [(256, 256), (side, side)]),
        ("3-D", volume, [(4 * shape[0], plane, plane), (32, 96, 96)]),
    ):
        told = once(f"{CASES}seams", work, tiles).told
        what = f"{name}: samples of the network in tiles of {' and '.join(told['differ'])} that differ from the whole"
        rows.append(Row(what=what, value=sum(told["differ"].values()), most=0, unit="samples", raw=told))
        what = f"{name}: from the network written as one plain module, largest difference over the range"
        rows.append(Row(what=what, value=told["from_plain"], most=1e-6))
    return rows


def memory(asked: Asked, folder: Path) -> list[Row]:
    """Peak memory as the scene grows, and against the plan."""
    rows = []
    for tile in (512, 1024):  # with the larger one the smaller scene has tiles at its corners only, which are smaller
        peaks: dict[int, float] = {}
        for side in () if asked.quick else (1024, 2048):
            work = scenes.prepared(scenes.scene(side), folder / f"{tile}-{side}", tile=(tile, tile))
            peaks[side] = once(f"{CASES}engine", str(work)).above_bytes / 1e6
        what = f"peak above start, 2048^2 / 1024^2, tiles of {tile} fine samples"
        grown, why = (peaks[2048] / peaks[1024], "") if peaks else (None, QUICK)
        rows.append(Row(what=what, value=grown, most=1.15, why=why, raw={"peak_above_start_mb": peaks}))
    for side in asked.pick((256,), (512, 1024, 2048)):
        image, product = folder / f"run-{side}.zarr", folder / f"product-{side}.zarr"
        runner.ingest(scenes.scene(side), image)
        peak = program_peak("upscale", image, product, "--scale", 2, "--device", "cpu", "--quiet") / 1e6
        planned = json.loads(Path(f"{product}.report.json").read_text())["predicted_bytes"] / 1e6
        told, raw = f"{peak:.0f} of {planned:.0f} MB", {"peak_mb": peak, "planned_mb": planned}
        rows += [
            Row(what=f"peak of a run / planned, {side}^2", value=peak / planned, most=1.0, why=told, raw=raw),
            Row(what=f"planned / peak of a run, {side}^2", value=planned / peak, most=1.3),
        ]
    return rows


def recompute(asked: Asked, folder: Path) -> list[Row]:
    """Multiplications beyond those of the tile's own samples, for the default tile and for small ones."""
    del folder
    rows = []
    for tile, most in ((2048, 9.0), (1024, None), (512, 17.0)):
        what = f"extra work of the network, interior tile of {tile} fine samples (T = {tile // 2})"
        if asked.quick and tile > 512:
            rows.append(Row(what=what, most=most, unit="%", why=QUICK))
            continue
        told = once(f"{CASES}recompute", tile).told
        why = f"for the network's own halo {100 * told['own']:.3g} %, the rest for what the projection sees"
        rows.append(Row(what=what, value=100 * told["share"], most=most, unit="%", why=why))
    return rows


def certify(asked: Asked, folder: Path) -> list[Row]:
    """The halo by NaN, of both shipped networks."""
    del folder
    rows = []
    for name, kind, most in (("lattice-geo", "2-D", 1.0), ("lattice-mri", "3-D", 3.0)):
        with Child(f"{CASES}certifying", name) as child:
            runs = [child.run() for _ in range(asked.pick(1, 3))]
        value = min(run.cpu_s for run in runs)
        rows.append(Row(what=f"halo of {name} ({kind}) certified, cpu", value=value, most=most, unit="s"))
    return rows
