"""From what was asked to what will happen: Request -> Plan, without reading a pixel.

Later steps decide nothing; what must wait for pixels is calibration, by the rules that the plan names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from pipelines import card as cards
from pipelines.card import ModelCard
from pipelines.degradation import Degradation, Profile
from pipelines.errors import BudgetError, GeometryError, InputError, ModelError, UsageError
from pipelines.grid import Factor, Grid, Placement, decimal_fraction, placements
from pipelines.image import Channel, Header, Told, working_dtype
from pipelines.interpolation import PREFILTER_REACH
from pipelines.request import Request, parse_axes, parse_bytes, parse_noise
from pipelines.tiles import Cover, Span

BLUR_SLACK = 1.1
"""A blur may be this much beyond what a network was trained for."""

MAX_SCALE = 16
"""More than this per axis is refused: nothing of the product would be measured."""

ISOTROPIC_LIMIT = 8
"""Without a scale, an anisotropic volume becomes isotropic, but never by more than this."""

PROCESS_BYTES = {"floor": 800_000_000, "network": 1_200_000_000}
"""Memory whatever the tile: the program (without and with torch), and the slabs of reading, export and verification."""

BYTES_PER_ESTIMATE = 60
"""Peak bytes per fine sample and channel of the interpolation and projection (float64, several copies; measured)."""

FULL_DEPTH = 96
"""Volumes with at most this many coarse samples on the slice axis are not cut along it."""

TILES = {2: ((1024, 1024), (512, 512), (256, 256)), 3: ((256, 128, 128), (128, 96, 96), (64, 64, 64), (32, 32, 32))}
"""Shards tried per number of axes, in fine samples, the largest that fits the budget wins."""

CHUNK = {2: 256, 3: 32}
"""Side of the inner chunks of a shard of fine samples."""


@dataclass(frozen=True, slots=True)
class ChannelPlan:
    """How one channel is made. treatment: 'network', 'interpolate' or 'nearest'; spec: its blur per axis, as text."""

    name: str
    treatment: str
    spec: tuple[str, ...]
    noise_model: str
    project: bool


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything a run needs to know before it reads a pixel. `run_hash` covers exactly what may change a byte."""

    identity: str
    coarse: Grid
    fine: Grid
    domain: str
    modality: str
    dtype: str
    channels: tuple[ChannelPlan, ...]
    model: str
    weights_sha256: str | None
    noise: str | float
    shard: tuple[int, ...]
    predicted_bytes: int
    memory_bytes: int
    workers: int
    device: str
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

    @property
    def places(self) -> tuple[Placement, ...]:
        """How the coarse samples lie on the fine ones, per axis."""
        return placements(self.coarse, self.fine)

    @property
    def working(self) -> np.dtype[np.floating]:
        """Type of the samples in the work folder."""
        return working_dtype(self.dtype)

    @property
    def scale(self) -> tuple[float, ...]:
        """Coarse over fine spacing per axis."""
        return tuple(float(p.scale) for p in self.places)

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
        return samples * len(self.channels)

    @property
    def output_bytes(self) -> int:
        """Size of the product, uncompressed."""
        return math.prod(self.fine.shape) * len(self.channels) * np.dtype(self.dtype).itemsize

    @property
    def run_hash(self) -> str:
        """Of all that may change the bytes of the product: not the budget, the workers or the paths."""
        data = self.to_json()
        for key in ("predicted_bytes", "memory_bytes", "workers", "facts", "axes_named", "warnings", "work"):
            data.pop(key)
        for key in ("work_kept", "output", "card_path"):
            data.pop(key)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return cards.find(self.card_path or self.model)

    @property
    def tile_count(self) -> int:
        """Number of tiles."""
        return math.prod(math.ceil(n / s) for n, s in zip(self.fine.shape, self.shard, strict=True))

    def summary(self) -> dict[str, Any]:
        """The plan and what follows from it, for people and scripts."""
        return {
            **self.to_json(),
            "scale": list(self.scale),
            "spacing_before": list(self.coarse.spacing),
            "spacing_after": list(self.fine.spacing),
            "shape_before": list(self.coarse.shape),
            "shape_after": list(self.fine.shape),
            "tiles": self.tile_count,
            "work_bytes": self.work_bytes,
            "output_bytes": self.output_bytes,
            "run_hash": self.run_hash,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same plan back."""
        data: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["coarse"], data["fine"] = self.coarse.to_json(), self.fine.to_json()
        data["channels"] = [asdict(channel) for channel in self.channels]
        return dict(json.loads(json.dumps(data)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        tuples = ("shard", "axes_named", "warnings")
        values = {**data, **{key: tuple(data[key]) for key in tuples}}
        values["coarse"], values["fine"] = Grid.from_json(data["coarse"]), Grid.from_json(data["fine"])
        values["channels"] = tuple(ChannelPlan(**{**c, "spec": tuple(c["spec"])}) for c in data["channels"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ChannelCalibration:
    """What one channel needed pixels for: centre, scale, noise_sigma in input units, weight `l` of the projection.

    refined: whether the network adds its residual; not where there is more noise than it was trained for.
    """

    centre: float
    scale: float
    noise_sigma: float
    noise_method: str
    weight: float
    refined: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """One ChannelCalibration per channel; frozen beside the plan."""

    channels: tuple[ChannelCalibration, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"channels": [asdict(channel) for channel in self.channels]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        """What `to_json` wrote."""
        return cls(tuple(ChannelCalibration(**channel) for channel in data["channels"]))


def resolve(
    header: Header, identity: str, request: Request, *, reference: Grid | None = None, cores: int, version: str
) -> Plan:
    """The plan for an input. reference: the grid of `--like`. Raises UsageError, InputError, BudgetError."""
    warnings = list(header.problems)
    fine = _fine_grid(header, request, reference, warnings)
    places = placements(header.grid, fine)
    if not any(place.changed for place in places):
        raise UsageError(
            what="the grid asked for is the input's own",
            why="there is nothing to super-resolve",
            fix="give --scale, or a --spacing finer than the input's",
        )
    card = _card(header, places, request, warnings)
    told = request.told
    for place in places:
        if (
            not -place.scale < place.first + (place.coarse - 1) * place.scale
            or not place.first < place.fine - 1 + place.scale
        ):
            raise UsageError(
                what="the reference and the input do not overlap", fix="give a reference of the same place"
            )
    channels = tuple(
        _channel_plan(header, number, channel, card, request, places, told)
        for number, channel in enumerate(header.channels)
    )
    axis = header.slice_axis
    if axis is not None and places[axis].changed and told == Told():
        thickness = header.facts.get("thickness_mm")
        if thickness and thickness.origin == "assumed" and not any("thickness" in w for w in warnings):
            warnings.append("the slice thickness is assumed to equal the slice spacing; tell it with --slice-thickness")
    plan = Plan(
        identity=identity,
        coarse=header.grid,
        fine=fine,
        domain=header.domain,
        modality=header.modality,
        dtype=header.dtype,
        channels=channels,
        model=card.id if card.network else card.name,
        card_path=request.model if request.model and request.model.endswith(".json") else "",
        weights_sha256=card.sha256 or None,
        noise=parse_noise(request.noise),
        shard=(),
        predicted_bytes=0,
        memory_bytes=parse_bytes(request.memory),
        workers=request.workers if request.workers is not None else (1 if card.network else cores),
        device=request.device,
        facts={name: asdict(fact) for name, fact in sorted(header.facts.items())},
        axes_named=header.anatomical_axes or tuple(header.grid.axes),
        slice_axis=header.slice_axis,
        may_have_invalid=header.may_have_invalid,
        warnings=tuple(warnings),
        version=version,
    )
    if plan.workers < 1:
        raise UsageError(what=f"{plan.workers} workers cannot work", fix="give --workers 1 or more")
    return _with_shard(plan, card)


def _fine_grid(header: Header, request: Request, reference: Grid | None, warnings: list[str]) -> Grid:
    """The grid asked for. Raises UsageError: what is wrong is the request, not the input."""
    try:
        return _grid_asked(header, request, reference, warnings)
    except GeometryError as error:
        raise UsageError(error.what, error.why, error.fix) from error


def _grid_asked(header: Header, request: Request, reference: Grid | None, warnings: list[str]) -> Grid:
    grid = header.grid
    asked = [request.scale is not None, request.spacing is not None, reference is not None]
    if sum(asked) > 1:
        raise UsageError(what="scale, spacing and like contradict each other", fix="give one of them")
    if reference is not None:
        _refuse_absurd(Factor(tuple(p.scale for p in placements(grid, reference))), grid)
        return reference
    if request.scale is not None:
        scales = parse_axes(request.scale, grid, "the scale")
        if len(scales) == 1:
            scales *= grid.ndim
        factor = Factor(tuple(Fraction(1) if s is None else s for s in scales))
    elif request.spacing is not None:
        factor = _factor_from_spacing(grid, parse_axes(request.spacing, grid, "the spacing"))
    else:
        factor = _default_factor(header, warnings)
    _refuse_absurd(factor, grid)
    return grid.rescaled(factor)


def _factor_from_spacing(grid: Grid, asked: Sequence[Fraction | None]) -> Factor:
    if len(asked) > 1:
        return grid.factor_to(asked)
    target = asked[0]
    if target is None or target <= 0:
        raise GeometryError(what="the spacing asked is not positive", fix="ask for one above 0")
    # one number touches only the axes that are coarser
    return grid.factor_to([target if decimal_fraction(own) > target else None for own in grid.spacing])


def _default_factor(header: Header, warnings: list[str]) -> Factor:
    grid = header.grid
    if grid.ndim == 2:
        return Factor((Fraction(2), Fraction(2)))
    finest = min(decimal_fraction(s) for s in grid.spacing)
    scales = []
    for axis, own in zip(grid.axes, grid.spacing, strict=True):
        scale = decimal_fraction(own) / finest
        if scale > ISOTROPIC_LIMIT:
            warnings.append(
                f"axis {axis} would need {float(scale):.3g}x to become isotropic; stopped at {ISOTROPIC_LIMIT}x"
            )
            scale = Fraction(ISOTROPIC_LIMIT)
        scales.append(scale if scale >= Fraction(101, 100) else Fraction(1))
    if all(s == 1 for s in scales):
        raise UsageError(
            what="the volume is isotropic already", why="there is no finer spacing to take over", fix="give --scale"
        )
    return Factor(tuple(scales))


def _refuse_absurd(factor: Factor, grid: Grid) -> None:
    for axis, scale in zip(grid.axes, factor, strict=True):
        if scale > MAX_SCALE:
            raise UsageError(
                what=f"a scale of {float(scale):.4g} on axis {axis} is absurd",
                why=f"above {MAX_SCALE} nothing of the product would be measured",
                fix="ask for less",
            )


def _card(header: Header, places: Sequence[Placement], request: Request, warnings: list[str]) -> ModelCard:
    """The model asked for, or the best one that fits; a network that does not fit is refused with the reason."""
    refusal = header.facts.get("refuse_networks")
    if request.model is not None:
        card = cards.find(request.model)
        if card.network:
            reason = str(refusal.value) if refusal else _misfit(card, header, places)
            if reason:
                raise ModelError(
                    what=f"{card.id} does not fit this input: {reason}", fix="use --model floor, which always fits"
                )
            card.verify()
            blur = _unknown_blur(card, header, places, request.told)
            if blur:
                warnings.append(f"{blur}: the result is untested")
        return card
    if refusal:
        raise InputError(
            what=f"the input must not go through a network: {refusal.value}",
            fix="use --model floor, or --model nearest for classes",
        )
    for card in reversed(cards.available()):  # the newest version of a name comes last
        if card.network and not _misfit(card, header, places):
            blur = _unknown_blur(card, header, places, request.told)
            if blur:
                warnings.append(f"{blur}: made with the floor")
                return cards.find("floor")
            card.verify()
            return card
    if header.domain:
        warnings.append("no shipped network fits this domain, scale and axes: made with the floor (cubic + projection)")
    return cards.find("floor")


def _misfit(card: ModelCard, header: Header, places: Sequence[Placement]) -> str:
    """Why a network cannot make this product, '' if it can."""
    if card.domain not in ("any", header.domain):
        return f"it was trained for domain '{card.domain}', the input is '{header.domain or 'bare arrays'}'"
    changed = tuple(a for a, p in enumerate(places) if p.changed)
    if card.axes == "through-plane" and changed != (header.slice_axis,):
        return "it refines the slice axis alone"
    return card.suits([p.scale for p in places])


def _unknown_blur(card: ModelCard, header: Header, places: Sequence[Placement], told: Told) -> str:
    """Why the blur is beyond what a network was trained for, '' if it is not."""
    if card.blur_fwhm_coarse is None:
        return ""
    low, high = card.blur_fwhm_coarse[0] / BLUR_SLACK, card.blur_fwhm_coarse[1] * BLUR_SLACK
    for number, channel in enumerate(header.channels):
        for a, profile in enumerate(header.profiles(number, told)):
            if channel.kind != "image" or not places[a].changed:
                continue
            width = profile.fwhm_coarse(header.grid.spacing[a], millimetres=header.grid.frame.unit == "mm")
            if not low <= width <= high:
                return f"{profile} is {width:.2g} coarse samples wide, {card.id} knows {low:.2g} to {high:.2g}"
    return ""


def _channel_plan(
    header: Header,
    number: int,
    channel: Channel,
    card: ModelCard,
    request: Request,
    places: Sequence[Placement],
    told: Told,
) -> ChannelPlan:
    image = channel.kind == "image"
    profiles = header.profiles(number, told)
    spec = tuple(str(p) if place.changed else "same" for p, place in zip(profiles, places, strict=True))
    treatment = "nearest" if not image else "network" if card.network else "interpolate"
    return ChannelPlan(
        channel.name, treatment, spec, channel.noise_model, image and card.project and request.consistency
    )


def cover(plan: Plan, card: ModelCard, shard: Sequence[int]) -> Cover:
    """Tiles of `shard` fine samples with the halos of the projection, the interpolation and the network."""
    models = [plan.degradation(c) for c in range(len(plan.channels))]
    projected = any(channel.project for channel in plan.channels)
    changed = [place.changed for place in plan.places]
    halo = card.reach(changed)
    spans = []
    for a, place in enumerate(plan.places):
        spans.append(
            Span(
                place,
                shard[a],
                support=max(m.support[a] for m in models) if projected else 0,
                reach=max(m.reach[a] for m in models) if projected else 0,
                halo=max(PREFILTER_REACH + 3 if place.changed else 0, halo[a]),
                multiple_of=_multiple_of(card, changed[a], a),
            )
        )
    return Cover(tuple(spans))


def _multiple_of(card: ModelCard, changed: bool, axis: int) -> int:
    """What read boxes are aligned to on an axis, because the network folds it."""
    if not card.multiple_of:
        return 1
    if card.axes == "through-plane":
        return card.multiple_of[0] if changed else card.multiple_of[1]
    return card.multiple_of[axis]


def _with_shard(plan: Plan, card: ModelCard) -> Plan:
    """The plan with the largest tile that fits the budget with one worker, then with as many workers as fit.

    The tile decides the bytes of a network's product in the last digits, so the workers must not decide the tile.
    """
    smallest = 0
    for tile in TILES[plan.fine.ndim]:
        shard = tuple(_shard_side(plan, a, side) for a, side in enumerate(tile))
        predicted = predicted_bytes(plan, card, shard, 1)
        smallest = predicted if not smallest else min(smallest, predicted)
        if predicted > plan.memory_bytes:
            continue
        fitting = [n for n in range(1, plan.workers + 1) if predicted_bytes(plan, card, shard, n) <= plan.memory_bytes]
        warnings = plan.warnings
        if fitting[-1] < plan.workers:
            warnings = (
                *warnings,
                f"{fitting[-1]} of {plan.workers} workers fit the memory budget; raise --memory for more",
            )
        predicted = predicted_bytes(plan, card, shard, fitting[-1])
        return replace(plan, shard=shard, predicted_bytes=predicted, workers=fitting[-1], warnings=warnings)
    raise BudgetError(
        what=f"the smallest tile needs {smallest / 1e9:.2f} GB, the budget is {plan.memory_bytes / 1e9:.2f} GB",
        why="nothing can be made in less",
        fix=f"give --memory {math.ceil(smallest / 1e8) / 10:g}GB",
    )


def _shard_side(plan: Plan, axis: int, side: int) -> int:
    chunk = CHUNK[plan.fine.ndim]
    if axis == plan.slice_axis and plan.coarse.shape[axis] <= FULL_DEPTH:
        side = plan.fine.shape[axis]  # halos would cost more than the whole stack
    return math.ceil(min(side, plan.fine.shape[axis]) / chunk) * chunk


def predicted_bytes(plan: Plan, card: ModelCard, shard: Sequence[int], workers: int) -> int:
    """Upper bound of the resident memory of a run with tiles of `shard` fine samples and so many workers."""
    tiles = cover(plan, card, shard)
    pieces = [span.pieces() for span in tiles.spans]
    read = math.prod(max(p[0][1] - p[0][0] for p in axis) for axis in pieces)
    estimate = math.prod(max(p[2][1] - p[2][0] for p in axis) for axis in pieces)
    channels = len(plan.channels)
    network = int(card.bytes_per_sample * read + card.bytes_fixed) if card.network else 0
    buffers = channels * (read * 5 * 2 + math.prod(shard) * 4 * 4)  # read ahead; written, encoded and waiting shards
    per_worker = estimate * BYTES_PER_ESTIMATE + network + buffers
    return PROCESS_BYTES["network" if card.network else "floor"] + workers * per_worker
