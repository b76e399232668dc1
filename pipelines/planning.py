"""What will happen, as plain values: the Plan of a run, and the Calibration that had to wait for pixels."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

import numpy as np

from pipelines import card as cards
from pipelines.card import ModelCard, finest
from pipelines.degradation import Degradation, Profile
from pipelines.grid import Grid, Orientation, Placement, placements
from pipelines.image import ToldKind, working_dtype
from pipelines.injection import Relation
from pipelines.interpolation import PREFILTER_REACH
from pipelines.tiles import Cover, Span

SOLVED = 256
"""Coarse samples of an axis whose projection is solved at a time."""

SHARED = {2: 256, 3: 64}
"""The same of an axis that both grids share, by the number of axes: it has no halo, and small images stay in caches."""
NO_BYTES = (
    *("predicted_bytes", "memory_bytes", "workers", "threads", "readers", "writers"),
    *("facts", "axes_named", "warnings", "work", "work_kept", "output", "overwrite", "card_path"),
    "device",  # known when the run starts: a resume compares it by itself
)
"""Of a plan: what changes no byte of the product, and may differ when a run is resumed."""


def libraries(names: Iterable[str]) -> dict[str, str]:
    """The versions installed here, importing none: the same bytes are promised for one set of them."""
    found = dict.fromkeys(names, "none")
    for name in found:
        with suppress(PackageNotFoundError):
            found[name] = installed_version(name)
    return found


@dataclass(frozen=True, slots=True)
class ChannelPlan:
    """How one channel is made. treatment: 'network', 'interpolate' or 'nearest'; spec: its blur per axis, as text."""

    name: str
    treatment: str
    spec: tuple[str, ...]
    noise_model: str
    project: bool


@dataclass(frozen=True, slots=True)
class GuidePlan:
    """A guide. identity: of its Source; channels: those used; start: of the product's grid in its own."""

    identity: str
    channels: tuple[int, ...]
    start: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything a run needs to know before it reads a pixel. `run_hash` covers exactly what may change a byte.

    fine: the product's samples along the input's axes; orientation: what turns them onto the product's own axes, those
    of a reference. workers: processes, each with so many threads that compute; readers, writers: threads of each of
    these. ensemble: mean over mirror images; strict: the floor where a network does not suit a channel. libraries:
    versions of those that compute the samples. kind: what the user says the channels are; overwrite: that an existing
    output may be replaced; guide: of the image that gives its detail, None without one.
    """

    identity: str
    coarse: Grid
    fine: Grid
    orientation: Orientation
    domain: str
    modality: str
    dtype: str
    channels: tuple[ChannelPlan, ...]
    model: str
    weights_sha256: str | None
    card_sha256: str
    noise: str | float
    shard: tuple[int, ...]
    predicted_bytes: int
    memory_bytes: int
    workers: int
    threads: int
    device: str
    readers: int = 1
    writers: int = 1
    precision: str = "fp32"
    ensemble: bool = False
    strict: bool = False
    libraries: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    axes_named: tuple[str, ...] = ()
    slice_axis: int | None = None
    may_have_invalid: bool = False
    warnings: tuple[str, ...] = ()
    card_path: str = ""
    work: str = ""
    work_kept: bool = False
    output: str = ""
    version: str = ""
    kind: ToldKind | None = None
    overwrite: bool = False
    guide: GuidePlan | None = None

    @property
    def places(self) -> tuple[Placement, ...]:
        """How the coarse samples lie on the fine ones, per axis."""
        return placements(self.coarse, self.fine)

    @property
    def product(self) -> Grid:
        """Grid of the product, along its own axes."""
        return self.orientation.grid(self.fine)

    @property
    def working(self) -> np.dtype[np.floating]:
        """Type of the samples in the work folder."""
        return working_dtype(self.dtype)

    @property
    def scale(self) -> tuple[float, ...]:
        """Coarse over fine spacing per axis."""
        return tuple(float(p.scale) for p in self.places)

    @property
    def faces_moved(self) -> tuple[tuple[float, float], ...]:
        """How far the product's first and last face lie outside the input's (inside: negative), per axis of the input.

        In units of the spacing. 0 where the samples times the scale are a whole number; else at most a quarter of a
        fine sample, the same on both sides. With a reference: what it covers beyond the input.
        """
        moved = []
        for p, spacing in zip(self.places, self.fine.spacing, strict=True):
            low = p.first + Fraction(1, 2) - p.scale / 2
            high = p.fine - (p.coarse * p.scale + low)
            moved.append((float(low) * spacing, float(high) * spacing))
        return tuple(moved)

    def degradation(self, channel: int) -> Degradation:
        """The forward model of one channel."""
        own = Profile("block")  # stands on axes that both grids share: never used
        profiles = [own if text == "same" else Profile.parse(text) for text in self.channels[channel].spec]
        return Degradation.between(self.coarse, self.fine, profiles)

    def cover(self, card: ModelCard) -> Cover:
        """The tiles."""
        return cover(self, card, self.shard)

    @property
    def work_bytes(self) -> int:
        """Upper bound of the work folder: coarse and fine samples and the mask, uncompressed."""
        item = self.working.itemsize
        samples = math.prod(self.coarse.shape) * (item + 1) + math.prod(self.fine.shape) * item
        guides = len(self.guide.channels) if self.guide else 0
        return samples * (len(self.channels) + guides)

    @property
    def output_bytes(self) -> int:
        """Size of the product, uncompressed."""
        return math.prod(self.fine.shape) * len(self.channels) * np.dtype(self.dtype).itemsize

    @property
    def run_hash(self) -> str:
        """Of all that may change the bytes of the product: not the budget, the workers or the paths."""
        data = {key: value for key, value in self.to_json().items() if key not in NO_BYTES}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return cards.find(self.card_path or self.model)

    @property
    def tile_count(self) -> int:
        """Number of tiles."""
        return math.prod(math.ceil(n / s) for n, s in zip(self.fine.shape, self.shard, strict=True))

    @property
    def recomputed(self) -> float:
        """Fine samples that tiles estimate beyond their own, over all fine samples."""
        spans = self.cover(self.card).spans
        return math.prod(sum(p[2][1] - p[2][0] for p in span.pieces()) / span.place.fine for span in spans) - 1

    def summary(self) -> dict[str, Any]:
        """The plan and what follows from it, for people and scripts."""
        return {
            **self.to_json(),
            "scale": list(self.scale),
            "spacing_before": list(self.coarse.spacing),
            "spacing_after": list(self.product.spacing),
            "faces_moved": [list(pair) for pair in self.faces_moved],
            "shape_before": list(self.coarse.shape),
            "shape_after": list(self.product.shape),
            "tiles": self.tile_count,
            "recomputed": self.recomputed,
            "work_bytes": self.work_bytes,
            "output_bytes": self.output_bytes,
            "run_hash": self.run_hash,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same plan back."""
        data: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["coarse"], data["fine"] = self.coarse.to_json(), self.fine.to_json()
        data["channels"] = [asdict(channel) for channel in self.channels]
        data["orientation"] = asdict(self.orientation)
        if self.guide is None:  # as plans were before there were guides
            data.pop("guide")
        else:
            data["guide"] = asdict(self.guide)
        return dict(json.loads(json.dumps(data)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        tuples = ("shard", "axes_named", "warnings")
        values = {**data, **{key: tuple(data[key]) for key in tuples}}
        values["coarse"], values["fine"] = Grid.from_json(data["coarse"]), Grid.from_json(data["fine"])
        values["orientation"] = Orientation(**{k: tuple(v) for k, v in data["orientation"].items()})
        if data.get("guide"):
            told = data["guide"]
            values["guide"] = GuidePlan(told["identity"], tuple(told["channels"]), tuple(told["start"]))
        values["channels"] = tuple(ChannelPlan(**{**c, "spec": tuple(c["spec"])}) for c in data["channels"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ChannelCalibration:
    """What one channel needed pixels for: centre, scale, noise_sigma in input units, weight `l` of the projection.

    refined: whether the network adds its residual; not where there is more noise than it was trained for. unlike: what
    of the samples is far from what it was trained on, '' if nothing is; contradicts: whether it was found to contradict
    the input, and is left out.
    """

    centre: float
    scale: float
    noise_sigma: float
    noise_method: str
    weight: float
    refined: bool = False
    unlike: str = ""
    contradicts: bool = False


@dataclass(frozen=True, slots=True)
class GuideCalibration:
    """What a guide needed pixels for: centre and scale of each of its channels, and their relation with the input's."""

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    relations: tuple[Relation, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GuideCalibration:
        """What `asdict` made."""
        relations = tuple(Relation(**{k: tuple(v) for k, v in one.items()}) for one in data["relations"])
        return cls(tuple(data["centre"]), tuple(data["scale"]), relations)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One ChannelCalibration per channel, and one of the guide; frozen beside the plan."""

    channels: tuple[ChannelCalibration, ...]
    guide: GuideCalibration | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        guide = {"guide": asdict(self.guide)} if self.guide else {}
        return {"channels": [asdict(channel) for channel in self.channels], **guide}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        """What `to_json` wrote."""
        guide = GuideCalibration.from_json(data["guide"]) if data.get("guide") else None
        return cls(tuple(ChannelCalibration(**channel) for channel in data["channels"]), guide)


def cover(plan: Plan, card: ModelCard, shard: Sequence[int]) -> Cover:
    """Tiles of `shard` fine samples with the halos of the projection, the interpolation and the network."""
    halo = card.reach(plan.places)
    refined = finest([place.scale for place in plan.places])
    spans = (
        replace(
            span,
            shard=side,
            halo=max(span.halo, own),
            multiple_of=_multiple_of(card, a == refined, a),
            even=bool(card.network),
        )
        for a, (span, side, own) in enumerate(zip(solved(plan).spans, shard, halo, strict=True))
    )
    return Cover(tuple(spans))


def solved(plan: Plan) -> Cover:
    """What is interpolated and projected at a time, with the halos of both: parts of tiles.

    The projection's eigenvectors grow with the square of a part, its halo's share shrinks.
    """
    models = list({channel.spec: plan.degradation(c) for c, channel in enumerate(plan.channels)}.values())
    reaches = [model.reach for model in models]
    projected = any(channel.project for channel in plan.channels)
    spans = (
        Span(
            place,
            math.ceil(SOLVED * place.scale) if place.changed else SHARED[plan.fine.ndim],
            support=max(m.support[a] for m in models) if projected else 0,
            reach=max(reach[a] for reach in reaches) if projected else 0,
            halo=PREFILTER_REACH + 3 if place.changed else 0,
        )
        for a, place in enumerate(plan.places)
    )
    return Cover(tuple(spans))


def _multiple_of(card: ModelCard, refined: bool, axis: int) -> int:
    """What read boxes are aligned to on an axis, because the network folds it."""
    if not card.multiple_of:
        return 1
    if card.axes == "through-plane":
        return card.multiple_of[0] if refined else card.multiple_of[1]
    return card.multiple_of[axis]
