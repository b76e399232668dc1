"""What a run will take: a network's multiply-adds at the rate of an earlier run, and so much a sample for the rest.

Estimates only: nothing here changes a plan, and none of it changes a byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines import networks
from pipelines.planning import Calibration, Plan, cover
from pipelines.store import Record, write_whole

RATES = {"cpu fp32": 8.0e10, "cpu bf16": 1.2e11}
"""Multiply-adds per second and core until a run tells: measured on two cores of an AMD EPYC with AVX512-BF16."""

SECONDS_PER_SAMPLE = {"tiles": 8e-8, "files": 2e-7}
"""Per fine sample and core of interpolating, projecting and encoding, with what tiles repeat; of input and product."""

START_S = {"floor": 1.0, "network": 5.0}
"""Before the first tile."""

LEAST_S = 1.0
"""A network that ran for less, all cores together, tells no rate."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """multiply_adds: of the network, with what tiles repeat; repeated: that over what one tile would need.

    seconds: of the run on so many idle cores, None where nothing is known of the device; measured: whether the rate of
    the network is that of a run on this machine.
    """

    multiply_adds: float
    repeated: float
    seconds: float | None
    measured: bool
    cores: int

    def summary(self) -> dict[str, float | bool | None]:
        """For scripts, beside the plan's own."""
        return {
            "multiply_adds": self.multiply_adds,
            "multiply_adds_repeated": self.repeated,
            "predicted_seconds": self.seconds,
            "rate_measured": self.measured,
        }


def estimate(plan: Plan, cores: int, rates: Mapping[str, float]) -> Estimate:
    """What `plan` will take on idle cores. rates: of `read_rates`."""
    card = plan.card
    channels = sum(channel.treatment == "network" for channel in plan.channels)
    channels *= mirrors(plan)
    work = channels * networks.multiply_adds(card, plan.cover(card))
    once = channels * networks.multiply_adds(card, cover(plan, card, plan.fine.shape))
    samples = math.prod(plan.fine.shape) * len(plan.channels)
    used = min(cores, plan.workers * plan.threads)
    seconds = START_S["network" if work else "floor"] + samples * SECONDS_PER_SAMPLE["files"]
    seconds += samples * (1 + plan.recomputed) * SECONDS_PER_SAMPLE["tiles"] / used
    rate = rates.get(_key(plan), RATES.get(f"{_device(plan)} {plan.precision}"))
    if work and rate:
        seconds += work / (rate * (cores if _device(plan) == "cpu" else plan.workers))
    known = rate is not None or not work
    return Estimate(work, work / once - 1 if once else 0.0, seconds if known else None, _key(plan) in rates, cores)


def achieved(plan: Plan, calibration: Calibration, records: Iterable[Record]) -> float | None:
    """Multiply-adds per second and core of a finished run's network; None if it told too little."""
    channels = sum(channel.refined for channel in calibration.channels)
    seconds = sum(record.seconds.get("network", 0.0) * record.threads for record in records)
    if plan.device == "cuda":  # whose work the threads share
        seconds /= min(plan.threads, plan.tile_count)
    if not channels or seconds < LEAST_S:
        return None
    return channels * mirrors(plan) * networks.multiply_adds(plan.card, plan.cover(plan.card)) / seconds


def mirrors(plan: Plan) -> int:
    """Images that a network sees of each tile."""
    return int(2**plan.fine.ndim) if plan.ensemble else 1


def read_rates(path: Path | None) -> dict[str, float]:
    """What earlier runs achieved here, by model, device and precision; nothing if it cannot be read."""
    try:
        found = json.loads(path.read_text()) if path else {}
        return {str(key): float(rate) for key, rate in found.items() if 0 < float(rate) < math.inf}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def keep_rate(path: Path | None, plan: Plan, rate: float | None) -> None:
    """Remember what a run achieved. A cache that cannot be written is no fault of the run."""
    if path is None or rate is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({**read_rates(path), _key(plan): rate}, indent=1, sort_keys=True) + "\n")


def _device(plan: Plan) -> str:
    """What 'auto' will find is not known without torch."""
    return "cpu" if plan.device == "auto" else plan.device


def _key(plan: Plan) -> str:
    return f"{plan.model} {_device(plan)} {plan.precision}"
