"""Tiles on a dask cluster: the same bytes, a bounded window, lost processes, stops."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dask.config
import numpy as np
import pytest
from distributed import Client, LocalCluster

from pipelines import runner
from pipelines.engine import cluster, loading
from pipelines.errors import ModelError, UsageError
from pipelines.job import Job
from pipelines.request import Request
from pipelines.store import Store
from tests.pipelines.files import Run, smooth, write_raster


@pytest.fixture
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
        ) as here,
        Client(here) as found,
    ):
        yield found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "image.tif", smooth((1, 560, 540)).astype(np.uint16))


def test_a_cluster_makes_the_bytes_of_one_process(run: Run, image: Path, tmp_path: Path, client: Client) -> None:
    options = ("--model", "floor", "--quiet")
    assert run("upscale", image, tmp_path / "a.tif", *options)[0] == 0
    code, _, err = run("upscale", image, tmp_path / "b.tif", *options, "--cluster", client.scheduler.address)
    assert code == 0, err
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_two_workers_are_two_processes_and_make_the_same_bytes(image: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        command = [sys.executable, "-m", "pipelines.cli", "upscale", image, tmp_path / f"{workers}.tif", "--quiet"]
        subprocess.run([*command, "--model", "floor", "--workers", str(workers)], check=True, timeout=120)
    assert (tmp_path / "1.tif").read_bytes() == (tmp_path / "2.tif").read_bytes()


def test_one_worker_needs_no_dask(image: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pipelines import runner; runner.upscale(*sys.argv[1:], model='floor', workers=1)\n"
        "print(sorted({'dask', 'distributed'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(image), str(tmp_path / "o.tif")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["[]"]


def test_no_more_than_a_window_is_ever_submitted(client: Client) -> None:
    lock, flying, most = threading.Lock(), [0], [0]
    submit = client.submit

    def counting(*args: object, **options: object) -> object:
        with lock:
            flying[0] += 1
            most[0] = max(most[0], flying[0])
        return submit(*args, **options)

    def done(_: object) -> None:
        with lock:
            flying[0] -= 1

    client.submit = counting  # type: ignore[method-assign]
    results: list[int] = []

    def on_done(tiles: Sequence[int]) -> None:
        done(None)
        results.extend(tiles)

    cluster.run(client, list, range(500), on_done=on_done, stopped=lambda: False, on_stop=lambda: None)
    assert sorted(results) == list(range(500))
    assert most[0] <= 2 * cluster.WINDOW


def test_a_stop_lets_groups_in_flight_end_and_submits_no_other(client: Client) -> None:
    stopping = threading.Event()
    done: list[int] = []

    def slow(tiles: Sequence[int]) -> list[int]:
        time.sleep(0.1)
        return list(tiles)

    def on_done(tiles: Sequence[int]) -> None:
        done.extend(tiles)
        stopping.set()

    told: list[bool] = []
    cluster.run(client, slow, range(400), on_done=on_done, stopped=stopping.is_set, on_stop=lambda: told.append(True))
    assert told == [True]
    assert 0 < len(done) <= 2 * cluster.WINDOW * cluster.GROUP


def test_a_scheduler_that_is_not_there_is_named(run: Run, image: Path, tmp_path: Path) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        code, _, err = run("upscale", image, tmp_path / "o.tif", "--model", "floor", "--cluster", "tcp://127.0.0.1:9")
    assert code == 2
    assert "tcp://127.0.0.1:9" in err


def test_a_cluster_file_that_is_not_there_is_named(run: Run, image: Path, tmp_path: Path) -> None:
    code, _, err = run("upscale", image, tmp_path / "o.tif", "--model", "floor", "--cluster", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml" in err


def test_a_lost_process_costs_only_its_tiles_in_flight(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", smooth((4, 1500, 1500)).astype(np.uint16))
    whole = Job(str(image), str(tmp_path / "whole.tif"), Request(model="floor"))
    runner.carry_out(whole)
    work = runner.prepare(Job(str(image), str(tmp_path / "o.tif"), Request(model="floor", workers=2)))
    command = [sys.executable, "-m", "pipelines.cli", "upscale", str(image), str(tmp_path / "o.tif"), "--quiet"]
    process = subprocess.Popen(
        [*command, "--model", "floor", "--workers", "2", "--memory", "3GB", "--resume", "--work", str(work)],
        start_new_session=True,
    )
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - to make it happen again
    deadline = time.monotonic() + 60
    while not list((work / "ledger").glob("*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    writers = {int(path.stem.split("-")[-2]) for path in (work / "ledger").glob("*.jsonl")}
    killed = min(writers)
    os.kill(killed, signal.SIGKILL)
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "o.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    lines = [line for path in (work / "ledger").glob("*.jsonl") for line in path.read_text().split("\n") if line]
    made = [json.loads(line)["tile"] for line in lines]
    assert sorted(made) == list(range(len(made))), seed  # none that had been finished was made again
    after = {int(path.stem.split("-")[-2]) for path in (work / "ledger").glob("*.jsonl")}
    assert len(after) >= 2, seed  # the others went on


@pytest.mark.parametrize("where", ["nothing.yaml", "tcp://127.0.0.1:1", "of_nobody.yaml"])
def test_a_wrong_cluster_is_told_before_the_input_is_read(
    run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "of_nobody.yaml").write_text("class: nobodys_module.Cluster\n")
    monkeypatch.setattr("pipelines.stages._ingest", None)
    place = where if "://" in where else tmp_path / where
    code, _, err = run("upscale", image, tmp_path / "o.tif", "--model", "floor", "--cluster", place, "--quiet")
    assert code == 2, err
    assert ("nobodys_module, which is not installed" in err) == (where == "of_nobody.yaml")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("o.tif")] == []


def test_a_bad_cluster_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError), cluster.client(str(tmp_path / "x.yaml"), 2):
        pass
    assert not Store(tmp_path).stop.exists()


@contextmanager
def separate_cluster(workers: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A scheduler and workers as processes of their own: the scheduler's, and its address."""
    program = [sys.executable, "-m"]
    scheduler = subprocess.Popen(
        [*program, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert scheduler.stderr is not None
    address = next(re.findall(r"tcp://\S+", line)[0] for line in scheduler.stderr if "Scheduler at" in line)
    threading.Thread(target=scheduler.stderr.read, daemon=True).start()
    started = [
        subprocess.Popen(
            [*program, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"],
            stderr=subprocess.DEVNULL, start_new_session=True,
        )
        for _ in range(workers)
    ]  # fmt: skip
    try:
        yield scheduler, address
    finally:
        for process in (*started, scheduler):
            process.kill()
            process.wait()
        scheduler.stderr.close()


def test_a_scheduler_that_dies_leaves_a_run_that_goes_on(run: Run, tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", smooth((4, 700, 700)).astype(np.uint16))
    options = ("--model", "floor", "--memory", "900MB", "--quiet")
    command = [sys.executable, "-m", "pipelines.cli", "upscale", str(image), str(tmp_path / "o.tif"), *options]
    with separate_cluster(1) as (scheduler, address):
        process = subprocess.Popen([*command, "--cluster", address], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "o.tif.work" / "ledger").glob("*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        scheduler.kill()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 5, err
    assert err.strip().splitlines()[-1].startswith("error    the dask scheduler is gone"), err
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert run(*command[3:], "--resume", "--cluster", "tcp://127.0.0.1:9")[0] == 2  # a mistake costs no tile
    assert list((tmp_path / "o.tif.work" / "ledger").glob("*"))
    assert run(*command[3:], "--resume")[0] == 0
    assert run("upscale", image, tmp_path / "whole.tif", *options)[0] == 0
    assert (tmp_path / "o.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_a_process_loads_its_work_once_and_lets_it_go(client: Client, tmp_path: Path) -> None:
    results: list[int] = []

    def load() -> Callable[[Sequence[int]], list[int]]:
        tempfile.mkstemp(dir=tmp_path)
        return lambda items: [item + 1 for item in items]

    with cluster.loaded(client, load) as work:
        cluster.run(client, work, range(100), on_done=results.extend, stopped=lambda: False, most=3)
    assert sorted(results) == list(range(1, 101))
    assert len(list(tmp_path.iterdir())) == 2  # once each of two workers
    left = client.run(lambda dask_worker: [name for name in dask_worker.plugins if "truescale" in name])
    assert list(left.values()) == [[], []]


def test_what_cannot_be_loaded_is_told_to_the_caller(client: Client) -> None:
    def load() -> Callable[[Sequence[int]], int]:
        raise ModelError(what="the weights differ from their card")

    with cluster.loaded(client, load) as work, pytest.raises(ModelError, match="differ"):
        cluster.run(client, work, range(4), on_done=print, stopped=lambda: False)


def test_after_an_error_nobody_is_at_work_any_more(client: Client, tmp_path: Path) -> None:
    def work(items: Sequence[int]) -> None:
        if items[0] == 0:
            raise ModelError(what="the first fails")
        time.sleep(0.5)
        (tmp_path / str(items[0])).touch()

    submitted: list[object] = []
    submit = client.submit

    def counting(*args: object, **options: object) -> object:
        submitted.append(args)
        return submit(*args, **options)

    client.submit = counting  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="the first fails"):
        cluster.run(client, work, range(40), on_done=print, stopped=lambda: False, most=1)
    assert len(submitted) > 1
    assert len(list(tmp_path.iterdir())) == len(submitted) - 1


def test_a_stop_does_not_wait_for_workers_that_never_came() -> None:
    options = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=0, **options) as here, Client(here) as empty:
        stopping = iter([False, False, True])
        told: list[bool] = []
        cluster.run(
            empty, list, range(4), on_done=print,
            stopped=lambda: next(stopping, True), on_stop=lambda: told.append(True),
        )  # fmt: skip
    assert told == [True]


def test_a_run_says_that_it_waits_for_workers_and_goes_on_once_they_come(
    run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WAIT_S", 0.3)
    options = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=0, **options) as here, Client(here):
        late = threading.Timer(1.5, here.scale, (1,))
        late.start()
        code, _, err = run(
            "upscale", image, tmp_path / "o.tif", "--model", "floor", "--cluster", here.scheduler.address
        )  # fmt: skip
        late.join()
    assert code == 0, err
    told = [line for line in err.splitlines() if line.startswith("waiting")]
    assert told == ["waiting  for workers of the cluster: none is there yet"]


def test_a_wait_is_told_once_and_again_when_all_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = [0.0], []
    monkeypatch.setattr("pipelines.engine.cluster.time.monotonic", lambda: clock[0])
    absence = cluster._Absence(lambda: told.append(clock[0]))
    for second, threads in enumerate([0] * 20 + [2] + [0] * 20):
        clock[0] = float(second)
        absence.look(threads)
    assert told == [cluster.WAIT_S + 1, 20 + cluster.WAIT_S + 1]


@pytest.mark.parametrize("text", ["[]", "class: [", "class: dask_jobqueue.NoSuchCluster", "options: {}"])
def test_a_cluster_file_that_describes_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match="describes no cluster"), cluster.client(str(tmp_path / "c.yaml"), 2):
        pass


@pytest.mark.parametrize(
    ("name", "told", "seen"),
    [(0, "", "0"), (3, "", "1"), (1, "4,7", "7"), (2, "4,7", "4"), (1, "4", "4"), ("tcp://node:1", "4,7", "4,7")],
)
def test_a_process_of_a_cluster_keeps_to_one_of_several_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: object, told: str, seen: str
) -> None:
    for device in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / device).mkdir()
    monkeypatch.setattr(loading, "GPUS", tmp_path)
    environment = {"CUDA_VISIBLE_DEVICES": told} if told else {}
    loading.keep_one_gpu(name, environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == seen
