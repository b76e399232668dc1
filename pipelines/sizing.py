"""Tiles: how large they may be, what they read, and what memory a run with them needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipelines.card import ModelCard
from pipelines.errors import BudgetError
from pipelines.image import SLAB_SAMPLES
from pipelines.interpolation import PREFILTER_REACH
from pipelines.planning import Plan, cover, solved
from pipelines.request import bytes_text

PROCESS_BYTES = {"floor": 130_000_000, "network": 490_000_000}
"""The program alone, without and with torch (measured with its build for CPUs)."""

SLAB_BYTES = 24
"""Peak bytes per sample of a slab that is ingested, exported or verified (measured)."""

FILE_BYTES = 105_000_000
"""What the libraries of file formats keep, GDAL's cache first (measured with products of 4 x 10000^2)."""

WINDOWS_SAMPLES = 1_250_000
"""Samples of the windows of calibration, at most."""

CALIBRATE_BYTES = (25_000_000, 30)
"""The patches that noise is read from and the blocks that labels are looked for in; and per sample of the windows."""

HEAP_SLACK = {"floor": 1.3, "network": 1.2}
"""What lies unused between what is used."""

FRAGMENTED = 1.54
"""The same between the features of a network, in a heap that is kept, beyond HEAP_SLACK (measured)."""

BYTES_PER_ESTIMATE = {1: 10, 2: 17, 3: 18}
"""Peak bytes per fine sample of interpolating and projecting a channel along so many axes (float64; measured)."""

BYTES_PER_ROW = 44
"""The same per coarse sample that the projection solves for."""

SPECTRA_BYTES = 128_000_000
"""Memory for eigenvectors of the projection that are kept for later tiles."""

SPREAD_FROM = 16
"""Bands (of about SLAB_SAMPLES) of an image from which other processes help to read and write it.

With fewer, opening it there takes longer than it saves (measured with two processes: 16 bands of a compressed GeoTIFF
take as long, four times as many a third less).
"""

FULL_DEPTH = 96
"""Volumes with at most this many coarse samples on the slice axis are not cut along it."""

TILES = {
    2: ((2048, 2048), (1024, 1024), (512, 512), (256, 256)),
    3: ((256, 192, 192), (256, 128, 128), (128, 96, 96), (64, 64, 64), (32, 32, 32)),
}
"""Shards tried per number of axes, in fine samples: the largest that fits the budget wins, the first of networks only.

What a tile computes beyond its own samples costs a network's time; an interpolation is quick and rather has many tiles.
"""

ALONE: dict[str, Any] = {"workers": 1, "threads": 1, "writers": 1, "readers": 1}
"""The fewest of each that a run needs; what memory is left goes to more of them, in this order."""

CHUNK = {2: 256, 3: 32}
"""Side of the inner chunks of a shard of fine samples."""


def fitted(plan: Plan, card: ModelCard) -> Plan:
    """The plan with the largest tile that fits the budget with one worker, then with as many workers as fit.

    The tile decides the bytes of a network's product in the last digits, so the workers must not decide the tile.
    """
    needed = {}
    for tile in TILES[plan.fine.ndim][0 if card.network else 1 :]:
        shard = tuple(_shard_side(plan, a, side) for a, side in enumerate(tile))
        needed[shard] = predicted_bytes(replace(plan, **ALONE), card, shard)
        if needed[shard] <= plan.memory_bytes:
            return staffed(plan, card, shard)
    least = min(needed.values())
    raise BudgetError(
        what=f"the smallest tile needs {bytes_text(least)}, the budget is {bytes_text(plan.memory_bytes)}",
        why="nothing can be made in less",
        fix=f"give --memory {math.ceil(least / 1e7) / 100:g}GB",
    )


def continued(plan: Plan, before: Plan) -> Plan:
    """The plan with the tiles of the run it continues, and as many of its workers as fit the budget with them."""
    if plan.shard == before.shard or len(plan.shard) != len(before.shard):
        return plan
    made = staffed(plan, plan.card, before.shard)
    if made.predicted_bytes <= made.memory_bytes:
        return made
    text = f"the tiles of the run that is resumed need {bytes_text(made.predicted_bytes)}, more than the budget"
    return replace(made, warnings=(*made.warnings, text))


def staffed(plan: Plan, card: ModelCard, shard: tuple[int, ...]) -> Plan:
    """The plan with these tiles, and as many of the threads and processes asked for as fit the budget."""
    staff, warnings = dict(ALONE), plan.warnings
    for name in staff:
        asked = getattr(plan, name)
        for number in range(asked, 0, -1):
            staff[name] = number
            if predicted_bytes(replace(plan, **staff), card, shard) <= plan.memory_bytes:
                break
        if staff[name] < asked and name != "threads":
            text = f"{staff[name]} of {asked} {name} fit the memory budget; raise --memory for more"
            warnings = (*warnings, text)
    made = replace(plan, shard=shard, warnings=warnings, **staff)
    return replace(made, predicted_bytes=predicted_bytes(made, card, shard))


def _shard_side(plan: Plan, axis: int, side: int) -> int:
    chunk = CHUNK[plan.fine.ndim]
    if axis == plan.slice_axis and plan.coarse.shape[axis] <= FULL_DEPTH:
        side = plan.fine.shape[axis]  # halos would cost more than the whole stack
    length = plan.fine.shape[axis]
    count = math.ceil(length / side)  # shards of one size: no thin one at the end, all halo
    return math.ceil(length / count / chunk) * chunk


def predicted_bytes(plan: Plan, card: ModelCard, shard: Sequence[int]) -> int:
    """Upper bound of the resident memory of a run with tiles of `shard` fine samples, all its processes together."""
    files = int(HEAP_SLACK["floor"] * _file_bytes(plan))
    alone = PROCESS_BYTES["network" if card.network else "floor"] + files
    process = process_bytes(plan, card, shard)
    if plan.workers == 1:
        return max(process, alone)
    samples = len(plan.channels) * max(math.prod(plan.coarse.shape), math.prod(plan.fine.shape))
    if samples >= SPREAD_FROM * SLAB_SAMPLES:  # each may also read and write bands of images
        process = max(process, alone)
    return PROCESS_BYTES["floor"] + files + plan.workers * process


def process_bytes(plan: Plan, card: ModelCard, shard: Sequence[int]) -> int:
    """The same of one process that makes tiles."""
    pieces = [span.pieces() for span in cover(plan, card, shard).spans]
    read, _, estimate = (_largest(pieces, box) for box in range(3))
    parts = [
        replace(span, shard=min(span.shard, side)).pieces()
        for span, side in zip(solved(plan).spans, shard, strict=True)
    ]
    channels, axes = len(plan.channels), max(1, sum(place.changed for place in plan.places))
    item = plan.working.itemsize
    projection = _largest(parts, 2) * BYTES_PER_ESTIMATE[axes] + _largest(parts, 1) * BYTES_PER_ROW
    tile = projection
    if card.network:  # its samples, normalised in float64, then its features; its residuals stay for the projection
        features = 0.0 if plan.device == "cuda" else card.bytes_per_sample * read + card.bytes_fixed
        features = max((8 + item) * channels * read, FRAGMENTED * features)
        mirrored = 4 * channels * (read + 2 * estimate) if plan.ensemble else 0  # turned, made, and the sum
        tile = 4 * channels * estimate + max(4 * channels * read + mirrored + int(features), projection)
        if plan.guide is not None:  # as it is read and over its range, on both grids, each with its halo
            tile += 3 * item * len(plan.guide.channels) * (2 * estimate + read)
    inside = min(read, math.prod(plan.coarse.shape))
    made = math.prod(min(n, side) for n, side in zip(plan.fine.shape, shard, strict=True))
    tiles = math.prod(len(axis) for axis in pieces)
    at_once = min(plan.threads, tiles)
    # windows: in work and in the hands of readers; shards: the same, of writers
    windows = channels * inside * (item + 1) * min(at_once * (1 + plan.readers), tiles)
    shards = channels * made * item * min(at_once * (1 + plan.writers), tiles)
    used = _matrix_bytes(plan) + _spectra_bytes(plan, parts) + at_once * tile + windows + shards
    kind = "network" if card.network else "floor"
    return PROCESS_BYTES[kind] + int(HEAP_SLACK[kind] * used)


def _largest(pieces: Sequence[Sequence[tuple[tuple[int, int], ...]]], box: int) -> int:
    """Samples of the largest read (0), rows (1) or estimate (2) box."""
    return math.prod(max(p[box][1] - p[box][0] for p in axis) for axis in pieces)


def _file_bytes(plan: Plan) -> int:
    """The largest of what ingest, calibration, export and verification hold: one after the other."""
    channels = len(plan.channels)
    coarse, fine = plan.coarse.shape, plan.fine.shape
    thinnest = math.prod(fine[1:]) * math.ceil(fine[0] / coarse[0])  # fine samples of one coarse row or slice
    slab = min(max(SLAB_SAMPLES, thinnest * channels), math.prod(fine) * channels)
    windows = min(math.prod(coarse), WINDOWS_SAMPLES)
    calibrated = CALIBRATE_BYTES[0] + CALIBRATE_BYTES[1] * windows + 5 * channels * windows
    return max(slab * SLAB_BYTES + min(FILE_BYTES, plan.output_bytes), calibrated)


def _matrix_bytes(plan: Plan) -> int:
    """Matrices of whole axes: the spline's, and one per blur, with what it takes to build them."""
    blurs = len({channel.spec for channel in plan.channels})
    changed = [place for place in plan.places if place.changed]
    spline = sum(place.fine * (2 * PREFILTER_REACH) for place in changed)
    blur = max((plan.degradation(0).support[a] for a, p in enumerate(plan.places) if p.changed), default=0)
    rows = sum(place.coarse * math.ceil(2 * blur * place.scale) for place in changed)
    return 12 * (3 * spline + (blurs + 3) * rows)


def _spectra_bytes(plan: Plan, parts: Sequence[Sequence[tuple[tuple[int, int], ...]]]) -> int:
    """Eigenvectors of all parts, at most those that are kept, and room to compute the largest."""
    blurs = {channel.spec for channel in plan.channels if channel.project}
    changed = [
        {(rows[1] - rows[0], rows[0] * place.scale - fine[0], fine[1] - fine[0]) for _, rows, fine, _ in axis}
        for axis, place in zip(parts, plan.places, strict=True)
        if place.changed
    ]
    if not blurs or not changed:
        return 0
    every = len(blurs) * sum(8 * n * n for axis in changed for n, *_ in axis)
    return min(SPECTRA_BYTES, every) + 4 * 8 * max(n for axis in changed for n, *_ in axis) ** 2
