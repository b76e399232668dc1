"""Where a run reads and writes, and whether it may."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import BudgetError, InputError, UsageError
from pipelines.planning import Plan
from pipelines.store import Store

DISK_MARGIN = 1.1
"""Free space asked for, over the plan's upper bound."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a run reads and writes. work: None for the default place beside the output, removed at the end."""

    output: Path
    work: Path | None = None
    overwrite: bool = False
    resume: bool = False

    @property
    def work_folder(self) -> Path:
        """The work folder in use."""
        return self.work or self.output.with_name(self.output.name + ".work")


def check_output(paths: Paths) -> None:
    """Raise UsageError unless the output can be written there."""
    parent = paths.output.parent
    if not parent.is_dir():
        raise UsageError(what=f"the output folder '{parent}' does not exist", fix="make it first")
    if paths.output.exists() and not paths.overwrite:
        raise UsageError(what=f"the output '{paths.output.name}' exists", fix="give --overwrite to replace it")


def check_space(made: Plan, paths: Paths) -> None:
    """Raise BudgetError if the disk cannot hold the work folder and the product."""
    needed = int((made.work_bytes + made.output_bytes) * DISK_MARGIN)
    folder = paths.work_folder if paths.work_folder.is_dir() else paths.work_folder.parent
    if not folder.is_dir():
        raise UsageError(what="the folder of --work does not exist", fix="make it first")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BudgetError(
            what=f"the run needs up to {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free",
            why="it would stop half-way",
            fix="free space, or name a roomier place with --work",
        )


def prepare(store: Store, made: Plan, paths: Paths) -> None:
    """A work folder that holds this plan: a fresh one, or the one to resume."""
    old = store.read_json("plan.json")
    if old is not None and paths.resume:
        before = Plan.from_json(old)
        if before.run_hash != made.run_hash:
            own, other = made.to_json(), before.to_json()
            names = [
                k for k in own if own[k] != other.get(k) and k not in ("workers", "memory_bytes", "predicted_bytes")
            ]
            raise InputError(
                what=f"the work folder belongs to another run (different: {', '.join(names)})",
                why="mixing both would spoil the product",
                fix="leave out --resume to start again",
            )
    elif store.folder.exists():
        if paths.work is not None and old is None and any(store.folder.iterdir()):
            raise UsageError(
                what="the folder of --work is not empty and holds no run", fix="name an empty or a new folder"
            )
        shutil.rmtree(store.folder)
    store.write_json("plan.json", made.to_json())
