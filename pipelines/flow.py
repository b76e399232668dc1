"""The tiles of one process: readers -> arithmetic -> writers, the counts of both as the plan says.

Memory does not grow: a reader waits until its tile is taken, and the arithmetic, which stays in the caller's thread,
until a writer is free. Neither the counts nor the order change a byte.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines import heap
from pipelines.engine import local
from pipelines.errors import StoreError
from pipelines.planning import Plan
from pipelines.store import Ledger, Record, Store
from pipelines.tiles import Tile
from pipelines.worker import Window, Worker

log = logging.getLogger(__name__)

STUCK_S = 600.0
"""Without a step of any tile for so long something may hang, and is told. After as long again, reading and
writing are given up: they take seconds, while a large network may take its time."""

LOOKS = 10
"""Of the watchdog, in STUCK_S."""

JOIN_S = 1.0
"""How often a thread that is waited for is looked at: it may hang."""

COMPUTING = "computing"
"""How the name of a step begins that is only slow: it waits for nobody."""


@dataclass(frozen=True, slots=True)
class TileWork:
    """Makes tiles of a work folder in any process that sees the folder: small and picklable."""

    folder: str
    run: str
    device: str
    threads: int

    def load(self) -> Callable[[Sequence[int]], list[Record]]:
        """The work itself, for groups of tiles: plan read, network loaded by its path and its hash verified."""
        worker = Worker(Path(self.folder), device=self.device, threads=self.threads)
        worker.predictor  # noqa: B018 - loaded once

        def make(tiles: Sequence[int]) -> list[Record]:
            """Make the tiles that are not done yet; those that failed have an error."""
            ledger, place = Ledger(worker.store, self.run), worker.cover.position
            begun = [t for t in tiles if worker.store.shard_path(place(t)).exists()]  # by a process that was lost
            kept = set(begun) - set(ledger.missing(begun, place) if begun else ())
            found: list[Record] = []
            todo = [t for t in tiles if t not in kept]
            stopped = partial(ended, worker.store, self.run)

            def share(own: Sequence[int], _number: int) -> None:
                writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
                run_tiles(worker, own, writer=writer, on_done=found.append, stopped=stopped)

            local.run(share, todo, worker.plan.threads)
            return found

        return make


def ended(store: Store, run: str) -> bool:
    """Whether a run is to stop, or its folder is another's by now: this process may have been cut off from its own."""
    plan = store.read_json("plan.json")
    return store.stop.exists() or plan is None or Plan.from_json(plan).run_hash != run


def run_tiles(
    worker: Worker,
    tiles: Sequence[int],
    *,
    writer: str,
    on_done: Callable[[Record], None],
    stopped: Callable[[], bool],
) -> None:
    """Make the tiles. One that fails is reported with its error and does not stop the others.

    writer: begins the names of the ledger files, one for each thread that writes; on_done: called in these threads.
    StoreError (a full disk, one that hangs) ends the work: no later tile could be written either.
    """
    flow = _Flow(worker, tiles, on_done, stopped)
    with flow.watch:
        flow.run(writer)


class _Flow:
    """What the threads of one call of `run_tiles` share."""

    def __init__(
        self,
        worker: Worker,
        tiles: Sequence[int],
        on_done: Callable[[Record], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._worker, self._on_done, self._stopped = worker, on_done, stopped
        self.watch, self._hangs, self._ending = Watchdog(self._give_up), False, False
        self._tiles, self._handing_out = iter(tiles), threading.Lock()
        plan = worker.plan
        self._ahead: queue.Queue[tuple[Tile, Window | Exception] | None] = queue.Queue()
        self._behind: queue.Queue[tuple[Tile, NDArray[np.floating], Record] | None] = queue.Queue()
        # how many tiles may have been read and not taken, or made and not written
        self._may_read, self._may_hand_on = threading.Semaphore(plan.readers), threading.Semaphore(plan.writers)
        self._broken: list[Exception] = []

    def run(self, writer: str) -> None:
        """All of it; None in a queue ends one reader or writer. Raises the first error that nothing can follow."""
        plan = self._worker.plan
        readers = [threading.Thread(target=self._read, daemon=True) for _ in range(plan.readers)]
        names = [f"{writer}.{number}" for number in range(plan.writers)]
        writers = [threading.Thread(target=self._write, args=(name,), daemon=True) for name in names]
        for thread in (*readers, *writers):
            thread.start()
        reading = len(readers)
        while reading:
            reading -= not self._compute_next()
        for _ in writers:
            self._behind.put(None)
        for thread in (*readers, *writers):
            while thread.is_alive() and not self._hangs:
                thread.join(JOIN_S)
        if self._broken:
            raise self._broken[0]

    def _give_up(self, error: StoreError) -> None:
        """End `run` although threads hang: nothing can end those but the end of the process."""
        self._broken.append(error)
        self._hangs = True
        for _ in range(self._worker.plan.readers):  # what the caller's thread may wait for
            self._ahead.put(None)
        self._may_hand_on.release()

    def _over(self) -> bool:
        """Whether no other tile is to be begun. Readers ask: the answer may lie in a file system that hangs."""
        try:
            with self.watch.step("asking whether to go on"):
                self._ending = self._ending or bool(self._broken) or self._stopped()
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            self._broken.append(error)
            self._ending = True
        return self._ending

    def _read(self) -> None:
        try:
            while self._may_read.acquire() and (index := self._next()) is not None:
                tile = self._worker.cover[index]
                window = self._window(tile)
                self._over()  # it may have been long
                self._ahead.put((tile, window))
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            self._broken.append(error)
        finally:
            self._ahead.put(None)

    def _next(self) -> int | None:
        with self._handing_out:
            return None if self._over() else next(self._tiles, None)

    def _window(self, tile: Tile) -> Window | Exception:
        try:
            with self.watch.step(f"reading tile {tile.index}"):
                return self._worker.read(tile)
        except Exception as error:  # noqa: BLE001 - handed to the caller's thread, which reports the tile
            return error

    def _compute_next(self) -> bool:
        """Make the next tile that has been read; False once a reader has ended."""
        item = self._ahead.get()
        self._may_read.release()
        if item is None or self._ending or self._broken:
            return item is not None
        tile, window = item
        try:
            if isinstance(window, Exception):
                raise window
            with self.watch.step(f"{COMPUTING} tile {tile.index}"):
                made = self._worker.compute(tile, window)
            self._may_hand_on.acquire()
            self._behind.put((tile, *made))
            heap.trim(self._worker.trim_bytes)
        except Exception as error:  # noqa: BLE001 - one tile must not stop the others
            text = str(error) or type(error).__name__
            self._on_done(Record(tile.index, self._worker.plan.run_hash, error=text))
        return True

    def _write(self, name: str) -> None:
        ledger = Ledger(self._worker.store, self._worker.plan.run_hash)  # one writer, one file
        while (item := self._behind.get()) is not None:
            try:
                if not self._broken:
                    with self.watch.step(f"writing tile {item[0].index}"):
                        record = self._worker.write(*item, ledger, name)
                    self._on_done(record)
            except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
                self._broken.append(error)
            finally:
                item = None  # not held while the next one is made
                self._may_hand_on.release()


class Watchdog:
    """Says so, once, when no step ends for STUCK_S; with the log at DEBUG, where every thread stands.

    on_hang: called with the error when none has ended for twice as long, and none computes; then stacks are shown too.
    """

    def __init__(self, on_hang: Callable[[StoreError], None]) -> None:
        self._on_hang = on_hang
        self._steps: dict[int, str] = {}
        self._moved = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step of a tile, of this thread."""
        self._steps[threading.get_ident()] = name
        try:
            yield
        finally:
            del self._steps[threading.get_ident()]
            self._moved += 1

    def _watch(self) -> None:
        looks, moved = 0, self._moved  # looks, not time: the process itself may have been stopped for a while
        while not self._ended.wait(STUCK_S / LOOKS):
            looks, moved = (looks + 1, moved) if moved == self._moved else (0, self._moved)
            steps = sorted(self._steps.copy().values())
            if looks == LOOKS:
                log.error(
                    "no step of a tile has ended for %.3g minutes: %s. Slow, or a file system that hangs: "
                    "reading and writing are given up after as long again. --resume goes on.",
                    STUCK_S / 60,
                    ", ".join(steps) or "waiting",
                )
                if log.isEnabledFor(logging.DEBUG):
                    faulthandler.dump_traceback(sys.__stderr__ or 2)
            if looks >= 2 * LOOKS and steps and not any(s.startswith(COMPUTING) for s in steps):
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                self._on_hang(
                    StoreError(
                        what=f"{steps[0]} has not ended for {2 * STUCK_S / 60:.3g} minutes",
                        why="the file system of the work folder hangs",
                        fix="once it answers, run again with --resume",
                    )
                )
                return
