"""The tiles of one process: a thread per worker, each with its own share and its own ledger files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


def run(work: Callable[[Sequence[int], int], None], todo: Sequence[int], workers: int) -> None:
    """Call `work(tiles, number)` in `workers` threads that share `todo` evenly. Raises the first error of any thread.

    work handles single failing tiles itself; an error that leaves it means that nothing more can be done.
    """
    shares = [todo[k::workers] for k in range(workers)]
    shares = [share for share in shares if share]
    if len(shares) <= 1:
        for share in shares:
            work(share, 0)
        return
    errors: list[BaseException] = []

    def one(share: Sequence[int], number: int) -> None:
        try:
            work(share, number)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=one, args=(share, k), daemon=True) for k, share in enumerate(shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
