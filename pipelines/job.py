"""One call of `upscale`, as plain values: what a prepared work folder remembers, and an entry of a batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pipelines import formats
from pipelines.image import Source
from pipelines.request import Request
from pipelines.workspace import Paths


@dataclass(frozen=True, slots=True)
class Job:
    """What goes in, what comes out, and what was asked. Paths are text; those of a stored job are absolute."""

    source: str
    output: str
    request: Request = field(default_factory=Request)
    like: str | None = None
    guide: str | None = None
    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    work: str | None = None
    overwrite: bool = False
    resume: bool = False

    @property
    def paths(self) -> Paths:
        """Where it reads and writes."""
        work = Path(self.work) if self.work else None
        return Paths(Path(self.output), work, self.overwrite, self.resume).continued()

    def open(self) -> Source:
        """The input, its header read. Raises InputError."""
        told = {"nodata": self.nodata, "kind": self.request.kind, "slice_thickness": self.request.told.thickness_mm}
        return formats.open_source(self.source, bands=self.bands, **told)

    def open_guide(self) -> AbstractContextManager[Source | None]:
        """The image of `--guide`, its header read. Raises InputError."""
        return formats.open_source(self.guide) if self.guide else nullcontext()

    def absolute(self) -> Self:
        """The same job for any working folder."""
        like, guide, work = (str(Path(p).absolute()) if p else None for p in (self.like, self.guide, self.work))
        source, output = (str(Path(p).absolute()) for p in (self.source, self.output))
        return replace(self, source=source, output=output, like=like, guide=guide, work=work)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same job back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The job that `to_json` wrote."""
        bands = data["bands"]
        return cls(**{**data, "request": Request(**data["request"]), "bands": tuple(bands) if bands else None})
