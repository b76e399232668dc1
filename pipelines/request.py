"""What a user asks for, as text or numbers, and how that text is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pipelines.degradation import Profile
from pipelines.errors import UsageError
from pipelines.grid import Grid
from pipelines.image import Told, ToldKind

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked: flags, or keyword arguments of the same names. Fields that are None take their default."""

    scale: str | float | None = None
    spacing: str | float | None = None
    model: str | None = None
    kind: ToldKind | None = None
    slice_thickness: float | Literal["auto"] | None = None
    degradation: str | None = None
    noise: str | float = "auto"
    consistency: bool = True
    memory: str | int = "4GB"
    workers: int | None = None
    readers: int | None = None
    writers: int | None = None
    device: Device = "auto"
    precision: Precision = "fp32"
    ensemble: bool = False
    strict: bool = False

    @property
    def told(self) -> Told:
        """What the user says about the degradation; of a thickness of 'auto' nothing: the header has it by then."""
        profile = Profile.parse(self.degradation) if self.degradation else None
        if self.slice_thickness == "auto":
            if profile is not None:
                raise UsageError(
                    what="a slice thickness of 'auto' and a degradation contradict each other",
                    why="the degradation says how thick the slices are",
                    fix="give one of them",
                )
            return Told()
        return Told(profile, parse_thickness(self.slice_thickness))


def parse_thickness(thickness: object) -> float | None:
    """A slice thickness [mm], or None if none was told. Raises UsageError."""
    if thickness is None:
        return None
    if isinstance(thickness, str) or not isinstance(thickness, int | float):
        raise UsageError(what=f"a slice thickness of '{thickness}' is no number", fix="give millimetres, or auto")
    if not 0 < thickness < math.inf:
        raise UsageError(what=f"a slice thickness of {thickness} mm is not positive")
    return thickness


def parse_noise(noise: str | float) -> str | float:
    """'auto', or a standard deviation in input units."""
    if noise == "auto":
        return "auto"
    try:
        value = float(noise)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise UsageError(what=f"--noise {noise} is neither 'auto' nor a standard deviation", fix="give 0 or more")
    return value


def parse_bytes(text: str | int) -> int:
    """'4GB', '500 MB', '1.5GiB' or a number of bytes."""
    if isinstance(text, int):
        return text
    units = {
        "": 1,
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "tb": 10**12,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
    }
    number = text.strip().rstrip("KMGTkmgtiIBb ").strip()
    unit = text.strip()[len(number) :].strip().lower()
    unit = {"k": "kb", "m": "mb", "g": "gb", "t": "tb"}.get(unit, unit)
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        value = 0
    if not 0 < value < math.inf:
        raise UsageError(what=f"'{text}' is not an amount of memory", fix="write it like 4GB or 500MB")
    return int(value)


def bytes_text(count: float) -> str:
    """'3.2 GB', '450 MB' or '12 KB': an amount that never reads as zero when it is not."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def parse_axes(text: str | float, grid: Grid, what: str) -> tuple[Fraction | None, ...]:
    """'4x1x1', 'z=1,y=0.9' or one number (then a 1-tuple) as exact fractions per axis in array order.

    Raises UsageError with the expected form.
    """
    words = str(text).strip().lower()
    example = "x".join(["4"] + ["1"] * (grid.ndim - 1))
    try:
        if "=" in words:
            pairs = [part.split("=") for part in words.split(",")]
            named = dict(pairs)
            if len(named) < len(pairs):
                raise UsageError(what=f"{what} '{text}' names an axis twice", fix="give one number per axis")
            unknown = sorted(set(named) - set(grid.axes))
            if unknown:
                raise UsageError(what=f"{what} names axis '{unknown[0]}'", fix=f"the axes are {', '.join(grid.axes)}")
            return tuple(Fraction(named[a]) if a in named else None for a in grid.axes)
        values = tuple(Fraction(part) for part in words.split("x"))
    except (ValueError, ZeroDivisionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(what=f"{what} '{text}' is not understood", fix=f"write one number or {example}") from error
    if any(v > 10**6 for v in values):
        raise UsageError(what=f"{what} '{text}' is absurd", fix=f"write one number or {example}")
    if len(values) not in (1, grid.ndim):
        raise UsageError(
            what=f"{what} '{text}' has {len(values)} numbers, the input has {grid.ndim} axes ({', '.join(grid.axes)})",
            fix=f"write one number or {example}, slowest axis first",
        )
    return values
