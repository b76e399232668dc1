"""Fine images to learn from: any folder of volumes or rasters, copied once into zarr that patches are read from.

A part of them, chosen by a hash of their names, is held out to judge the training by.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pipelines import formats, labels
from pipelines.calibration import window_samples
from pipelines.errors import InputError, TruescaleError
from pipelines.grid import Box
from pipelines.image import SLAB_SAMPLES, Source
from pipelines.training.config import TrainingConfig
from pipelines.workspace import disk_failed

if TYPE_CHECKING:
    import zarr

log = logging.getLogger(__name__)

LAYOUT = "1"
"""Of the copies: another one makes them again."""

CHUNK = {2: 128, 3: 32}
"""Samples per axis of a chunk: a patch touches few, and few samples more than its own are read."""

KEPT_CHUNKS = 2048
"""That each reader keeps in memory, at most 268 MB: patches lie close together, and small data are read once."""

QUANTILES = 257
"""Of the samples of a channel: what a change of contrast does to its median and range is read from them."""

COUNTED = 1 << 20
"""About so many samples say what the quantiles are."""

EQUALLY_FINE = 1.3
"""Axes with a spacing up to this times the least are fine enough to be a truth."""

FEW_VALUES = 64
"""Channels with so many different values or fewer are looked at for labels."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A fine image in zarr, (channel, *shape) float32, NaN = invalid. name: its path in the folder.

    group: what is split as one: the file or subfolder of the folder that it comes from; channels: that are images;
    labels: that hold classes; fine_axes: those that a truth may have along the refined axis; magnitude: of MR;
    quantiles: per channel of both.
    """

    name: str
    group: str
    path: str
    shape: tuple[int, ...]
    channels: tuple[int, ...]
    labels: tuple[int, ...]
    fine_axes: tuple[int, ...]
    magnitude: bool
    quantiles: dict[int, tuple[float, ...]]

    @property
    def weight(self) -> float:
        """Of being drawn: large images have more to tell, but each is one place or person."""
        return math.sqrt(math.prod(self.shape))

    def read(self, channel: int, start: Sequence[int], shape: Sequence[int]) -> NDArray[np.float32]:
        """Samples of a box of one channel, in its own units."""
        side = [min(CHUNK[len(shape)], n) for n in self.shape]
        made = np.empty(tuple(shape), np.float32)
        ranges = [range(a // c, (a + n - 1) // c + 1) for a, n, c in zip(start, shape, side, strict=True)]
        for index in product(*ranges):
            chunk = _chunk(self.path, channel, index)
            low = [max(a, k * c) for a, k, c in zip(start, index, side, strict=True)]
            high = [min(a + n, k * c + m) for a, n, k, c, m in zip(start, shape, index, side, chunk.shape, strict=True)]
            here = tuple(slice(x - a, y - a) for x, y, a in zip(low, high, start, strict=True))
            there = tuple(slice(x - k * c, y - k * c) for x, y, k, c in zip(low, high, index, side, strict=True))
            made[here] = chunk[there]
        return made


@lru_cache(maxsize=64)
def _opened(path: str) -> zarr.Array[Any]:
    import zarr

    return zarr.open_array(path, mode="r")


@lru_cache(maxsize=KEPT_CHUNKS)
def _chunk(path: str, channel: int, index: tuple[int, ...]) -> NDArray[np.float32]:
    array = _opened(path)
    box = tuple(slice(k * c, (k + 1) * c) for k, c in zip(index, array.chunks[1:], strict=True))
    found = np.asarray(array[(slice(channel, channel + 1), *box)], np.float32)
    return found.reshape(found.shape[1:])


@dataclass(frozen=True, slots=True)
class Scenes:
    """What a training learns from and what it is judged by; left_out: name and reason of what it cannot use."""

    train: tuple[Scene, ...]
    held_out: tuple[Scene, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def told(self) -> str:
        """One line for the log and the card. It names no file: names can be those of patients."""
        text = f"{len(self.train)} images for training, {len(self.held_out)} held out by the sha256 of their names"
        return f"{text}, {len(self.left_out)} of no use" if self.left_out else text


def scenes_of(
    config: TrainingConfig, data: Path, cache: Path, progress: Callable[[str, int, int], None] | None = None
) -> Scenes:
    """The images of a folder that hold a patch, copied into `cache` unless they are there.

    data: the folder of all data, of which config.data is a part, or a folder of one's own. Raises InputError if none
    is left, with the first reason, and StoreError for a full disk.
    """
    folder = data / config.data if (data / config.data).is_dir() else data
    found = list(images(folder, config.kind))
    kept: list[Scene] = []
    left_out: list[tuple[str, str]] = []
    for number, path in enumerate(found):
        if progress:
            progress("copy", number, len(found))
        name = str(path.relative_to(folder)) if path != folder else path.name
        if set(config.hold_out) & {Path(name).parts[0], path.name, path.name.split(".")[0]}:
            continue
        try:
            scene = copied(path, name, config.kind, cache)
            _refuse_small(scene, config)
            if not (scene.channels or config.augment.synthetic):
                raise InputError(
                    what="an image is a label map",
                    why="it is no truth",
                    fix="give augment: {synthetic: SHARE} to learn from contrasts made of it",
                )
        except TruescaleError as error:
            if not isinstance(error, InputError):
                raise
            left_out.append((name, str(error)))
            log.info("an image is left out: %s", error)
            continue
        kept.append(scene)
    if progress and found:
        progress("copy", len(found), len(found))
    if not kept:
        raise _nothing(folder, config, len(found), left_out)
    return _split(kept, left_out, config.held_out_share)


def _nothing(folder: Path, config: TrainingConfig, found: int, left_out: Sequence[tuple[str, str]]) -> InputError:
    if not found:
        what = "NIfTI files, DICOM series or zarr" if config.kind == "volumes" else "GeoTIFFs or other rasters"
        return InputError(
            what=f"no training data found: '{folder.name}' holds no {config.kind}",
            why=f"a network of {len(config.scale)} axes learns from {what}",
            fix="name a folder of them with --data",
        )
    reason = left_out[0][1] if left_out else "all of them are held out by name"
    return InputError(what=f"none of the {found} images in '{folder.name}' can be learned from", why=reason)


def images(folder: Path, kind: str) -> Iterator[Path]:
    """Paths of all that may be an image below a folder, or itself, in the order of their names."""
    wanted = {"volumes": ("nifti",), "rasters": ("raster",)}[kind]
    for here, inner, files in os.walk(folder):
        path = Path(here)
        inner[:] = sorted(n for n in inner if not n.startswith("."))
        if "zarr.json" in files:
            inner.clear()
            yield path
            continue
        series = False
        for name in sorted(n for n in files if not n.startswith(".")):
            found = _kind(path / name)
            series = series or found == "dicom"
            if found in wanted:
                yield path / name
        if series and kind == "volumes":
            yield path


def _kind(path: Path) -> str:
    try:
        return formats.kind_of(path)
    except InputError:
        return ""


def copied(path: Path, name: str, kind: str, cache: Path) -> Scene:
    """The scene of an image. Raises InputError for what cannot be learned from, StoreError for a full disk."""
    with formats.open_source(path) as source:
        header, axes = source.header, {"volumes": 3, "rasters": 2}[kind]
        if header.grid.ndim != axes:
            raise InputError(what=f"an image has {header.grid.ndim} axes", why=f"{kind} have {axes}")
        stem = hashlib.sha256(f"{LAYOUT} {source.identity} {header.grid.shape}".encode()).hexdigest()[:24]
        target = cache / f"{stem}.zarr"
        if not target.is_dir():
            _copy(source, target)
        attributes = cast(dict[str, Any], dict(_opened(str(target)).attrs))
        quantiles = {int(c): tuple(q) for c, q in attributes["quantiles"].items()}
        classes = tuple(c for c in quantiles if c in attributes["labels"])
        spacing = np.array(header.grid.spacing)
        scene = Scene(
            name=name,
            group=Path(name).parts[0],
            path=str(target),
            shape=header.grid.shape,
            channels=tuple(c for c in quantiles if c not in classes),
            labels=classes,
            fine_axes=tuple(int(a) for a in np.flatnonzero(spacing <= EQUALLY_FINE * spacing.min())),
            magnitude=header.modality == "MR" and all(q[0] >= 0 for q in quantiles.values()),
            quantiles=quantiles,
        )
    if not scene.quantiles:
        raise InputError(what="an image has no channel with contrast and valid samples")
    return scene


def _copy(source: Source, target: Path) -> None:
    """Write a source's samples; complete or not there."""
    import zarr

    header = source.header
    count, shape = len(header.channels), header.grid.shape
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        array = zarr.create_array(
            store=str(temporary),
            shape=(count, *shape),
            chunks=(1, *(min(CHUNK[len(shape)], n) for n in shape)),
            dtype="float32",
            compressors=None,  # a few MB read again and again: quicker than small
        )
        step = max(1, count * int(np.prod(shape)) // COUNTED)
        looked: list[list[NDArray[np.float32]]] = [[] for _ in range(count)]
        for block in source.blocks(max(1, SLAB_SAMPLES // count)):
            values = source.read(block).astype(np.float32)
            array[(slice(None), *block.slices)] = np.where(np.isfinite(values), values, np.float32(np.nan))
            for c in range(count):
                looked[c].append(values[c].ravel()[:: max(1, step // count)])
        array.attrs.update(_statistics(source, [np.concatenate(v) for v in looked]))
        temporary.rename(target)
    except OSError as error:
        if target.is_dir():  # another process was quicker
            return
        raise disk_failed("the folder of copies", error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _statistics(source: Source, looked: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """Quantiles per channel with contrast, and which of them are labels."""
    quantiles, classes = {}, []
    for c, (channel, values) in enumerate(zip(source.header.channels, looked, strict=True)):
        known = values[np.isfinite(values)].astype(np.float64)
        if channel.kind == "alpha" or known.size == 0 or np.ptp(known) == 0:
            continue
        found = np.quantile(known, np.linspace(0, 1, QUANTILES))
        if channel.kind == "classes" or _labels(source, c, known):
            classes.append(c)
        elif found[-3] <= found[2]:
            continue  # nearly constant: the range that values are divided by would be that of a few
        quantiles[str(c)] = [float(q) for q in found]
    return {"quantiles": quantiles, "labels": classes}


def _labels(source: Source, channel: int, known: NDArray[np.float64]) -> bool:
    """Whether the samples of a channel lie like labels."""
    if len(np.unique(known)) > FEW_VALUES:
        return False
    shape = source.header.grid.shape

    def read(box: Box) -> labels.Samples:
        values = source.read(box)[channel].astype(np.float64)
        return values, np.isfinite(values)

    windows, valid = window_samples(shape, read)
    return labels.look((windows, valid), shape, read).labels


def placed(scene: Scene, config: TrainingConfig) -> list[tuple[int, ...]]:
    """Orders of the scene's axes, the network's first axis first, in which it holds a patch."""
    axes, fine = len(config.scale), config.fine_patch
    orders = [tuple(range(axes))]
    if axes == 3 and config.scale[0] > config.scale[1] == config.scale[2]:  # a network for the slices of any axis
        orders = [(a, *(b for b in range(3) if b != a)) for a in scene.fine_axes]
    return [order for order in orders if all(scene.shape[a] >= n for a, n in zip(order, fine, strict=True))]


def _refuse_small(scene: Scene, config: TrainingConfig) -> None:
    if placed(scene, config):
        return
    fits = [min(p, n // s) for p, n, s in zip(config.patch, scene.shape, config.scale, strict=True)]
    raise InputError(
        what=f"an image has {_text(scene.shape)} samples and a patch {_text(config.fine_patch)}",
        why=f"a patch is {_text(config.patch)} coarse samples at {_text(config.scale)}",
        fix=f"give extent: {fits}, or finer images",
    )


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def hashed(name: str) -> float:
    """A number from 0 to 1 that the name alone decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _split(kept: Sequence[Scene], left_out: Sequence[tuple[str, str]], share: float) -> Scenes:
    """By group, so that no place or person is on both sides; at least one group on each, if there are two."""
    groups = sorted({scene.group for scene in kept}, key=hashed)
    count = sum(hashed(group) < share for group in groups)
    if share > 0 and len(groups) > 1:
        count = min(max(count, 1), len(groups) - 1)
    out = set(groups[:count])
    train = tuple(scene for scene in kept if scene.group not in out)
    return Scenes(train, tuple(scene for scene in kept if scene.group in out), tuple(left_out))


def plain(scenes: Scenes) -> dict[str, Any]:
    """Names of both sides and of what is left out, for a file beside the checkpoints."""
    return {
        "train": [scene.name for scene in scenes.train],
        "held_out": [scene.name for scene in scenes.held_out],
        "left_out": [{"name": name, "why": why} for name, why in scenes.left_out],
    }
