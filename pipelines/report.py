"""What a run did, as one JSON object beside the product."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Self

from pipelines.costs import achieved
from pipelines.image import Header
from pipelines.likeness import contradicts
from pipelines.planning import Calibration, ChannelCalibration, ChannelPlan, Plan
from pipelines.projection import EXPLAINED, Residual
from pipelines.store import Record, write_whole
from pipelines.verification import Verification


@dataclass(frozen=True, slots=True)
class ChannelResult:
    """Consistency of one channel. rmse in input units; over_noise: null where the noise is 0.

    rmse counts the samples that see only valid ones (samples: how many), rmse_beside_holes the others, compared with
    what they see; lag1_correlation: of the residual and its neighbour along the fastest axis.
    """

    name: str
    degradation: str
    noise_sigma: float
    noise_method: str
    weight: float
    rmse_before: float | None
    rmse: float | None
    samples: int
    over_noise: float | None
    rmse_beside_holes: float | None
    lag1_correlation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The report of one run; field names are the keys of its JSON.

    network_rate: multiply-adds per second and core, null without a network or of a short run.
    """

    output: str
    model: str
    weights_sha256: str | None
    run_hash: str
    axes: str
    axes_named: tuple[str, ...]
    axes_named_after: tuple[str, ...]
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    spacing_before: tuple[float, ...]
    spacing_after: tuple[float, ...]
    spacing_unit: str
    faces_moved: tuple[tuple[float, float], ...]
    affine_world: str
    affine: tuple[tuple[float, ...], ...]
    dtype: str
    seconds: dict[str, float]
    peak_bytes: int
    predicted_bytes: int
    tiles: int
    tiles_resumed: int
    network_rate: float | None = None
    consistency_rmse: float | None
    consistency_over_noise: float | None
    consistency_max: float | None
    consistency_worst_part: dict[str, Any] | None
    channels: tuple[ChannelResult, ...]
    clipped: float = 0
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    version: str = ""
    use: str = "research software, not a medical device"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The report that `to_json` wrote."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        values["channels"] = tuple(ChannelResult(**channel) for channel in data["channels"])
        return cls(**values)


def report_path(product: Path) -> Path:
    """Where the report of a product lies."""
    return product.with_name(product.name + ".report.json")


class Stopwatch:
    """Seconds per stage, and the memory of other processes that worked for the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.others_bytes = 0
        self._started = perf_counter()

    def read(self) -> dict[str, float]:
        """Seconds per stage, and in total since the start (stages overlap)."""
        return {**self.seconds, "total": perf_counter() - self._started}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        started = perf_counter()
        try:
            yield
        finally:
            self.add(name, perf_counter() - started)

    def others(self, peaks: Sequence[int]) -> None:
        """Count the largest memory [bytes] of each other process so far."""
        self.others_bytes = max(self.others_bytes, sum(peaks))

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    try:  # getrusage also counts the parent's memory at the fork
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summarise(
    made: Plan,
    watch: Stopwatch,
    checked: Verification,
    written: Header,
    calibration: Calibration,
    resumed: int,
    records: dict[int, Record],
) -> RunReport:
    """The report of a finished run. checked: the residuals of the written product; written: its header."""
    channels, everything, weighted, counted = [], Residual(), 0.0, 0
    for c, own in enumerate(calibration.channels):
        total, sigma = checked.inner.total(c), own.noise_sigma
        everything = everything.merged(total)
        if sigma:
            weighted, counted = weighted + total.sum_squares / sigma**2, counted + total.count
        channels.append(_channel(made.channels[c], own, c, checked, records))
    return RunReport(
        output=made.output,
        model=made.model,
        weights_sha256=made.weights_sha256,
        run_hash=made.run_hash,
        axes=made.coarse.axes,
        axes_named=made.axes_named,
        axes_named_after=made.orientation.names(made.axes_named),
        shape_before=made.coarse.shape,
        shape_after=made.product.shape,
        spacing_before=made.coarse.spacing,
        spacing_after=made.product.spacing,
        spacing_unit=made.coarse.frame.unit,
        faces_moved=made.faces_moved,
        affine_world=written.file_world,
        affine=written.file_affine,
        dtype=written.dtype,
        seconds={name: round(value, 3) for name, value in watch.read().items()},
        peak_bytes=peak_bytes() + watch.others_bytes,
        predicted_bytes=made.predicted_bytes,
        tiles=len(records),
        tiles_resumed=resumed,
        network_rate=achieved(made, calibration, records.values()),
        consistency_rmse=everything.rms if everything.count else None,
        consistency_over_noise=(weighted / counted) ** 0.5 if counted else None,
        consistency_max=everything.maximum if everything.count else None,
        consistency_worst_part=_worst_part(made, checked, calibration),
        channels=tuple(channels),
        facts=made.facts,
        warnings=(*made.warnings, *_warnings(made, calibration, channels)),
        version=made.version,
    )


def _channel(
    channel: ChannelPlan, own: ChannelCalibration, c: int, checked: Verification, records: dict[int, Record]
) -> ChannelResult:
    total, beside, before = checked.inner.total(c), checked.beside.total(c), Residual()
    for _, record in sorted(records.items()):
        before = before.merged(Residual(*record.before[c]))
    return ChannelResult(
        name=channel.name,
        degradation=" x ".join(channel.spec),
        noise_sigma=own.noise_sigma,
        noise_method=own.noise_method,
        weight=own.weight,
        rmse_before=before.rms if before.count else None,
        rmse=total.rms if total.count else None,
        samples=total.count,
        over_noise=total.rms / own.noise_sigma if total.count and own.noise_sigma else None,
        rmse_beside_holes=beside.rms if beside.count else None,
        lag1_correlation=checked.inner.correlation(c),
    )


def _warnings(made: Plan, calibration: Calibration, channels: Sequence[ChannelResult]) -> Iterator[str]:
    """What the calibration has found that a user should know."""
    each = zip(made.channels, calibration.channels, strict=True)
    pairs = [(c, n) for c, n in each if c.treatment == "network"]
    floored = [c.name for c, n in pairs if not (n.refined or n.unlike or n.contradicts)]
    if floored:
        yield f"more noise than the network knows, made with the floor: {', '.join(floored)}"
    for channel, own in pairs:
        made_with = "" if own.refined else ", made with the floor"
        if own.unlike:
            yield f"{channel.name} is unlike what the network was trained on ({own.unlike}){made_with}"
        if own.contradicts:
            yield f"{channel.name}: before the projection the network contradicts the input{made_with}"
    for result, own in zip(channels, calibration.channels, strict=True):
        before, most = result.rmse_before or 0.0, made.card.contradiction
        if own.refined and contradicts(before, own.noise_sigma, own.scale, most):
            text = f"in training by up to {most * own.scale:.3g}; --strict leaves the network out"
            yield f"{result.name}: before the projection the network contradicts the input by {before:.3g}, {text}"
    projected = [(n.over_noise or 0.0, n.name) for n, c in zip(channels, made.channels, strict=True) if c.project]
    worst, name = max(projected, default=(0.0, ""))
    if worst > EXPLAINED:
        yield f"differs from the input once degraded: {name} by up to {worst:.2f} of its noise"
    unknown = [n.name for n in channels if n.noise_method == "none" and made.noise == "auto" and n.rmse is not None]
    if unknown:
        yield f"the noise could not be estimated, taken as 0: {', '.join(unknown)}; tell it with --noise"


def _worst_part(made: Plan, checked: Verification, calibration: Calibration) -> dict[str, Any] | None:
    """The slice or square, in the input's samples, that is explained worst: over the noise where that is known."""
    found: dict[str, Any] | None = None
    for c, channel in enumerate(made.channels):
        sigma = calibration.channels[c].noise_sigma
        for part, box in checked.parts():
            residual = checked.inner.of(c, part)
            over = residual.rms / (sigma or 1.0)
            if residual.count and (found is None or over > found["over"]):
                found = {"channel": channel.name, "start": box.start, "stop": box.stop, "rmse": residual.rms}
                found |= {"over_noise": over if sigma else None, "over": over}
    return found and {key: value for key, value in found.items() if key != "over"}


def write_report(report: RunReport, product: Path) -> None:
    """Write the report beside its product, whole or not at all."""
    write_whole(report_path(product), json.dumps(report.to_json(), indent=1) + "\n")


def read_report(product: Path) -> RunReport | None:
    """What `write_report` wrote beside a product; None if nothing of this version can be read there."""
    try:
        return RunReport.from_json(json.loads(report_path(product).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
