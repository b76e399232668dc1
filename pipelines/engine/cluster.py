"""Tiles on a dask cluster: a window of groups is submitted at a time, so that nothing grows with the scene."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.errors import TileError, UsageError

if TYPE_CHECKING:
    from distributed import Client

WINDOW = 2
"""Groups in flight per thread of the cluster."""

GROUP = 16
"""Most tiles in a group: they follow each other, so that a process finds their matrices again."""

POLL_S = 0.05
"""How often a stop is looked for while groups are computed."""


@contextmanager
def client(where: str | None, workers: int) -> Iterator[Client]:
    """A client: of `workers` processes of this machine (None), of an address, or of a YAML (see `configs/clusters`).

    Raises UsageError if there is none.
    """
    import dask.config

    dask.config.set({"logging.distributed": "error"})  # read when distributed is imported
    import distributed

    with ExitStack() as stack:
        if where is None:
            cluster = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=workers, threads_per_worker=1, memory_limit=None, dashboard_address=None, silence_logs=50
                )
            )
        elif "://" in where:
            cluster = where
        else:
            cluster = stack.enter_context(_from_yaml(Path(where), workers))
        try:
            yield stack.enter_context(distributed.Client(cluster))
        except (OSError, TimeoutError) as error:
            raise UsageError(
                what=f"no dask scheduler answers at {where}", fix="start it, or leave out --cluster"
            ) from error


def _from_yaml(path: Path, workers: int) -> Any:
    """The cluster that `class: module.Class` and `options` of a YAML describe, scaled to `workers` jobs."""
    if not path.is_file():
        raise UsageError(what=f"there is no cluster file '{path}'", fix="give tcp://HOST:PORT or a .yaml")
    described = yaml.safe_load(path.read_text())
    module, _, name = described["class"].rpartition(".")
    cluster = getattr(importlib.import_module(module), name)(**described.get("options", {}))
    cluster.scale(jobs=described.get("jobs", workers))
    return cluster


def run(
    client: Client,
    work: Callable[[Sequence[Any]], Any],
    todo: Sequence[Any],
    *,
    on_done: Callable[[Any], None],
    stopped: Callable[[], bool],
    on_stop: Callable[[], None] = lambda: None,
    most: int = GROUP,
) -> None:
    """Call `work(items)` on the cluster for groups of `todo`, at most `most` in one; each result goes to `on_done`.

    on_stop: called once when `stopped` says so; groups in flight are waited for, no other is submitted. A group whose
    process is lost runs again. Raises TileError if it is lost too often.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    threads = max(1, sum(client.nthreads().values()))
    size = max(1, min(most, len(todo) // (threads * WINDOW)))
    groups = (todo[k : k + size] for k in range(0, len(todo), size))
    pending = as_completed()
    told = False

    def submit() -> None:
        group = next(groups, None)
        if group is not None:
            pending.add(client.submit(work, list(group), pure=False))

    for _ in range(threads * WINDOW):
        submit()
    while not pending.is_empty():
        if stopped() and not told:
            told = True
            on_stop()
        if not pending.has_ready():
            time.sleep(POLL_S)
            continue
        try:
            on_done(next(pending).result())
        except KilledWorker as error:
            raise TileError(
                what="the same work has ended several processes of the cluster",
                why="it may need more memory than they have",
                fix="see their logs, then run again with --resume",
            ) from error
        if not stopped():
            submit()
