"""Which part of a finer image can guide, and whether it can: from headers alone."""

from __future__ import annotations

import math
from fractions import Fraction

from pipelines.errors import GeometryError, InputError, UsageError
from pipelines.grid import Box, Grid, Orientation, Placement, placements
from pipelines.image import Header
from pipelines.planning import GuidePlan

OPEN = Fraction(1)
"""Coarse samples at a side of the input that a guide need not cover: grids of sensors are shifted by parts of one."""


def guided(header: Header, guide: Header, identity: str) -> tuple[Grid, GuidePlan]:
    """(the guide's grid, cut to the field of view of the input; what is used of the guide).

    Raises InputError and UsageError, each saying why this image cannot guide that one.
    """
    channels = tuple(c for c, channel in enumerate(guide.channels) if channel.kind == "image")
    if header.grid.ndim != 2 or guide.grid.ndim != 2:
        raise UsageError(what="only rasters can be guided", why="volumes have no bands", fix="leave out --guide")
    if not channels:
        raise InputError(what="the guide holds no image, only classes", fix="give one with bands that are images")
    try:
        turned = Orientation.onto(guide.grid, header.grid).turns
        places = () if turned else placements(header.grid, guide.grid)
    except GeometryError as error:
        raise UsageError(f"the guide does not fit: {error.what}", error.why, "reproject the guide first") from error
    if turned:
        raise UsageError(
            what="the guide is flipped or turned against the input",
            why="its detail is added along the input's axes",
            fix="turn the guide onto the input's axes first",
        )
    if any(place.scale <= 1 for place in places):
        raise UsageError(
            what=f"the guide is no finer than the input ({_sizes(guide.grid)}, the input {_sizes(header.grid)})",
            why="it holds no detail that the input lacks",
            fix="give a finer image of the same place",
        )
    ranges = [_inside(place) for place in places]
    if any(stop - start < 2 for start, stop in ranges):
        raise UsageError(what="the guide and the input do not overlap", fix="give a guide of the same place")
    if any(_lacking(place) for place in places):
        raise InputError(
            what="the guide covers only a part of the input",
            why="the rest would have no detail to take",
            fix="cut the input to the guide's field of view first",
        )
    box = Box(tuple(start for start, _ in ranges), tuple(stop for _, stop in ranges))
    return guide.grid.crop(box), GuidePlan(identity, channels, box.start)


def _sizes(grid: Grid) -> str:
    return " x ".join(f"{s:.4g}" for s in grid.spacing)


def _inside(place: Placement) -> tuple[int, int]:
    """Fine samples whose centres lie within the faces of the coarse ones."""
    half = Fraction(1, 2)
    low = place.first - half * place.scale
    high = place.first + (place.coarse - half) * place.scale
    start = max(0, math.floor(low) + 1)
    return start, max(start, min(place.fine, math.ceil(high)))


def _lacking(place: Placement) -> bool:
    """Whether more than OPEN of the coarse samples at a side lie beyond the guide."""
    half = Fraction(1, 2)
    low = (-half - (place.first - half * place.scale)) / place.scale
    high = (place.first + (place.coarse - half) * place.scale - (place.fine - half)) / place.scale
    return max(low, high) > OPEN
