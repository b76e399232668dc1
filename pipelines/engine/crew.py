"""Who does the work of a run: this process, or those of one dask cluster, which starts once and when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipelines.engine import cluster

if TYPE_CHECKING:
    from distributed import Client

    from pipelines.engine.loading import Work


class Crew:
    """The processes beside this one for the length of a run. A context manager.

    where: see `cluster.client`; workers: 1 without a place means nobody beside this process. stop: a file that every
    process sees, there once they are to stop. ask: called in every process after its work; its answers go to `told`.
    """

    def __init__(
        self,
        where: str | None,
        workers: int,
        *,
        stop: Path,
        ask: Callable[[], int],
        told: Callable[[Sequence[int]], None],
        on_wait: Callable[[], None],
    ) -> None:
        self._where, self._workers, self._stop = where, workers, stop
        self._ask, self._told, self._on_wait = ask, told, on_wait
        self._stack = ExitStack()
        self._client: Client | None = None

    @property
    def alone(self) -> bool:
        """Whether there is nobody but this process."""
        return self._workers == 1 and self._where is None

    def do(
        self,
        load: Callable[[], Work],
        todo: Sequence[Any],
        *,
        on_done: Callable[[Any], None],
        stopped: Callable[[], bool],
        most: int = cluster.GROUP,
    ) -> None:
        """Give `todo` in groups to the work that `load()` returns in every process: see `cluster.loaded` and `run`."""
        self._stop.unlink(missing_ok=True)
        client = self._client or self._connected()
        with cluster.loaded(client, load) as work:
            cluster.run(
                client,
                work,
                todo,
                on_done=on_done,
                stopped=stopped,
                on_stop=self._stop.touch,
                on_wait=self._on_wait,
                most=most,
            )
            with suppress(OSError, TimeoutError):
                self._told(list(client.run(self._ask).values()))

    def _connected(self) -> Client:
        self._client = self._stack.enter_context(cluster.client(self._where, self._workers))
        return self._client

    def __enter__(self) -> Self:
        if self._where is not None:  # a wrong place is told before the input is read
            self._connected()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client = None
        self._stack.close()
