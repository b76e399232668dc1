"""How far `--slice-thickness auto` is off: isotropic volumes made thick by a known profile, along each axis.

    python tests/bench/bench_thickness.py DATA            # the dev split: one JSON line per case, then a table
    python tests/bench/bench_thickness.py DATA --fit      # DIFFERENCES of pipelines/thickness.py, from the train split

Conditions of the protocol: 3|0 4|0 4|1 5|0 5|1 mm, clean and with Rician noise of 1.5 % of the 99.9th percentile.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines import thickness
from pipelines.degradation import Profile, along, axis_matrix
from pipelines.errors import InputError
from pipelines.formats import open_source
from pipelines.grid import Box, Placement, decimal_fraction

SLICES = ((3, 0), (4, 0), (4, 1), (5, 0), (5, 1))
NOISE = 0.015
ISOTROPIC = 1.3
"""Largest over smallest spacing of a volume that is taken for isotropic."""

Case = tuple[str, int, str, float, float, float, NDArray[np.float32], tuple[float, ...]]


def cases(data: Path, split: str, kinds: tuple[str, ...], least: int) -> Iterator[Case]:
    """(name, axis, kind, thickness, gap, noise, volume with slices first, spacing [mm])."""
    folder = data / "med"
    for row in csv.DictReader((folder / "manifest.csv").read_text().splitlines()):
        if (row["split"], row["kind"], row["modality"]) != (split, "volume", "MR"):
            continue
        with open_source(folder / row["path"]) as source:
            grid = source.header.grid
            image = source.read(Box.whole(grid.shape))[0].astype(np.float32)
        if max(grid.spacing) > ISOTROPIC * min(grid.spacing) or min(grid.shape) < least:
            continue
        image /= np.float32(np.percentile(image, 99.9))
        for axis in range(3):
            upright, spacing = np.moveaxis(image, axis, 0), [grid.spacing[axis], *np.delete(grid.spacing, axis)]
            for (thick, gap), kind in ((s, k) for s in SLICES for k in kinds):
                clean = thickened(upright, spacing[0], kind, thick, gap)
                for sigma in (0.0, NOISE):
                    rng = np.random.default_rng([axis, thick, gap])
                    a, b = sigma * rng.standard_normal((2, *clean.shape)).astype(np.float32)
                    noisy = np.hypot(clean + a, b) if sigma else clean
                    yield Path(row["path"]).name[:-7], axis, kind, thick, gap, sigma, noisy, (thick + gap, *spacing[1:])


def thickened(image: NDArray[np.float32], own_mm: float, kind: str, thick: float, gap: float) -> NDArray[np.float32]:
    """Slices of a known profile every `thick + gap` mm, along the first axis."""
    scale = decimal_fraction(thick + gap) / decimal_fraction(own_mm)
    place = Placement(int(len(image) / scale), len(image), scale, (scale - 1) / 2)
    return along(axis_matrix(place, Profile(kind, thick), thick / own_mm), image, 0).astype(np.float32)


def fit(data: Path) -> None:
    """Print the covariance of the log ratios at the true thickness and noise."""
    off = []
    for _, _, kind, thick, gap, sigma, volume, spacing in cases(data, "train", ("slice",), 100):
        for axis in (1, 2):
            ratios = thickness.evidence(volume, spacing, axis, kind).residual(sigma**2)
            tried = np.log(thickness.CANDIDATES)
            cubic = np.linalg.pinv(np.vander(tried, 4)) @ ratios
            off.append(np.vander([math.log(thick / (thick + gap))], 4)[0] @ cubic)
    found = np.array(off)
    covariance = found.T @ found / len(found)
    shrunk = 0.9 * covariance + 0.1 * np.diag(np.diag(covariance))
    print(np.array2string(shrunk, separator=", ", precision=5, suppress_small=True, max_line_width=110))


def measure(data: Path, split: str, kinds: tuple[str, ...], told: str | None) -> None:
    """Print each case, then errors per shape and noise. told: the shape that is assumed, None: the true one."""
    rows = []
    for name, axis, kind, thick, gap, sigma, volume, spacing in cases(data, split, kinds, 100):
        row = {"volume": name, "axis": axis, "kind": kind, "slices": f"{thick}|{gap}", "noise": sigma}
        try:
            found = thickness.estimate(volume, spacing, kind=told or kind)
            rows.append({**row, "mm": found.mm, "error": found.mm / thick - 1})
            rows[-1]["covered"] = found.low_mm <= thick <= found.high_mm
            rows[-1]["width"] = (found.high_mm - found.low_mm) / found.mm
        except InputError as error:
            rows.append({**row, "error": None, "why": error.why})
        print(json.dumps(rows[-1]), flush=True)
    for kind, sigma in sorted({(str(r["kind"]), float(r["noise"])) for r in rows}):
        chosen = [r for r in rows if (r["kind"], r["noise"]) == (kind, sigma)]
        known = [r for r in chosen if r["error"] is not None]
        errors, covered = np.array([r["error"] for r in known], float), np.mean([r["covered"] for r in known])
        print(
            f"{kind} noise {sigma}: {len(chosen)} cases, {len(chosen) - len(known)} untold, mean |error| "
            f"{abs(errors).mean():.1%}, bias {errors.mean():+.1%}, largest {abs(errors).max():.1%}, "
            f"within 15 % {np.mean(abs(errors) <= 0.15):.0%}, in the interval {covered:.0%}, "
            f"its width {np.mean([r['width'] for r in known]):.0%}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--kinds", default="slice")
    parser.add_argument("--told", default=None)
    options = parser.parse_args()
    if options.fit:
        fit(options.data)
    else:
        measure(options.data, options.split, tuple(options.kinds.split(",")), options.told)
