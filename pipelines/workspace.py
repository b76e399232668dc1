"""Where a run reads and writes, and whether it may."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.errors import BudgetError, InputError, StoreError, TruescaleError, UsageError
from pipelines.planning import NO_BYTES, Plan
from pipelines.request import bytes_text
from pipelines.sizing import continued
from pipelines.store import OWN_FILES, Ledger, Store

NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What a system answers where one may not write."""

SAID = {
    "identity": "input",
    "coarse": "input grid",
    "fine": "scale or output grid",
    "shard": "tiles",
    "weights_sha256": "weights",
    "card_sha256": "card of the model",
    "dtype": "type of the samples",
}
"""What users call the parts of a plan, where that is not their name."""

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
        return (self.work or self.output.with_name(self.output.name + ".work")).absolute()

    def continued(self) -> Paths:
        """With the leave to overwrite of the run to resume: it was told so, or its own product may be there already."""
        if not (self.resume and self.output.name and self.work_folder.is_dir()):
            return self
        store = Store(self.work_folder)
        before = store.read_json("plan.json")
        if before is None:  # what would go on
            return self
        told = before.get("overwrite") and Path(before["output"]).absolute() == self.output.absolute()
        own = delivered(store, self.output) and not (store.read_json("exported.json") or {}).get("ended")
        return replace(self, overwrite=self.overwrite or bool(told) or own)


def stamp(path: Path) -> dict[str, int]:
    """What tells a file or folder from another that takes its place."""
    status = path.stat()
    return {"inode": status.st_ino, "bytes": status.st_size, "written_ns": status.st_mtime_ns}


def delivered(store: Store, output: Path) -> bool:
    """Whether what stands at the output is the product of the run in the work folder."""
    return output.exists() and (store.read_json("exported.json") or {}).get("stamp") == stamp(output)


def gone(store: Store) -> bool:
    """Whether a work folder is empty but for what `Store.remove` takes last."""
    return {path.name for path in store.folder.glob("*")} <= {OWN_FILES[-1]}


def check_output(paths: Paths, source: object) -> None:
    """Raise UsageError unless the output can be written there without harm to the input."""
    output, folder = paths.output, paths.output.parent
    if not output.name:
        raise UsageError(what="the output has no name", fix="give one, like t2_iso.nii.gz")
    check_folder(folder)
    if isinstance(source, (str, Path)) and output.exists() and Path(source).exists() and output.samefile(source):
        raise UsageError(what="the output is the input", why="the measurement would be lost", fix="name another output")
    if output.exists() and not paths.overwrite:
        raise UsageError(what=f"the output '{output.name}' exists", fix="give --overwrite to replace it")
    if output.exists() and output.is_dir() != (output.suffix == ".zarr"):
        raise UsageError(
            what=f"'{output.name}' is a {'folder' if output.is_dir() else 'file'}", fix="name another output"
        )
    if not paths.work_folder.resolve().name:
        raise UsageError(what="the work folder is the root of the disk", fix="name another with --work")
    if paths.work_folder.exists() and not paths.work_folder.is_dir():
        raise UsageError(what=f"the work folder '{paths.work_folder.name}' is a file", fix="name another with --work")


def check_folder(folder: Path) -> None:
    """Raise UsageError unless outputs can be written into the folder."""
    if not folder.is_dir():
        raise UsageError(what=f"the output folder '{folder}' does not exist", fix="make it first")
    if not os.access(folder, os.W_OK):
        raise UsageError(what=f"the output folder '{folder}' cannot be written", fix="choose another one")


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
                what=f"up to {bytes_text(needed)} of disk are needed, {bytes_text(free)} are free",
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


def disk_failed(what: str, error: OSError) -> TruescaleError:
    """A folder that one may not write to as a usage error, a full or failing disk as what a run can resume from."""
    reason = f"{what} cannot be written ({error.strerror or error})"
    if error.errno in NOT_ALLOWED:
        return UsageError(what=reason, fix="choose a folder that you may write to")
    return StoreError(
        what=reason,
        why="the plan names the space a run needs",
        fix="free space and run again (upscale: with --resume)",
    )


def tiles_lost(paths: Paths) -> int:
    """Tiles of an earlier run that a run without --resume will remove."""
    store = Store(paths.work_folder)
    if paths.resume or not store.folder.is_dir():
        return 0
    try:
        before = begun(store)
    except (StoreError, InputError):  # damaged, or of another version
        return 0
    return len(Ledger(store, before.run_hash).records()) if before is not None else 0


def begun(store: Store) -> Plan | None:
    """The plan of the run that lies in a work folder, None if none does. Raises StoreError, InputError."""
    data = store.read_json("plan.json")
    try:
        return Plan.from_json(data) if data is not None else None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            what="the work folder belongs to another version of truescale",
            why="mixing both would spoil the product",
            fix="leave out --resume to start again",
        ) from error


def prepared(store: Store, made: Plan, paths: Paths) -> Plan:
    """A work folder that holds this plan: a fresh one, or the one to resume. Returns the plan to carry out.

    A run goes on with the tiles it was begun with, whatever the memory and the workers now.
    """
    old = store.read_json("plan.json")
    if paths.resume and (before := begun(store)) is not None:
        made = continued(made, before)
        if (before.run_hash, before.device) != (made.run_hash, made.device):
            raise InputError(
                what=f"the work folder belongs to another run (different: {', '.join(_differences(before, made))})",
                why="mixing both would spoil the product",
                fix="leave out --resume to start again",
            )
    elif old is None and store.folder.is_dir() and any(p.name not in OWN_FILES for p in store.folder.iterdir()):
        raise UsageError(
            what=f"the work folder '{store.folder.name}' is not empty and holds no run",
            why="what lies there may be someone's",
            fix="move it away, or name an empty folder with --work",
        )
    else:
        store.remove()
    try:
        store.write_json("plan.json", made.to_json())
    except OSError as error:
        with suppress(OSError):
            store.folder.rmdir()  # only if it is empty
        raise disk_failed("the work folder", error) from error
    return made


def _differences(before: Plan, made: Plan) -> Iterator[str]:
    """Names of what may change a byte and is not as it was; of libraries with their versions."""
    old, new = before.to_json(), made.to_json()
    for name in new:
        if name == "libraries":
            known = sorted({*before.libraries, *made.libraries})
            pairs = [(key, before.libraries.get(key, "unknown"), made.libraries.get(key, "none")) for key in known]
            yield from (f"{key} {was}, now {now}" for key, was, now in pairs if was != now)
        elif old.get(name) != new[name] and (name == "device" or name not in NO_BYTES):
            yield SAID.get(name, name)


@contextmanager
def held(folder: Path, part: str = "") -> Iterator[None]:
    """Hold a work folder: two runs of one output would spoil each other. Raises UsageError if another holds it.

    part: 'K-of-N', hold this part of it alone, beside other parts of N. The system releases the lock of a process that
    ends, however it ends. A file system without locks has only the file beside the folder: who made it holds it, and
    what a killed process left must be removed by hand.
    """
    folder = folder.resolve()  # one name for one folder
    with ExitStack() as stack:
        stack.enter_context(_lock(folder.with_name(folder.name + ".lock"), shared=bool(part)))
        if part:
            stack.enter_context(_lock(folder.with_name(f"{folder.name}.{part}.lock")))
            _refuse_other_parts(folder, part)  # each holds its own first: of two that come at once, one sees the other
        yield


def _refuse_other_parts(folder: Path, part: str) -> None:
    """Raise UsageError if a part of another number of parts is at work: some tiles would have two writers."""
    own = f"-of-{part.rpartition('-of-')[2]}.lock"
    for path in sorted(folder.parent.glob(f"{glob.escape(folder.name)}.*-of-*.lock")):
        if path.name.endswith(own):
            continue
        try:
            with _lock(path):  # a killed process has left it: now it goes
                pass
        except UsageError as error:
            other = path.name.removeprefix(f"{folder.name}.").removesuffix(".lock").replace("-of-", " of ")
            raise UsageError(
                what=f"part {other} is at work on '{folder.name}'",
                why=f"parts of another number than {part.replace('-of-', ' of ')} have tiles in common with it",
                fix=f"{error.fix}, or give the same number of parts",
            ) from error


@contextmanager
def _lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    try:
        lock = _locked(path, shared=shared)
    except OSError as error:
        raise disk_failed(f"'{path.name}'", error) from error
    try:
        yield
    finally:
        if not shared:  # others may hold it still
            with suppress(OSError):
                path.unlink()  # while it is held: who opened this file meanwhile finds that it is gone
        os.close(lock)


def _locked(path: Path, *, shared: bool) -> int:
    """The open lock file, held. Raises UsageError if another process or thread holds it."""
    while True:
        lock, made = _opened(path)
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            ours = _is_there(lock, path)  # else its holder has removed it since it was opened
        except OSError as error:  # held, or a file system (some NFS) without locks
            ours = (made or shared) and error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
            if not ours:
                owner = os.pread(lock, 200, 0).decode(errors="replace").split("\n")[0]
                os.close(lock)
                raise _in_use(path, owner, held=error.errno in (errno.EWOULDBLOCK, errno.EACCES)) from error
        if ours:
            with suppress(OSError):  # for messages only
                text = f"{socket.gethostname()} {os.getpid()} {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
                os.ftruncate(lock, 0)
                os.pwrite(lock, text.encode(), 0)
            return lock
        os.close(lock)


def _opened(path: Path) -> tuple[int, bool]:
    """The lock file, and whether this call made it."""
    while True:
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):  # removed in between
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW), False


def _is_there(lock: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _in_use(path: Path, owner: str, *, held: bool) -> UsageError:
    """owner: 'HOST PROCESS DATE TIME', as the lock file says, of the last to come; held: the system says so."""
    host, process, since = (*owner.split(" ", 2), "", "", "")[:3]
    name = path.name.removesuffix(".lock")
    if held:
        who = f"last come: process {process} on {host}, since {since}" if since else "unknown"
        return UsageError(
            what=f"another run ({who}) is at work on '{name}'", why="two would spoil each other", fix="wait for it"
        )
    if host == socket.gethostname() and process.isdecimal() and not _lives(int(process)):
        return UsageError(
            what=f"'{path.name}' was left by a run that no longer lives (process {process})",
            why="this file system has no locks, so nothing else tells whether the work folder is in use",
            fix=f"remove '{path.name}' and run again",
        )
    who = f"process {process} on {host}, since {since}" if since else "unknown"
    return UsageError(
        what=f"another run ({who}) is at work on '{name}'",
        why="two would spoil each other",
        fix=f"wait for it, or remove '{path.name}' if no such run exists",
    )


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # alive, and someone else's
    return True
