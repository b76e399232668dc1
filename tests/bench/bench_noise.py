"""How good the noise estimate and the weight `l` are on the dev split, against the truth and a scan.

TRUESCALE_DATA=data python tests/bench/bench_noise.py

One line per image, and within it per band: noise estimated over true, residual over the true noise, PSNR of cubic, of
the floor as made with `--noise auto`, and of the best weight of a scan. The last line has the quantiles of the estimate
and the worst bands. `truescale evaluate` has all of it but the scan.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np

from pipelines import runner, stages
from pipelines.evaluation import metrics
from pipelines.evaluation.cases import Case, simulate
from pipelines.evaluation.conditions import suite_of
from pipelines.evaluation.suite import comparison
from pipelines.evaluation.truths import Truth, entries, read
from pipelines.grid import Box, placements
from pipelines.image import ArraySource
from pipelines.interpolation import interpolate
from pipelines.planning import Calibration
from pipelines.product import StoredProduct
from pipelines.projection import project
from pipelines.report import Stopwatch
from pipelines.request import Request
from pipelines.store import Store

SCAN = (0.0, *np.geomspace(1e-3, 30, 24))
"""Weights tried."""


def psnr(case: Case, product: np.ndarray) -> np.ndarray:
    """Of the protocol, per band."""
    return metrics.psnr_of_bands(comparison(case, product))


def measure(case: Case, folder: Path, sigma: np.ndarray) -> dict[str, list[float] | list[str]]:
    """The numbers of one case. sigma: true noise per channel."""
    source = ArraySource(case.coarse, case.header)
    scale = ",".join(f"{a}={f}" for a, f in zip(case.header.grid.axes, case.factor, strict=True))
    plan = runner.plan(source, Request(scale=scale, model="floor"))
    store = Store(folder)
    store.write_json("plan.json", plan.to_json())
    watch = Stopwatch()
    with stages.crew_of(store, plan, watch) as crew:
        stages.run(store, source, plan, crew, watch=watch)
    floor = np.asarray(
        StoredProduct(store, replace(case.header, grid=plan.fine), plan).read(Box.whole(plan.fine.shape))
    )
    calibration = Calibration.from_json(store.read_json("calibration.json") or {"channels": []})
    places = placements(case.header.grid, plan.fine)
    filled = np.asarray(store.array(store.coarse)[:])  # holes as the engine fills them, for all methods alike
    cubic = interpolate(filled, places, "cubic")
    holes = np.isnan(floor)

    def shown(image: np.ndarray) -> np.ndarray:
        return psnr(case, np.where(holes, np.nan, image))

    scanned = np.array([shown(project(cubic, filled, case.degradation, weight=w).image) for w in SCAN])
    degraded = (case.degradation.forward_valid(f, ~h)[0] for f, h in zip(floor, holes, strict=True))
    residual = np.stack(list(degraded)) - case.coarse
    over = np.sqrt(np.nanmean(residual**2, axis=tuple(range(1, residual.ndim)))) / sigma
    estimate = np.array([c.noise_sigma for c in calibration.channels]) / sigma
    return {
        "bands": [channel.name for channel in case.header.channels],
        "noise_estimated_over_true": list(estimate),
        "residual_over_noise": list(over),
        "weight": [c.weight for c in calibration.channels],
        "best_weight": [SCAN[k] for k in scanned.argmax(axis=0)],
        "cubic_db": list(shown(cubic)),
        "floor_db": list(shown(floor)),
        "best_of_scan_db": list(scanned.max(axis=0)),
    }


def main() -> None:
    """Print a line per case and the worst figures."""
    data = Path(os.environ["TRUESCALE_DATA"])
    rows = []
    for domain in ("med", "geo"):
        noisy = [replace(c, widened=1.0) for c in suite_of("smoke").conditions(domain) if c.noisy and not c.fusion]
        found = (read(entry, whole=False) for entry in entries([domain], data)[0])
        for truth in (t for t in found if isinstance(t, Truth)):
            for condition in noisy:
                seed = crc32(f"{truth.subject} {truth.name} {condition}".encode())
                case = simulate(truth, condition, np.random.default_rng(seed))
                if case is None or truth.header.modality == "CT":
                    continue
                sigma = np.asarray(truth.peaks) * (0.015 if domain == "med" else 3 / 255)
                with tempfile.TemporaryDirectory() as folder:
                    row = {"image": truth.name, "condition": condition.name, **measure(case, Path(folder), sigma)}
                print(json.dumps(row), flush=True)
                rows.append(row)
    column = {k: np.concatenate([row[k] for row in rows]) for k in rows[0] if isinstance(rows[0][k], list)}
    names = [f"{row['image']} {band}" for row in rows for band in row["bands"]]
    loss = column["best_of_scan_db"] - column["floor_db"]
    below = column["floor_db"] - column["cubic_db"]
    over = column["residual_over_noise"]
    print(
        json.dumps(
            {
                "bands": len(names),
                "noise_estimated_over_true_5_50_95": list(
                    np.quantile(column["noise_estimated_over_true"], [0.05, 0.5, 0.95])
                ),
                "largest_loss_db": [loss.max(), names[loss.argmax()]],
                "loss_95_db": np.quantile(loss, 0.95),
                "least_over_cubic_db": [below.min(), names[below.argmin()]],
                "largest_residual_over_noise": [over.max(), names[over.argmax()]],
            }
        )
    )


if __name__ == "__main__":
    main()
