"""What an evaluation has measured, kept as it goes: one JSON line a score, so that a killed one goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pipelines.errors import StoreError, UsageError
from pipelines.evaluation.tables import Score

log = logging.getLogger(__name__)

SCORES = "scores.jsonl"
"""The file of a result folder that makes it one."""

PICTURES = "pictures"
"""Folder of the pictures: CASE-input, CASE-truth, KEY and KEY-error .webp, and CASE.json with how they are shown."""


def key_of(*parts: str) -> str:
    """Sixteen hexadecimal digits that differ whenever a part does."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class Ledger:
    """Scores by key in memory and, with a folder, in its scores.jsonl.

    A line that is torn (the process was killed) or of another version is left out: what it says is measured again.
    Raises UsageError if the folder holds something else.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._scores: dict[str, Score] = {}
        if folder is None:
            return
        path = folder / SCORES
        if not path.is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UsageError(
                    what=f"'{folder.name}' exists and holds no evaluation",
                    why="its files could be overwritten",
                    fix="name a new folder with --out",
                )
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines():
            try:
                score = Score(**json.loads(line))
            except (ValueError, TypeError):
                log.info("a line of %s is torn or of another version", SCORES)
            else:
                self._scores[score.key] = score
        if text and not text.endswith("\n"):  # the next line begins anew
            self._append("\n")

    def get(self, key: str) -> Score | None:
        """The score under a key, None if it has not been measured."""
        return self._scores.get(key)

    def add(self, score: Score) -> None:
        """Keep a score under its key; on disk before this returns. Raises StoreError if the disk refuses."""
        self._scores[score.key] = score
        if self.folder is not None:
            self._append(json.dumps(asdict(score)) + "\n")

    def keep(self, name: str, content: bytes) -> None:
        """A file among the pictures, if there is a folder. Raises StoreError."""
        if self.folder is None:
            return
        with _kept(name):
            (self.folder / PICTURES).mkdir(exist_ok=True)
            (self.folder / PICTURES / name).write_bytes(content)

    def _append(self, text: str) -> None:
        assert self.folder is not None
        with _kept(SCORES), (self.folder / SCORES).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _kept(name: str) -> Iterator[None]:
    """Says what a failure to write means. Raises StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            what=f"{name} cannot be written ({error.strerror or error})",
            why="what has been measured so far is kept",
            fix="free space and run the same call again",
        ) from error
