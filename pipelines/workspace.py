"""Where a run reads and writes, and whether it may."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import BudgetError, InputError, UsageError
from pipelines.planning import Plan
from pipelines.store import Store

DISK_MARGIN = 1.1
"""Free space asked for, over the plan's upper bound."""

EXPORT_COPIES = 2
"""Sizes of the product that its writer takes at most: GDAL copies a finished raster into its final layout."""


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


def check_output(paths: Paths, source: object) -> None:
    """Raise UsageError unless the output can be written there without harm to the input."""
    output, folder = paths.output, paths.output.parent
    if not folder.is_dir():
        raise UsageError(what=f"the output folder '{folder}' does not exist", fix="make it first")
    if isinstance(source, (str, Path)) and output.exists() and Path(source).exists() and output.samefile(source):
        raise UsageError(what="the output is the input", why="the measurement would be lost", fix="name another output")
    if output.exists() and not paths.overwrite:
        raise UsageError(what=f"the output '{output.name}' exists", fix="give --overwrite to replace it")
    if output.exists() and output.is_dir() != (output.suffix == ".zarr"):
        raise UsageError(
            what=f"'{output.name}' is a {'folder' if output.is_dir() else 'file'}", fix="name another output"
        )
    if paths.work_folder.exists() and not paths.work_folder.is_dir():
        raise UsageError(what=f"the work folder '{paths.work_folder.name}' is a file", fix="name another with --work")


def check_space(made: Plan, paths: Paths) -> None:
    """Raise BudgetError if the disks cannot hold the work folder and the product."""
    folder = paths.work_folder if paths.work_folder.is_dir() else paths.work_folder.parent
    if not folder.is_dir():
        raise UsageError(what="the folder of --work does not exist", fix="make it first")
    product = EXPORT_COPIES * made.output_bytes
    require_space({folder: made.work_bytes, paths.output.parent: product}, "name a roomier place with --work")


def require_space(needs: dict[Path, int], fix: str) -> None:
    """Raise BudgetError unless the disks under these existing folders have room for so many bytes each."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, needed in needs.items():
        disk = _disk(folder)
        disks[disk] = (folder, needed + disks.get(disk, (folder, 0))[1])
    for folder, needed in disks.values():
        needed, free = int(needed * DISK_MARGIN), shutil.disk_usage(folder).free
        if free < needed:
            raise BudgetError(
                what=f"up to {needed / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} GB are free",
                why="it would stop half-way",
                fix=f"free space, or {fix}",
            )


def _disk(folder: Path) -> int:
    return folder.stat().st_dev


def remove(path: Path) -> None:
    """Remove a product, a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def prepare(store: Store, made: Plan, paths: Paths) -> None:
    """A work folder that holds this plan: a fresh one, or the one to resume."""
    old = store.read_json("plan.json")
    if old is not None and paths.resume:
        try:
            before = Plan.from_json(old)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                what="the work folder belongs to another version of truescale",
                why="mixing both would spoil the product",
                fix="leave out --resume to start again",
            ) from error
        if (before.run_hash, before.device) != (made.run_hash, made.device):
            own, other = made.to_json(), before.to_json()
            names = [
                k for k in own if own[k] != other.get(k) and k not in ("workers", "memory_bytes", "predicted_bytes")
            ]
            raise InputError(
                what=f"the work folder belongs to another run (different: {', '.join(names)})",
                why="mixing both would spoil the product",
                fix="leave out --resume to start again",
            )
    elif old is None and store.folder.is_dir() and any(store.folder.iterdir()):
        raise UsageError(
            what=f"the work folder '{store.folder.name}' is not empty and holds no run",
            why="what lies there may be someone's",
            fix="move it away, or name an empty folder with --work",
        )
    else:
        store.remove()
    store.write_json("plan.json", made.to_json())


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a work folder: two runs of one output would spoil each other. Raises UsageError if another holds it.

    A lock of a process of this machine that no longer lives is taken over.
    """
    lock = folder.with_name(folder.name + ".lock")
    try:
        owner = int(lock.read_text())
        os.kill(owner, 0)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        owner = os.getpid()
    except PermissionError:
        pass  # alive, and someone else's
    if owner != os.getpid():
        raise UsageError(
            what=f"another run (process {owner}) is at work on '{folder.name}'",
            fix=f"wait for it, or remove '{lock.name}' if it is none of truescale's",
        )
    try:
        lock.write_text(str(os.getpid()))
    except OSError as error:
        raise UsageError(
            what=f"the folder of the work folder cannot be written ({error.strerror})",
            why="a run keeps its tiles there",
            fix="choose another output folder, or name one with --work",
        ) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
