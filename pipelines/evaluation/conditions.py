"""The conditions of the protocol: which sensor is simulated, with how much noise, and what a method is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipelines.degradation import Profile
from pipelines.errors import UsageError

Fusion = Literal["", "20m", "pan"]
"""Images that a condition asks for: any, 20 m bands, or multispectral bands beside a panchromatic one."""

WIDER = 1.2
"""Mismatch: the data are made with a profile this much wider than told."""

HARD, EASY = (True, WIDER), (False, 1.0)
"""(noisy, width over the told one): what every table has, the hard one first."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How the coarse data are made. profile: what is told; widened: the true width over the told one.

    spacing_mm: of the slices (volumes); scale: of the image (scenes), None: that of its panchromatic band; axis: of the
    volume, counted as in the array; fusion: the images it is for.
    """

    domain: str
    profile: Profile
    spacing_mm: float | None = None
    scale: int | None = None
    axis: int = 0
    noisy: bool = False
    widened: float = 1.0
    fusion: Fusion = field(default="", repr=False)  # the noise is seeded by the text of the rest

    @property
    def task(self) -> str:
        """What is undone: '4|1 mm', '2x', '20 -> 10 m', 'MS -> PAN'."""
        if self.spacing_mm is not None:
            width = self.profile.value or 0.0
            return f"{width:g}|{self.spacing_mm - width:g} mm"
        return {"": f"{self.scale}x", "20m": "20 -> 10 m", "pan": "MS -> PAN"}[self.fusion]

    @property
    def data(self) -> str:
        """What is wrong with the data: 'noisy, 20% wider than told'."""
        data = "noisy" if self.noisy else "clean"
        if self.widened == 1.0:
            return data
        return f"{data}, {abs(self.widened - 1):.0%} {'wider' if self.widened > 1 else 'narrower'} than told"

    @property
    def name(self) -> str:
        """One line for the heading of a table; all three axes of a volume share it."""
        if self.spacing_mm is not None:
            return f"slices {self.task}, {self.data}"
        if self.fusion:
            return f"{self.task} by Wald's protocol, {self.data}"
        return f"{self.task} {self.profile}, {self.data}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Conditions that are run together.

    slices: (thickness, gap) [mm]; axes: of the volumes; scales: of the scenes; fusions: by Wald's protocol; kinds:
    (noisy, width over the told one); whole: whole images, not their centres.
    """

    slices: tuple[tuple[int, int], ...] = ()
    axes: tuple[int, ...] = (0, 1, 2)
    scales: tuple[int, ...] = ()
    fusions: tuple[Fusion, ...] = ()
    kinds: tuple[tuple[bool, float], ...] = (HARD, EASY)
    whole: bool = True

    @property
    def domains(self) -> tuple[str, ...]:
        """'med', 'geo' or both."""
        return tuple(d for d, some in (("med", self.slices), ("geo", self.scales or self.fusions)) if some)

    def conditions(self, domain: str) -> list[Condition]:
        """Those of one domain, in the order of the tables."""
        if domain == "med":
            return [
                Condition("med", Profile("slice", t), spacing_mm=t + g, axis=a, noisy=n, widened=w)
                for t, g in self.slices
                for n, w in self.kinds
                for a in self.axes
            ]
        blurred = [
            Condition("geo", Profile("mtf", 0.3), scale=s, noisy=n, widened=w)
            for s in self.scales
            for n, w in self.kinds
        ]
        # by Wald's protocol the blur is part of the definition: nothing to be told wrongly
        fused = [
            Condition("geo", Profile("wald"), scale=2 if f == "20m" else None, noisy=n, fusion=f)
            for f in self.fusions
            for n in dict.fromkeys(noisy for noisy, _ in self.kinds)
        ]
        return blurred + fused


_SLICES = ((3, 0), (4, 0), (4, 1), (5, 0), (5, 1))
_ALL_KINDS = ((False, 1.0), (True, 1.0), (False, WIDER), (False, 1 / WIDER), (True, WIDER))

SUITES: dict[str, Suite] = {
    "smoke": Suite(slices=((4, 0), (4, 1)), axes=(0,), scales=(2,), fusions=("20m",), whole=False),
    "med": Suite(slices=_SLICES),
    "geo": Suite(scales=(2, 4), fusions=("20m", "pan")),
    "full": Suite(slices=_SLICES, scales=(2, 4), fusions=("20m", "pan"), kinds=_ALL_KINDS),
}
"""name -> Suite: a quick part of both domains, one domain each, every kind of data of both."""


def suite_of(name: str) -> Suite:
    """The suite of that name. Raises UsageError."""
    if name not in SUITES:
        raise UsageError(what=f"there is no suite '{name}'", fix=f"choose one of {', '.join(SUITES)}")
    return SUITES[name]
