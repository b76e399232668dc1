"""What a plan says a run will take, and what it learns from runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import costs, networks, runner
from pipelines.image import ArraySource, Header
from pipelines.networks import Condition
from pipelines.planning import Calibration, ChannelCalibration, Plan
from pipelines.request import Request
from pipelines.store import Record
from tests.pipelines.files import Run
from tests.pipelines.test_runner import raster, volume

NETWORKS = [
    ("lattice-geo", raster((300, 280)), "2", (256, 256)),
    ("lattice-geo", raster((900, 60)), "4", (4096, 256)),
    ("lattice-mri", volume((14, 70, 66), 4.0, 4.0), "4x1x1", (64, 32, 64)),
    ("lattice-mri", volume((14, 40, 36), 4.0, 4.0), "4x2x1", (64, 64, 64)),
]


def plan_of(model: str, header: Header, scale: str, shard: tuple[int, ...] | None = None, **asked: object) -> Plan:
    source = ArraySource(np.zeros((len(header.channels), *header.grid.shape)), header)
    plan = runner.plan(source, Request(model=model, scale=scale, **asked))  # type: ignore[arg-type]
    return replace(plan, shard=shard or plan.shard)


@pytest.mark.parametrize(("model", "header", "scale", "shard"), NETWORKS)
def test_multiply_adds_are_those_that_torch_counts(
    model: str, header: Header, scale: str, shard: tuple[int, ...]
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    plan = plan_of(model, header, scale, shard)
    cover, net, counted = plan.cover(plan.card), networks.load(plan.card), 0.0
    for tile in cover:
        samples = np.zeros((1, *tile.read.shape), np.float32)
        with FlopCounterMode(display=False) as counter:
            net.residual(samples, tile.read, tile.estimate, plan.places, Condition((1.0,), (0.0,)))
        counted += counter.get_total_flops() / 2
    # the last batch of planes is filled up by repetition, which is not counted
    assert networks.multiply_adds(plan.card, cover) == pytest.approx(counted, rel=0.02)


def test_tiles_repeat_work_and_one_tile_repeats_none() -> None:
    header = raster((300, 280), bands=3)
    many, one = (plan_of("lattice-geo", header, "2", shard) for shard in ((256, 256), (1024, 1024)))
    tiled, whole = (costs.estimate(plan, 2, {}) for plan in (many, one))
    assert whole.repeated == 0
    assert tiled.multiply_adds == pytest.approx((1 + tiled.repeated) * whole.multiply_adds)
    assert tiled.repeated > 0.2
    assert whole.multiply_adds > 3 * 300 * 280 * 250_000  # per band and coarse sample


def test_a_rate_that_was_measured_replaces_the_constant() -> None:
    plan = plan_of("lattice-geo", raster((600, 560)), "2")
    before = costs.estimate(plan, 2, {"lattice-geo-1.0 cpu bf16": 1.0})
    after = costs.estimate(plan, 2, {"lattice-geo-1.0 cpu fp32": costs.RATES["cpu fp32"] / 10})
    assert (before.measured, after.measured) == (False, True)
    assert before.seconds is not None
    assert after.seconds is not None
    work_s = before.multiply_adds / costs.RATES["cpu fp32"] / 2
    assert after.seconds - before.seconds == pytest.approx(9 * work_s)


def test_nothing_is_said_of_a_device_that_nobody_has_measured() -> None:
    plan = plan_of("lattice-geo", raster((64, 60)), "2", device="cuda")
    assert costs.estimate(plan, 2, {}).seconds is None
    assert costs.estimate(plan, 2, {"lattice-geo-1.0 cuda fp32": 1e12}).measured


def test_a_run_tells_the_rate_of_the_channels_that_were_refined() -> None:
    plan = plan_of("lattice-geo", raster((64, 60), bands=2), "2")
    one = ChannelCalibration(0, 1, 0, "none", 0, refined=True)
    calibration = Calibration((one, replace(one, refined=False)))
    records = [Record(0, "run", seconds={"network": 3.0}, threads=2)]
    assert costs.achieved(plan, calibration, records) == pytest.approx(costs.estimate(plan, 2, {}).multiply_adds / 12)
    assert costs.achieved(plan, Calibration((replace(one, refined=False),) * 2), records) is None
    assert costs.achieved(plan, calibration, [replace(records[0], seconds={"network": 0.1})]) is None


def test_rates_are_kept_side_by_side_and_what_cannot_be_read_or_written_is_no_fault(tmp_path: Path) -> None:
    path, plan = tmp_path / "new" / "rates.json", plan_of("lattice-geo", raster((64, 60)), "2")
    costs.keep_rate(path, plan, 2e10)
    costs.keep_rate(path, replace(plan, precision="bf16"), 3e10)
    costs.keep_rate(path, plan, None)
    assert costs.read_rates(path) == {"lattice-geo-1.0 cpu fp32": 2e10, "lattice-geo-1.0 cpu bf16": 3e10}
    for text in ("[1]", "{", '{"a": "b"}', '{"a": null}'):
        path.write_text(text)
        assert costs.read_rates(path) == {}
    costs.keep_rate(path, plan, 2e10)
    assert costs.read_rates(path) == {"lattice-geo-1.0 cpu fp32": 2e10}
    costs.keep_rate(path / "below a file.json", plan, 2e10)
    assert costs.read_rates(path / "below a file.json") == costs.read_rates(None) == {}


def test_a_run_teaches_the_next_plan_and_changes_nothing_else(
    run: Run, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(costs, "LEAST_S", 1e-6)
    asked = (scene, tmp_path / "o.tif", "--model", "lattice-geo", "--device", "cpu")
    before = json.loads(run("plan", *asked, "--json")[1])
    assert "not yet measured on this machine" in run("plan", *asked)[1]
    code, out, _ = run("upscale", *asked, "--quiet", "--json")
    assert code == 0
    rate = json.loads(out.splitlines()[-1])["network_rate"]
    assert rate > 0
    assert json.loads((tmp_path / "cache/truescale/rates.json").read_text()) == {"lattice-geo-1.0 cpu fp32": rate}
    after = json.loads(run("plan", *asked, "--overwrite", "--json")[1])
    assert "as the last run here" in run("plan", *asked, "--overwrite")[1]
    differ = {key for key in before if before[key] != after[key]}
    assert differ <= {"predicted_seconds", "rate_measured", "overwrite", "done"}
    assert {"rate_measured", "done"} <= differ
    assert (tmp_path / "o.tif").exists()


def test_an_interpolation_has_no_multiply_adds_but_takes_its_time(run: Run, scene: Path, tmp_path: Path) -> None:
    out = json.loads(run("plan", scene, tmp_path / "o.tif", "--model", "floor", "--json")[1])
    assert (out["multiply_adds"], out["multiply_adds_repeated"], out["rate_measured"]) == (0, 0, False)
    assert out["predicted_seconds"] > costs.START_S["floor"]
