"""Where samples are: Box, Factor, Frame and Grid. Pure values in float64 and exact fractions; no pixels.

An integer index is the *centre* of a sample. Every tuple is in array order, slowest axis first. The rule for
changing the spacing is section "Grids" of the forward model: both grids share the centre of the field of view.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import GeometryError, UsageError

SPACING_DIGITS = 6
"""Significant digits kept of a stored spacing: NIfTI holds 5.2 as float32 5.199999809."""

SAME_PLACE = 1e-3
"""Two positions closer than this share of a sample are one: scanners write 3 to 6 decimals."""

ROUNDED = 1e-2
"""Lattices that part by no more than this share of a sample from end to end are one: files round their spacing."""

ROTATION_LIMIT_RAD = 1e-3
"""Axes that differ by more than this angle are not parallel."""


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open index ranges, one per axis: `start <= index < stop`."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """The box of a whole array."""
        return cls((0,) * len(shape), tuple(int(n) for n in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of samples per axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of samples."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The index expression that cuts this box out of an array."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def grow(self, margin: int | Sequence[int]) -> Box:
        """The box with `margin` samples more on both sides."""
        m = (margin,) * len(self.start) if isinstance(margin, int) else tuple(margin)
        return Box(
            tuple(a - k for a, k in zip(self.start, m, strict=True)),
            tuple(b + k for b, k in zip(self.stop, m, strict=True)),
        )

    def clip(self, shape: Sequence[int]) -> Box:
        """The part that lies inside an array of `shape`."""
        return self.intersection(Box.whole(shape))

    def intersection(self, other: Box) -> Box:
        """The common part; empty axes have stop == start."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def within(self, outer: Box) -> Box:
        """The same box with indices counted from the start of `outer`."""
        return Box(
            tuple(a - o for a, o in zip(self.start, outer.start, strict=True)),
            tuple(b - o for b, o in zip(self.stop, outer.start, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Factor:
    """Scale per axis, exact: coarse spacing over fine spacing, each >= 1. Whole numbers become fractions."""

    axes: tuple[Fraction, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(Fraction(f) for f in self.axes))
        if any(f < 1 for f in self.axes):
            raise GeometryError(
                what=f"a scale of {self} makes an axis coarser",
                why="super-resolution only adds samples",
                fix="ask for a scale of at least 1 on every axis",
            )

    def __iter__(self) -> Iterator[Fraction]:
        return iter(self.axes)

    def __str__(self) -> str:
        return "x".join(f"{float(f):.6g}" for f in self.axes)

    @property
    def changed(self) -> tuple[int, ...]:
        """Numbers of the axes whose scale is not 1."""
        return tuple(a for a, f in enumerate(self.axes) if f != 1)


@dataclass(frozen=True, slots=True)
class Frame:
    """What world coordinates mean. Compared, never parsed: two frames are never the same place.

    unit: 'mm', 'm', 'degree', 'pixel'...; kind: 'patient' (LPS), 'map' or 'none'; id: a UID or a CRS text.
    """

    unit: str = "mm"
    kind: str = "none"
    id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A regular, possibly oblique or sheared grid of samples.

    axes: one letter per axis, 'zyx' or 'yx'; shape: samples per axis; affine: (d + 1, d + 1), float64, takes an
    index in array order (centres) to world coordinates. Raises GeometryError unless invertible and finite.
    """

    axes: str
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    frame: Frame = Frame()

    def __post_init__(self) -> None:
        d = len(self.axes)
        affine = np.array(self.affine, np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if affine.shape != (d + 1, d + 1) or len(self.shape) != d or min(self.shape) < 1:
            raise GeometryError(
                what=f"a grid of shape {self.shape} with an affine of shape {affine.shape} is not {d}-dimensional",
                why="samples cannot be placed",
            )
        columns = np.linalg.norm(affine[:d, :d], axis=0)
        finite = bool(np.isfinite(affine).all()) and bool((columns > 0).all())
        if not finite or abs(np.linalg.det(affine[:d, :d] / columns)) < 1e-6:
            raise GeometryError(
                what="the affine of the input is zero, not finite or not invertible",
                why="its samples have no place in the world",
                fix="repair the header first",
            )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and (self.axes, self.shape, self.frame) == (other.axes, other.shape, other.frame)
            and bool(np.array_equal(self.affine, other.affine))
        )

    __hash__ = None  # type: ignore[assignment]  # a grid holds an array; nothing needs it as a key

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring centres along each axis, in the unit of the frame."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[: self.ndim, : self.ndim], axis=0))

    def world(self, index: NDArray[np.floating] | Sequence[float]) -> NDArray[np.float64]:
        """World coordinates (..., d) of indices (..., d) in array order."""
        i = np.asarray(index, np.float64)
        return np.asarray(i @ self.affine[:-1, :-1].T + self.affine[:-1, -1])

    def faces(self) -> NDArray[np.float64]:
        """World coordinates (2, d) of the two outermost corners: index -1/2 and shape - 1/2."""
        return self.world(np.array([[-0.5] * self.ndim, [n - 0.5 for n in self.shape]]))

    def rescaled(self, factor: Factor) -> Grid:
        """The finer grid over the same field of view: the centre stays, the edges too whenever M s is whole."""
        step = np.eye(self.ndim + 1)
        shape = []
        for a, (m, s) in enumerate(zip(self.shape, factor, strict=True)):
            n = fine_length(m, s)
            first = (Fraction(1, 2) - (n - m * s) / 2) / s - Fraction(1, 2)  # of fine sample 0, in coarse samples
            step[a, a], step[a, -1] = 1 / s, float(first)
            shape.append(n)
        return replace(self, shape=tuple(shape), affine=self.affine @ step)

    def crop(self, box: Box) -> Grid:
        """The grid of the samples in `box` (which may reach outside)."""
        step = np.eye(self.ndim + 1)
        step[:-1, -1] = box.start
        return replace(self, shape=box.shape, affine=self.affine @ step)

    def factor_to(self, spacing: Sequence[Fraction | None]) -> Factor:
        """The exact scale that gives each axis the spacing asked (None: leave the axis as it is)."""
        scales = []
        for own, asked in zip(self.spacing, spacing, strict=True):
            stored = decimal_fraction(own)
            if asked is not None and asked <= 0:
                raise GeometryError(what=f"a spacing of {float(asked):g} is not positive", fix="ask for one above 0")
            scales.append(Fraction(1) if asked is None else stored / asked)
        return Factor(tuple(scales))

    def same_place(self, other: Grid) -> bool:
        """Whether both grids put every sample at the same world position, in the same frame."""
        if (self.axes, self.shape, self.frame) != (other.axes, other.shape, other.frame):
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(self.ndim, -1).T
        distance = np.linalg.norm(self.world(corners) - other.world(corners), axis=1).max()
        return bool(distance <= SAME_PLACE * min(self.spacing))

    def joining(self, other: Grid) -> Grid:
        """This grid in the frame of `other`, if both are of a patient and one does not say in which frame it lies.

        Raises UsageError if both say it and lie in different ones.
        """
        if not self.frame.kind == other.frame.kind == "patient":
            return self
        if self.frame.id and other.frame.id and self.frame != other.frame:
            raise UsageError(
                what="the two images do not share a frame of reference",
                why="the patient may have moved between them, so equal coordinates are not one place",
                fix="give images of one session, or register and resample one onto the other first",
            )
        return replace(self, frame=other.frame)

    def anonymous(self) -> Grid:
        """This grid without the name of a patient's frame of reference, which leads to the study."""
        return replace(self, frame=replace(self.frame, id="")) if self.frame.kind == "patient" else self

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same grid back, bit for bit."""
        frame = {"unit": self.frame.unit, "kind": self.frame.kind, "id": self.frame.id}
        return {"axes": self.axes, "shape": list(self.shape), "affine": self.affine.tolist(), "frame": frame}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The grid that `to_json` wrote."""
        return cls(data["axes"], tuple(data["shape"]), np.array(data["affine"]), Frame(**data["frame"]))


@dataclass(frozen=True, slots=True)
class Orientation:
    """Turns an array onto other axes: its axis `a` becomes axis `order[a]` of the array, backwards if `flipped[a]`."""

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    @classmethod
    def onto(cls, grid: Grid, other: Grid) -> Self:
        """What turns arrays on `grid` onto the axes of `other`, as closely as axes can be matched.

        Raises GeometryError if the two grids have no world in common.
        """
        _require_one_frame(grid, other)
        step = np.linalg.solve(other.affine, grid.affine)[:-1, :-1]  # index of grid -> index of other
        share = np.abs(step) / np.linalg.norm(step, axis=0)
        order = max(permutations(range(grid.ndim)), key=lambda o: sum(share[a, o[a]] for a in range(grid.ndim)))
        return cls(order, tuple(bool(step[a, o] < 0) for a, o in enumerate(order)))

    @classmethod
    def upright(cls, grid: Grid, first: int | None) -> Self:
        """What turns a volume onto the axes of its world, whatever order and direction it is stored in.

        first: the axis that comes first (the slices), then the other axes as they lie in the world. None: as it is.
        """
        if first is None:
            return cls(tuple(range(grid.ndim)), (False,) * grid.ndim)
        directions = grid.affine[:-1, :-1] / np.linalg.norm(grid.affine[:-1, :-1], axis=0)
        main = np.abs(directions).argmax(axis=0)  # world axis of each index axis
        others = sorted((a for a in range(grid.ndim) if a != first), key=lambda a: (-main[a], a))
        order = (first, *others)
        return cls(order, tuple(bool(directions[main[a], a] < 0) for a in order))

    @property
    def turns(self) -> bool:
        """False if every array stays as it is."""
        return any(self.flipped) or self.order != tuple(range(len(self.order)))

    @property
    def inverse(self) -> Orientation:
        """What turns the result back."""
        back = tuple(self.order.index(a) for a in range(len(self.order)))
        return Orientation(back, tuple(self.flipped[a] for a in back))

    def axes(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """One value per axis, in the new order."""
        return tuple(values[a] for a in self.order)

    def names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the new axes: 'left-right' of one that is flipped becomes 'right-left'."""
        pairs = zip(self.axes(names), self.flipped, strict=True)
        return tuple("-".join(reversed(name.split("-"))) if back else name for name, back in pairs)

    def grid(self, grid: Grid) -> Grid:
        """The same samples at the same places, indexed along the new axes."""
        affine = np.array(grid.affine)
        for a, (own, back) in enumerate(zip(self.order, self.flipped, strict=True)):
            column = grid.affine[:-1, own]
            affine[:-1, a] = -column if back else column
            affine[:-1, -1] += column * (grid.shape[own] - 1) * back
        return Grid(grid.axes, self.axes(grid.shape), affine, grid.frame)

    def box(self, box: Box, shape: Sequence[int]) -> Box:
        """The place in the turned array of a box in an array of `shape`."""
        start, stop = [], []
        for own, back in zip(self.order, self.flipped, strict=True):
            low, high = box.start[own], box.stop[own]
            start.append(shape[own] - high if back else low)
            stop.append(shape[own] - low if back else high)
        return Box(tuple(start), tuple(stop))

    def array(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of (..., *axes) along the new axes."""
        lead = array.ndim - len(self.order)
        turned = array.transpose(*range(lead), *(lead + a for a in self.order))
        backwards = tuple(lead + a for a, back in enumerate(self.flipped) if back)
        return np.flip(turned, backwards)


def fine_length(coarse_length: int, scale: Fraction) -> int:
    """`floor(M s + 1/2)`, exact."""
    return math.floor(coarse_length * scale + Fraction(1, 2))


def decimal_fraction(value: float) -> Fraction:
    """A stored spacing as the decimal number that was meant: 5.199999809 -> 26/5."""
    return Fraction(f"{value:.{SPACING_DIGITS}g}")


MOST_SHIFT = Fraction(1, 10)
"""Samples. Shares of area shifted by more weigh the finest detail by less than 0.8, those by a half with 0."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How `coarse` samples of one axis lie on its `fine` samples: centre of sample j at `first + j scale`.

    scale and first are exact and in fine index units.
    """

    coarse: int
    fine: int
    scale: Fraction
    first: Fraction

    def centres(self) -> NDArray[np.float64]:
        """Centres (coarse,) of the coarse samples in fine index units."""
        return _line(self.first, self.scale, self.coarse)

    def positions(self) -> NDArray[np.float64]:
        """Coarse coordinates (fine,) of all fine samples, rounded once."""
        return _line(-self.first / self.scale, 1 / self.scale, self.fine)

    def coordinates(self, start: int = 0, stop: int | None = None) -> list[Fraction]:
        """Exact coarse coordinates of the fine samples start <= i < stop."""
        return [(i - self.first) / self.scale for i in range(start, self.fine if stop is None else stop)]

    def inside(self) -> NDArray[np.bool_]:
        """Which coarse samples (coarse,), each from face to face, lie at least partly on the fine ones."""
        centres, half = self.centres(), float(self.scale) / 2 - SAME_PLACE
        return np.asarray((centres + half > -0.5) & (centres - half < self.fine - 0.5), bool)

    @property
    def changed(self) -> bool:
        """False if both lattices are one."""
        return not (self.scale == 1 and self.first == 0 and self.coarse == self.fine)

    @property
    def offset(self) -> Fraction:
        """Fine samples from the first that lies in coarse sample 0 to fine sample 0.

        With a whole scale and a whole offset fine sample i lies in coarse sample (i + offset) // scale, across no face.
        """
        return (self.scale - 1) / 2 - self.first

    @property
    def between(self) -> bool:
        """Whether samples are not made finer but shifted, by so much of one that its inverse amplifies noise."""
        return self.scale == 1 and abs(self.first - round(self.first)) > MOST_SHIFT


def _line(first: Fraction, step: Fraction, count: int) -> NDArray[np.float64]:
    """First + i step, each the double nearest to the exact value."""
    below = first.denominator * step.denominator
    start, rise = first.numerator * step.denominator, step.numerator * first.denominator
    if max(abs(start), abs(start + (count - 1) * rise), below) < 2**53:  # one rounding: that of the division
        return (start + np.arange(count) * rise) / below
    return np.array([float(first + i * step) for i in range(count)])


def _require_one_frame(grid: Grid, other: Grid) -> None:
    if grid.axes != other.axes or grid.frame != other.frame:
        raise GeometryError(
            what="the two grids lie in different frames",
            why="a sample of one has no known place in the other",
            fix="give a reference from the same study or in the same CRS",
        )


def _shift(offset: float) -> Fraction:
    """A shift in samples, whole where a file's rounding is all that it lacks."""
    whole = round(offset)
    return Fraction(whole) if abs(offset - whole) <= ROUNDED else Fraction(float(offset)).limit_denominator(10**6)


def placements(coarse: Grid, fine: Grid) -> tuple[Placement, ...]:
    """One Placement per axis, from the two affines. Raises GeometryError unless the axes are parallel, in one order.

    A pair made by `rescaled` gives exact fractions; any other pair is rounded to 1e-9 samples, far below SAME_PLACE,
    but spacings that are one up to the rounding of a file are one.
    """
    _require_one_frame(coarse, fine)
    step = np.linalg.solve(fine.affine, coarse.affine)  # coarse index -> fine index
    scales = np.diag(step)[:-1]
    off = step[:-1, :-1] - np.diag(scales)
    if (scales <= 0).any() or np.abs(off).max() > ROTATION_LIMIT_RAD * np.abs(scales).min():
        raise GeometryError(
            what="the axes of the two grids are not parallel",
            why="the blur acts along the input's axes",
            fix="resample the reference onto the input's axes first",
        )
    result = []
    for a in range(coarse.ndim):
        m, n = coarse.shape[a], fine.shape[a]
        s = Fraction(float(scales[a])).limit_denominator(20000)
        if abs(float(s) - scales[a]) * m > 1e-6:  # not a ratio of spacings: keep it to rounding
            s = Fraction(float(scales[a])).limit_denominator(10**9)
        if abs(scales[a] - 1) * max(m, n) <= ROUNDED:
            result.append(Placement(m, n, Fraction(1), _shift(step[a, -1] + (scales[a] - 1) * (m - 1) / 2)))
            continue
        centred = (s - 1) / 2 + (n - m * s) / 2
        first = (
            centred
            if abs(float(centred) - step[a, -1]) < 1e-5
            else Fraction(float(step[a, -1])).limit_denominator(10**6)
        )
        if s < 1:
            raise GeometryError(
                what=f"axis {coarse.axes[a]} would become coarser ({float(1 / s):.4g}x)",
                why="super-resolution only adds samples",
                fix="ask for a finer grid",
            )
        result.append(Placement(m, n, s, first))
    return tuple(result)
