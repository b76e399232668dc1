"""What a bench says: rows of a goal, what was measured, and whether the goal is met."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Asked:
    """How thoroughly to measure, and where. quick: small images, few rounds; devices: 'cpu', and 'cuda' if wanted."""

    quick: bool = False
    devices: tuple[str, ...] = ("cpu",)

    def pick(self, quick: Any, full: Any) -> Any:
        """One of two settings."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One goal. value: None where it was not run, and `why` says why; without a unit it is a ratio side by side.

    most, least: the goal, None for a figure that has none; why: also what to know about the figure; raw: what was
    measured, plain values.
    """

    what: str
    value: float | None = None
    most: float | None = None
    least: float | None = None
    unit: str = ""
    why: str = ""
    raw: dict[str, Any] = field(default_factory=dict)
    bench: str = ""

    @property
    def state(self) -> str:
        """'met', 'MISSED', 'not run' or '-' (no goal)."""
        if self.value is None:
            return "not run"
        if self.most is None and self.least is None:
            return "-"
        met = (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)
        return "met" if met else "MISSED"

    @property
    def goal(self) -> str:
        """'<= 1.1', '>= 1.6' or '-'."""
        bounds = ((sign, bound) for sign, bound in (("<=", self.most), (">=", self.least)) if bound is not None)
        return " and ".join(f"{sign} {bound:g} {self.unit}".rstrip() for sign, bound in bounds) or "-"

    @property
    def measured(self) -> str:
        """The value with few digits and its unit."""
        if self.value is None:
            return "-"
        text = f"{self.value:.3g}" if abs(self.value) < 1000 else f"{self.value:.0f}"
        return f"{text} {self.unit}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "state": self.state}
