"""Tiles on a dask cluster: a window of groups is submitted at a time, so that nothing grows with the scene."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.errors import StoppedError, TileError, UsageError

if TYPE_CHECKING:
    from distributed import Client

    from pipelines.engine.loading import Work

WINDOW = 2
"""Groups in flight per thread of the cluster."""

GROUP = 16
"""Most tiles in a group: they follow each other, so that a process finds their matrices again."""

ANSWER_S = 5.0
"""How long a scheduler may take to say how many workers it has."""

REPLACE_S = 5.0
"""How often lost jobs of a queueing cluster are looked for."""

TRIES = 5
"""How often processes are told what to load, a second apart, while they are lost meanwhile."""

POLL_S = 0.05
"""How often a stop is looked for while groups are computed."""

WAIT_S = 10.0
"""How long a cluster may be without workers before that is told; one that queues may be so for hours."""

SETTLE_S = 30.0
"""How long groups in flight are waited for after an error: they write where the caller may want to tidy up."""


@contextmanager
def client(where: str | None, workers: int) -> Iterator[Client]:
    """A client: of `workers` processes of this machine (None), of an address, or of a YAML (see `configs/clusters`).

    Raises UsageError if there is none.
    """
    import dask.config

    dask.config.set({"logging.distributed": "critical"})  # read when distributed is imported
    import distributed

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what matters becomes an error of ours
    with ExitStack() as stack:
        if where is None:
            cluster = stack.enter_context(_here(workers))
        elif "://" in where:
            cluster = where
        else:
            cluster = stack.enter_context(_from_yaml(Path(where), workers))
        try:
            found = distributed.Client(cluster)
        except (OSError, TimeoutError) as error:
            raise UsageError(
                what=f"no dask scheduler answers at {where}", fix="start it, or leave out --cluster"
            ) from error
        yield stack.enter_context(found)


def _here(workers: int) -> Any:
    """Processes of this machine. Raises UsageError if they do not start."""
    import distributed

    options = {"threads_per_worker": 1, "memory_limit": None, "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    try:
        try:
            return distributed.LocalCluster(n_workers=workers, **options)
        except RuntimeError:  # one was lost just now
            return distributed.LocalCluster(n_workers=workers, **options)
    except RuntimeError as error:
        raise UsageError(
            what=f"the {workers} processes did not start",
            why="something ends them, or a script starts them again when they import it",
            fix="run again; in a script, put the call under `if __name__ == '__main__':`",
        ) from error


def _from_yaml(path: Path, workers: int) -> Any:
    """The cluster that `class: module.Class` and `options` of a YAML describe, scaled to `workers` jobs."""
    if not path.is_file():
        raise UsageError(what=f"there is no cluster file '{path}'", fix="give tcp://HOST:PORT or a .yaml")
    try:
        described = yaml.safe_load(path.read_text())
        module, _, name = described["class"].rpartition(".")
        cluster = getattr(importlib.import_module(module), name)(**described.get("options", {}))
    except ModuleNotFoundError as error:
        raise UsageError(
            what=f"'{path.name}' needs {error.name}, which is not installed here",
            fix="install it (for Slurm: pip install -c constraints.txt '.[slurm]')",
        ) from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise UsageError(
            what=f"'{path.name}' describes no cluster",
            why=f"{type(error).__name__}: {error}".splitlines()[0],
            fix="see configs/clusters for what it holds",
        ) from error
    if hasattr(cluster, "job_script"):  # one that queues: a job may hold several processes
        cluster.scale(jobs=workers)
    else:
        cluster.scale(workers)
    return cluster


@contextmanager
def loaded(client: Client, load: Callable[[], Work]) -> Iterator[Work]:
    """Work whose means are loaded once in every process of the cluster: what `load()` returns there.

    Raises UsageError if a process cannot import it.
    """
    from pipelines.engine.loading import Loaded, call

    plugin = Loaded(load)
    for left in reversed(range(TRIES)):
        try:
            client.register_plugin(plugin)
            break
        except ImportError as error:
            raise UsageError(
                what=f"a process of the cluster lacks {error.name}", fix="install the same truescale there"
            ) from error
        except (OSError, TimeoutError) as error:  # one was lost just now
            if not left or _lost(client):
                raise StoppedError(
                    what="processes of the cluster are lost before they begin", fix="run again with --resume"
                ) from error
            time.sleep(1)
    try:
        yield partial(call, plugin.name)
    finally:
        if client.status == "running":  # a shared cluster lives on, without our network
            with suppress(OSError, TimeoutError):
                client.unregister_worker_plugin(plugin.name)


def run(
    client: Client,
    work: Work,
    todo: Sequence[Any],
    *,
    on_done: Callable[[Any], None],
    stopped: Callable[[], bool],
    on_stop: Callable[[], None] = lambda: None,
    on_wait: Callable[[], None] = lambda: None,
    most: int = GROUP,
) -> None:
    """Call `work(items)` on the cluster for groups of `todo`, at most `most` in one; each result goes to `on_done`.

    on_stop: called once when `stopped` says so, or when the scheduler is lost; groups in flight are waited for, no
    other is submitted. on_wait: called when nobody has been there to work for WAIT_S, once until somebody comes. A
    group whose process is lost runs again. Raises TileError if it is lost too often, StoppedError if the scheduler is.
    """
    flight = _Flight(client, work, todo, most)
    told, looked, absent = False, time.monotonic(), _Absence(on_wait)
    try:
        while True:
            threads = _threads(client)  # processes may join and leave at any time
            absent.look(threads)
            if stopped() and not told:
                told = True
                on_stop()
            if time.monotonic() - looked > REPLACE_S and not told:
                looked = time.monotonic()
                _replace_lost(client)
            if not told:
                flight.submit(WINDOW * max(1, threads))
            if flight.empty or (told and not threads):  # nobody is there to end what is in flight
                return
            if flight.ready:
                on_done(flight.landed())
            else:
                time.sleep(POLL_S)
    except BaseException:
        on_stop()  # the processes may live on
        _settle(client, flight.groups)
        raise


class _Flight:
    """The groups that are in flight: few, whatever is still to do."""

    def __init__(self, client: Client, work: Work, todo: Sequence[Any], most: int) -> None:
        from distributed import as_completed

        self._client, self._work, self._todo, self._most = client, work, todo, most
        self._begun, self._pending = 0, as_completed()
        self.groups: set[Any] = set()

    def submit(self, window: int) -> None:
        """Fill up to `window` groups. The last ones are small: nobody waits long for the end."""
        while self._begun < len(self._todo) and self._pending.count() < window:
            size = max(1, min(self._most, (len(self._todo) - self._begun) // window))
            items = list(self._todo[self._begun : self._begun + size])
            group = self._client.submit(self._work, items, pure=False)
            self.groups.add(group)
            self._pending.add(group)
            self._begun += size

    @property
    def empty(self) -> bool:
        return bool(self._pending.is_empty())

    @property
    def ready(self) -> bool:
        """Whether a group has landed, or never will."""
        return self._pending.has_ready() or _lost(self._client)

    def landed(self) -> Any:
        """The result of a group. Raises its error; TileError, StoppedError as `run` does."""
        from distributed.scheduler import KilledWorker

        future = None if _lost(self._client) else next(self._pending)
        if future is None or future.cancelled():
            raise StoppedError(
                what="the dask scheduler is gone",
                why="it gave the workers their tiles",
                fix="start it, then run again with --resume",
            )
        self.groups.discard(future)
        try:
            return future.result()
        except KilledWorker as error:
            raise TileError(
                what="the same work has ended several processes of the cluster",
                why="it may need more memory than they have",
                fix="see their logs, then run again with --resume",
            ) from error


class _Absence:
    """Tells once when nobody has been there for WAIT_S."""

    def __init__(self, on_wait: Callable[[], None]) -> None:
        self._on_wait, self._since, self._told = on_wait, time.monotonic(), False

    def look(self, threads: int) -> None:
        """threads: of all processes that are there now."""
        if threads:
            self._since, self._told = time.monotonic(), False
        elif not self._told and time.monotonic() - self._since > WAIT_S:
            self._told = True
            self._on_wait()


def _settle(client: Client, flying: set[Any]) -> None:
    """Let groups in flight end, if anybody is there to end them."""
    from distributed import wait

    if flying and not _lost(client) and _threads(client):
        with suppress(OSError, TimeoutError, CancelledError):  # or lost just now
            wait(list(flying), timeout=SETTLE_S)


def _threads(client: Client) -> int:
    """Threads of the cluster; processes that are still waiting in a queue have none."""
    try:
        return sum(client.nthreads(callback_timeout=ANSWER_S).values())
    except (OSError, TimeoutError):  # the scheduler is lost, which `run` sees next
        return 0


def _replace_lost(client: Client) -> None:
    """Submit jobs again that have been cancelled or whose time was over: a queueing cluster replaces none by itself."""
    cluster = client.cluster
    if cluster is not None and hasattr(cluster, "job_script"):
        cluster.scale(jobs=len(cluster.worker_spec))


def _lost(client: Client) -> bool:
    return client.status != "running"
