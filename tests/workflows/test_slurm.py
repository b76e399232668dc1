"""The cluster workflows on a real Slurm: jobs are cancelled and requeued at random, the products stay the same."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.files import smooth, write_raster
from tests.slurm import ENDED, Slurm

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
BATCH = ROOT / "workflows" / "batch"
BIN = Path(sys.executable).parent
PROGRAM = {"TRUESCALE": str(BIN / "truescale"), "SBATCH_OPTIONS": "--mem=1G"}
SMALL = ("--model", "floor", "--memory", "870MB")
"""16 tiles of the scene below."""


@pytest.fixture
def seed() -> int:
    """Printed, so that what happened can be made to happen again."""
    chosen = int(os.environ.get("TRUESCALE_SEED") or random.SystemRandom().randrange(10**6))
    print(f"TRUESCALE_SEED={chosen}")  # noqa: T201 - to make it happen again
    return chosen


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raster(tmp_path_factory.mktemp("scene") / "a scene.tif", smooth((2, 900, 900)).astype(np.uint16))


@pytest.fixture(scope="module")
def undisturbed(scene: Path) -> bytes:
    """The product of one process."""
    product = scene.with_name("whole.tif")
    subprocess.run([PROGRAM["TRUESCALE"], "upscale", scene, product, *SMALL, "--quiet"], check=True, timeout=120)
    return product.read_bytes()


def until(ready: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.02)


def test_a_job_requeued_then_cancelled_goes_on_and_then_has_nothing_to_do(
    slurm: Slurm, scene: Path, undisturbed: bytes, tmp_path: Path, seed: int
) -> None:
    dice, output = random.Random(seed), tmp_path / "out.tif"
    ledger = tmp_path / "out.tif.work" / "ledger"

    def submit() -> str:
        call = ("sbatch", "--parsable", "--mem=1G", BATCH / "one.sbatch", scene, output, *SMALL)
        return slurm.call(*call, cwd=tmp_path, **PROGRAM)

    job = submit()
    until(lambda: list(ledger.glob("*")))
    time.sleep(dice.uniform(0, 0.5))
    slurm.call("scontrol", "requeue", job)
    until(lambda: slurm.states(job)[job] == "RUNNING")
    time.sleep(dice.uniform(0, 2))
    slurm.call("scancel", job)
    assert slurm.wait(job)[job] in ("CANCELLED", "COMPLETED")
    for _ in range(2):
        job = submit()
        assert slurm.wait(job) == {job: "COMPLETED"}, next(tmp_path.glob(f"*-{job}.log")).read_text()
        assert output.read_bytes() == undisturbed
    assert "tiles" not in (tmp_path / f"truescale-{job}.log").read_text()


def test_an_array_whose_parts_are_requeued_and_cancelled_at_random_makes_the_same_bytes(
    slurm: Slurm, scene: Path, undisturbed: bytes, tmp_path: Path, seed: int
) -> None:
    dice, output = random.Random(seed), tmp_path / "100% out.tif"

    def submit() -> list[str]:
        told = slurm.call(BATCH / "array.sh", scene, output, 3, *SMALL, **PROGRAM)
        return [word.strip(",;") for word in told.split()[1:6:2]]

    _, parts, finish = submit()
    for command in (["scontrol", "requeue"], ["scancel"]):
        running: list[str] = []
        until(lambda: running.extend(t for t, s in slurm.states(parts).items() if s == "RUNNING") or running)  # noqa: B023
        time.sleep(dice.uniform(0, 1.5))
        with suppress(RuntimeError):  # it has ended meanwhile
            slurm.call(*command, dice.choice(running))
        if slurm.wait(finish, (*ENDED, "PENDING"))[finish] != "PENDING":
            break
    slurm.wait(finish)
    if not output.exists():
        slurm.wait(submit()[2])
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
    assert output.read_bytes() == undisturbed, logs
    assert not list(tmp_path.glob("*.work/*"))
    assert "nothing to do" in slurm.call(BATCH / "array.sh", scene, output, 3, *SMALL, **PROGRAM)


@pytest.mark.parametrize("wrong", [("2", "--no-such-option"), ("0",), ("2", "--work", "elsewhere")])
def test_an_array_that_cannot_work_is_refused_before_it_is_queued(
    slurm: Slurm, scene: Path, tmp_path: Path, wrong: tuple[str, ...]
) -> None:
    before = slurm.call("squeue", "--noheader", "--states=all")
    with pytest.raises(RuntimeError, match="ended with 2"):
        slurm.call(BATCH / "array.sh", scene, tmp_path / "o.tif", *wrong, **PROGRAM)
    assert slurm.call("squeue", "--noheader", "--states=all") == before


def test_a_dask_worker_cancelled_at_random_changes_no_byte(slurm: Slurm, tmp_path: Path, seed: int) -> None:
    scene = write_raster(tmp_path / "scene.tif", smooth((1, 1500, 1500)).astype(np.uint16))
    call = [PROGRAM["TRUESCALE"], "upscale", scene]
    options = ["--model", "floor", "--memory", "3GB", "--quiet"]
    subprocess.run([*call, tmp_path / "whole.tif", *options, "--workers", "1"], check=True, timeout=120)
    on_slurm = ["--workers", "2", "--cluster", ROOT / "configs" / "clusters" / "slurm.yaml"]
    process = subprocess.Popen(
        [*call, tmp_path / "o.tif", *options, *on_slurm], env=slurm.environment, cwd=tmp_path
    )  # fmt: skip

    def jobs() -> list[str]:
        return slurm.call("squeue", "--noheader", "--name=dask-worker", "--states=running", "--format=%i").split()

    until(lambda: list((tmp_path / "o.tif.work" / "ledger").glob("*")))
    time.sleep(random.Random(seed).uniform(0, 0.3))
    workers = jobs()
    assert len(workers) == 2
    slurm.call("scancel", random.Random(seed).choice(workers))
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "o.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    until(lambda: not jobs())  # they end with the run


def test_snakemake_makes_all_products_but_those_of_broken_inputs_and_sums_up(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for name in ("one", "the other"):
        write_raster(tmp_path / "scans" / f"{name}.tif", smooth((1, 60, 50)).astype(np.uint16))
    (tmp_path / "scans" / "broken.tif").write_bytes(b"II*\0 no more")
    command = [BIN / "snakemake", "--snakefile", BATCH / "Snakefile", "--keep-going", "--jobs", "3"]
    command += ["--executor", "slurm", "--slurm-status-command", "squeue"]  # this Slurm keeps no accounts
    command += ["--slurm-init-seconds-before-status-checks", "1"]
    command += ["--config", "inputs=scans/*.tif", "products=out folder", "options=--model floor"]
    done = subprocess.run(
        command,
        cwd=tmp_path, env={**slurm.environment, **PROGRAM}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    rows = csv.DictReader((tmp_path / "out folder" / "summary.csv").read_text().splitlines())
    found = {Path(row["input"]).stem: (row["state"], row["error"]) for row in rows}
    assert {name: state for name, (state, _) in found.items()} == {
        "broken": "failed",
        "one": "made",
        "the other": "made",
    }, done.stderr
    assert "broken.tif" in found["broken"][1]
    assert (tmp_path / "out folder" / "the other.tif").exists()
