"""Bands of an image read and written by the other processes of a run, where that pays; the bytes are the same."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pipelines.engine.crew import Crew
from pipelines.errors import StoppedError, TruescaleError
from pipelines.flow import ended
from pipelines.grid import Box
from pipelines.image import Source
from pipelines.product import WatchedSource
from pipelines.sizing import SPREAD_FROM
from pipelines.store import Store

T = TypeVar("T")


class SpreadSource(WatchedSource):
    """A Source whose boxes the crew of a run works on, if any process could read them; otherwise this one does.

    on_read: as for WatchedSource; what it raises ends the work.
    """

    def __init__(
        self, source: Source, on_read: Callable[[int, int], None], crew: Crew, store: Store, run_hash: str
    ) -> None:
        super().__init__(source, on_read)
        self._crew, self._store, self._run_hash = crew, store, run_hash

    def each(self, work: Callable[[Source, Box], T], boxes: Sequence[Box]) -> list[T]:
        """Boxes that the others have left, since they see no such input or had to stop, are done here."""
        found: dict[Box, T] = {}
        if len(boxes) >= SPREAD_FROM and self.anywhere and not self._crew.alone:
            content, folder = pickle.dumps(self._source), str(self._store.folder.absolute())
            task = BoxWork(content, self._source.identity, folder, self._run_hash, work)

            def stopped() -> bool:
                try:
                    self._on_read(sum(box.shape[0] for box in found), self.header.grid.shape[0])
                except StoppedError:  # raised again below, once nobody is at work
                    return True
                return False

            self._crew.do(task.load, boxes, on_done=found.update, stopped=stopped, most=1)
        return [found[box] if box in found else work(self, box) for box in boxes]


@dataclass(frozen=True, slots=True)
class BoxWork(Generic[T]):
    """Works on boxes of a Source in any process that sees its file and the work folder: small and picklable.

    content: the pickled Source, which opens it again by its path.
    """

    content: bytes
    identity: str
    folder: str
    run: str
    work: Callable[[Source, Box], T]

    def load(self) -> Boxes[T]:
        """The work itself, for groups of boxes."""
        store = Store(Path(self.folder))

        def check(*_: int) -> None:
            if ended(store, self.run):
                raise StoppedError(what="the run has ended")

        source = self._opened()
        return Boxes(source and WatchedSource(source, check), self.work)

    def _opened(self) -> Source | None:
        """The same input, None if this process does not see it."""
        try:
            source: Source = pickle.loads(self.content)
        except (TruescaleError, OSError):
            return None
        return source if source.identity == self.identity else None


class Boxes(Generic[T]):
    """Works on groups of boxes of an open Source; what it does not return is left to others."""

    def __init__(self, source: Source | None, work: Callable[[Source, Box], T]) -> None:
        self._source, self._work = source, work

    def __call__(self, boxes: Sequence[Box]) -> list[tuple[Box, T]]:
        if self._source is None:
            return []
        try:
            return [(box, self._work(self._source, box)) for box in boxes]
        except StoppedError:
            return []

    def close(self) -> None:
        """Release the file."""
        if self._source is not None:
            self._source.close()
