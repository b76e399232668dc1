"""What a run did, as one JSON object beside the product."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any


@dataclass(frozen=True, slots=True)
class ChannelResult:
    """Consistency of one channel. rmse in input units; over_noise: null where the noise is 0."""

    name: str
    degradation: str
    noise_sigma: float
    noise_method: str
    weight: float
    rmse_before: float | None
    rmse: float | None
    over_noise: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The report of one run; field names are the keys of its JSON."""

    output: str
    model: str
    weights_sha256: str | None
    run_hash: str
    axes: str
    axes_named: tuple[str, ...]
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    spacing_before: tuple[float, ...]
    spacing_after: tuple[float, ...]
    spacing_unit: str
    affine_world: str
    affine: tuple[tuple[float, ...], ...]
    dtype: str
    seconds: dict[str, float]
    peak_bytes: int
    predicted_bytes: int
    tiles: int
    tiles_resumed: int
    consistency_rmse: float | None
    consistency_over_noise: float | None
    consistency_max: float | None
    channels: tuple[ChannelResult, ...]
    clipped: float = 0
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    version: str = ""
    use: str = "research software, not a medical device"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(json.loads(json.dumps(asdict(self))))


def report_path(product: Path) -> Path:
    """Where the report of a product lies."""
    return product.with_name(product.name + ".report.json")


class Stopwatch:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        started = perf_counter()
        try:
            yield
        finally:
            self.add(name, perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
