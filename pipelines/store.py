"""The work folder: coarse and fine samples as sharded, checksummed zarr v3, and the ledger of finished tiles.

    WORK/plan.json  calibration.json  coarse.zarr/{samples, valid}  fine.zarr/samples  ledger/<writer>.jsonl

Arrays are (c, *axes). One shard of `fine.zarr/samples` is one tile and has one writer; it is complete if the ledger has
a record with this run's hash and the shard file has that record's checksum. Anything else is missing and is done again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pipelines import shards
from pipelines.errors import StoppedError, StoreError
from pipelines.shards import CLEVEL, CNAME

if TYPE_CHECKING:
    import zarr

OWN_FOLDERS = ("coarse.zarr", "guide.zarr", "lowered.zarr", "fine.zarr", "ledger")
OWN_FILES = ("ingest.json", "calibration.json", "guide.json", "stop", "plan.json", "exported.json", "job.json")
"""What a run writes in its work folder, in the order in which it goes: what says that folders are whole first, and last
what says that the product is in its place and whose run it was."""

BEGUN = ".begun"
"""Folder in a group of what is not whole yet: a folder for every attempt, with one for every process in it."""

ALIVE = "alive"
"""File in the folder of an attempt that has not ended."""

COARSE_CHUNK = {2: (512, 512), 3: (32, 64, 64)}
"""Chunks of the ingested samples per number of axes: small enough to read a tile's halo, large enough to be quick."""


@dataclass(frozen=True, slots=True)
class Record:
    """One finished or failed tile. checksum: CRC-32C of the shard; before: what the projection met in each channel.

    (Sum of squares, count and maximum of the residual.) threads: cores that the seconds of the network were spent on.
    """

    tile: int
    run: str
    checksum: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    before: tuple[tuple[float, int, float], ...] = ()
    threads: int = 1
    error: str = ""


class Store:
    """Open work folder. Opening creates what is missing; arrays are created by `allocate`."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @property
    def coarse(self) -> Path:
        """The ingested input (an image that `truescale` reads again)."""
        return self.folder / "coarse.zarr"

    @property
    def guide(self) -> Path:
        """A guide's samples on the product's grid."""
        return self.folder / "guide.zarr"

    @property
    def lowered(self) -> Path:
        """The same on the input's grid, as its sensor would have measured them."""
        return self.folder / "lowered.zarr"

    @property
    def fine(self) -> Path:
        """The group of the fine samples."""
        return self.folder / "fine.zarr"

    @property
    def stop(self) -> Path:
        """A file that is there once the run is to stop: its workers may be anywhere."""
        return self.folder / "stop"

    def remove(self) -> None:
        """Remove what a run has written here, and the folder if nothing else is in it."""
        for name in OWN_FILES[:2]:  # a kill in the middle leaves a run that begins again, or whose product is there
            (self.folder / name).unlink(missing_ok=True)
        for name in OWN_FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in OWN_FILES[2:]:
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.absolute() != Path.cwd():  # nobody's ground is taken away
            with suppress(OSError):
                self.folder.rmdir()

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Write NAME whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / name, json.dumps(data, indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What `write_json` wrote, None if there is nothing."""
        try:
            data = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError(
                what=f"{name} in the work folder is damaged", fix="remove the work folder and start again"
            ) from error
        return dict(data)

    def create_fine(
        self, shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int], dtype: np.dtype[np.floating]
    ) -> None:
        """A new, empty fine array (c, *axes), replacing an old one; chunks and shards are per spatial axis."""
        create_array(self.fine, "samples", shape, dtype.name, (1, *chunks), (shape[0], *shards))

    def array(self, group: Path, name: str = "samples") -> zarr.Array[Any]:
        """An existing array. Raises StoreError if it is not there."""
        import zarr

        try:
            return zarr.open_array(str(group / name), mode="r+")
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise StoreError(
                what=f"the work folder has no {group.name}/{name}", fix="remove the work folder and start again"
            ) from error

    def has_mask(self) -> bool:
        """Whether some coarse samples are invalid."""
        return (self.coarse / "valid" / "zarr.json").exists()

    def write_shard(self, array: zarr.Array[Any], values: NDArray[np.floating], position: Sequence[int]) -> int:
        """Write one whole shard (c, *box) and return the CRC-32C of its file. Raises StoreError on a full disk."""
        path = self.shard_path(position)
        assert array.shards is not None
        try:
            return shards.write(path, shards.encode(values, array.chunks, array.shards))
        except OSError as error:
            raise StoreError(
                what=f"a tile could not be written ({error.strerror})",
                why="the work folder needs the space that the plan names",
                fix="free the space and run again with --resume",
            ) from error

    def shard_path(self, position: Sequence[int]) -> Path:
        """File of the shard at `position` of the fine array."""
        return self.fine.joinpath("samples", "c", "0", *(str(p) for p in position))


@contextmanager
def attempt(group: Path) -> Iterator[str]:
    """The name of one attempt to write chunks of a group; nobody may write for it once it has ended."""
    name = uuid4().hex
    folder = group / BEGUN / name
    folder.mkdir(parents=True)
    (folder / ALIVE).touch()
    try:
        yield name
    finally:
        shutil.rmtree(group / BEGUN, ignore_errors=True)


@contextmanager
def own_chunks(group: Path, of: str) -> Iterator[Callable[[str], zarr.Array[Any]]]:
    """Gives arrays like those of a group, by name, whose chunks are moved there once all is written.

    So a process that was taken for lost, and still writes, changes nothing of what another has written for it. of: the
    attempt. Raises StoppedError once that has ended: the folder may be another run's by then.
    """
    import zarr

    folder, opened = group / BEGUN / of / uuid4().hex, {}

    def check() -> None:
        if not (group / BEGUN / of / ALIVE).exists():
            raise StoppedError(what="the attempt that this was written for has ended")

    def begun(name: str) -> zarr.Array[Any]:
        check()
        if name not in opened:
            (folder / name).mkdir(parents=True)
            shutil.copyfile(group / name / "zarr.json", folder / name / "zarr.json")
            opened[name] = zarr.open_array(str(folder / name), mode="r+")
        return opened[name]

    try:
        yield begun
        for name in opened:
            for file in (folder / name / "c").rglob("*"):
                if file.is_file():
                    place = group / file.relative_to(folder)
                    check()
                    place.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a small file whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def create_array(
    group: Path,
    name: str,
    shape: Sequence[int],
    dtype: str,
    chunks: Sequence[int],
    shard: Sequence[int] | None,
    fill: bool = False,
) -> zarr.Array[Any]:
    """A zarr v3 array with blosc (lz4, bitshuffle) and a checksum per chunk."""
    import zarr
    from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

    compressors = (BloscCodec(cname=CNAME, clevel=CLEVEL, shuffle=BloscShuffle.bitshuffle), Crc32cCodec())
    return zarr.create_array(
        str(group / name),
        shape=tuple(shape),
        dtype=dtype,
        chunks=tuple(chunks),
        shards=tuple(shard) if shard else None,
        compressors=compressors,
        fill_value=fill if dtype == "bool" else 0,
        overwrite=True,
    )


class Ledger:
    """Which tiles are done: one append-only JSON-lines file per writer, so that nobody shares a file."""

    def __init__(self, store: Store, run: str) -> None:
        self._folder = store.folder / "ledger"
        self._store, self._run = store, run
        self._begun = False

    def append(self, writer: str, record: Record) -> None:
        """Add a record, after its shard is on the disk. Raises StoreError on a full disk."""
        # the line before may be torn by a kill, and must not swallow this one
        line = "\n" * (not self._begun) + json.dumps({"written_ns": time.time_ns(), **asdict(record)})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"{writer}.jsonl").open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._begun = True
        except OSError as error:
            raise StoreError(
                what=f"the ledger could not be written ({error.strerror})",
                why="a tile counts as done once it stands there",
                fix="free the space and run again with --resume",
            ) from error

    def records(self) -> dict[int, Record]:
        """Latest record of every tile of this run; a torn last line is ignored."""
        found: list[tuple[int, Record]] = []  # when each was written: a resumed run may share tiles out differently
        for path in sorted(self._folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    data = json.loads(line)
                    written_ns = int(data.pop("written_ns", 0))
                    record = Record(
                        **{
                            **data,
                            "before": tuple(tuple(r) for r in data["before"]),
                        }
                    )
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                if record.run == self._run and not record.error:
                    found.append((written_ns, record))
        return {record.tile: record for _, record in sorted(found, key=lambda pair: pair[0])}

    def missing(self, tiles: Sequence[int], position: Callable[[int], tuple[int, ...]]) -> list[int]:
        """Those without a record of this run, or whose shard file is absent or differs from its checksum."""
        records = self.records()
        return [t for t in tiles if t not in records or not self._intact(position(t), records[t].checksum)]

    def _intact(self, position: tuple[int, ...], expected: int) -> bool:
        path = self._store.shard_path(position)
        return path.exists() and shards.checksum(path) == expected
