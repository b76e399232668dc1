"""From what was asked to what will happen: Request -> Plan, without reading a pixel.

Later steps decide nothing; what must wait for pixels is calibration, by the rules that the plan names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np

from pipelines import card as cards
from pipelines import guides, sizing
from pipelines.card import ModelCard, finest
from pipelines.degradation import profile_between
from pipelines.errors import GeometryError, InputError, ModelError, UsageError
from pipelines.grid import Factor, Grid, Orientation, Placement, decimal_fraction, placements
from pipelines.image import MIN_SLICES, Header, Told
from pipelines.planning import ChannelPlan, Plan
from pipelines.request import Request, parse_axes, parse_bytes, parse_noise

BLUR_SLACK = 1.1
"""A blur may be this much beyond what a network was trained for."""

BLUR_LIMITS = (0.1, 4.0)
"""Widths [samples of the input] that a degradation can be told to have."""

MOSTLY = 0.5
"""Share of a reference outside the input from which on it is worth a word."""

MAX_AXIS = 1_000_000
"""More fine samples on one axis are refused: no sensor makes them, a damaged header does."""

MAX_SCALE = 16
"""More than this per axis is refused: nothing of the product would be measured."""

MOST_ON_A_DEVICE = 8
"""Tiles made at a time with a network on a CUDA device: each is also projected and encoded by the cores, two a tile."""

ISOTROPIC_LIMIT = 8
"""Without a scale, an anisotropic volume becomes isotropic, but never by more than this."""


def resolve(
    header: Header,
    identity: str,
    request: Request,
    *,
    reference: Grid | None = None,
    guide: tuple[Header, str] | None = None,
    cores: int,
    version: str,
) -> Plan:
    """The plan for an input. reference: the grid of `--like`; guide: header and identity of the image of `--guide`.

    Raises UsageError, InputError, BudgetError.
    """
    warnings = list(header.problems)
    guided = None
    if guide is not None:
        if reference is not None:
            raise UsageError(
                what="guide and like contradict each other", fix="give one: a guide's grid is the product's"
            )
        reference, guided = guides.guided(header, *guide)
    fine, orientation = _fine_grid(header, request, reference, warnings)
    places = placements(header.grid, fine)
    _refuse_unchanged(places)
    card = _card(header, places, request, warnings, guided=guided is not None)
    _refuse_few_slices(header, places, card)
    _refuse_blur(header, request.told)
    _refuse_apart(places)
    if request.ensemble:
        _refuse_mirrors(card)
    plan = Plan(
        identity=identity,
        coarse=header.grid,
        fine=fine,
        orientation=orientation,
        domain=header.domain,
        modality=header.modality,
        dtype=header.dtype if card.estimates == "image" else header.working.name,
        channels=tuple(_channel_plan(header, c, card, request, places) for c in range(len(header.channels))),
        model=card.id if card.network else card.name,
        card_path=request.model if request.model and request.model.endswith(".json") else "",
        weights_sha256=card.sha256 or None,
        card_sha256=card.digest,
        noise=parse_noise(request.noise),
        shard=(),
        predicted_bytes=0,
        memory_bytes=parse_bytes(request.memory),
        workers=_count(request.workers, "workers"),
        threads=threads_for(request.device, card, max(1, cores // (request.workers or 1))),
        readers=_count(request.readers, "readers"),
        writers=_count(request.writers, "writers"),
        device=request.device,
        precision=request.precision if card.network else "fp32",
        ensemble=request.ensemble and bool(card.network),
        strict=request.strict and bool(card.network),
        facts={name: asdict(fact) for name, fact in sorted(header.facts.items())},
        axes_named=header.anatomical_axes or tuple(header.grid.axes),
        slice_axis=header.slice_axis,
        may_have_invalid=header.may_have_invalid,
        warnings=_warnings(header, places, card, request, warnings),
        version=version,
        kind=request.kind,
        guide=guided,
    )
    if reference is not None:
        plan = replace(plan, warnings=(*plan.warnings, *_cut_ends(plan), *_beyond(plan)))
    return sizing.fitted(plan, card)


def _refuse_mirrors(card: ModelCard) -> None:
    """Raise UsageError if a mirror image would lie elsewhere on the grid of a network's strides or windows."""
    if any(m != 1 for m in card.multiple_of) or not card.local or card.guided:
        raise UsageError(
            what=f"{card.id} has no mean over mirror images",
            why="it has a guide, or windows and strides on the grid of the image, where a mirror image is shifted",
            fix="leave --ensemble out, or choose another model",
        )


def _refuse_unchanged(places: Sequence[Placement]) -> None:
    if not any(place.changed for place in places):
        raise UsageError(
            what="the grid asked for is the input's own",
            why="there is nothing to super-resolve",
            fix="give --scale, or a --spacing finer than the input's",
        )


def _refuse_few_slices(header: Header, places: Sequence[Placement], card: ModelCard) -> None:
    """Raise InputError if slices would be made from fewer than can say what lies between them."""
    axis = header.slice_axis
    if axis is not None and places[axis].changed and header.grid.shape[axis] < MIN_SLICES and card.name != "nearest":
        raise _few_slices(header.grid, axis)


def _few_slices(grid: Grid, axis: int) -> InputError:
    count, in_plane = grid.shape[axis], ",".join(f"{a}={1 if n == axis else 2}" for n, a in enumerate(grid.axes))
    return InputError(
        what=f"the volume has {count} slice{'s' if count > 1 else ''}",
        why=f"fewer than {MIN_SLICES} hold next to nothing about what lies between them",
        fix=f"give the whole stack, or refine in-plane only (like --scale {in_plane})",
    )


def _refuse_apart(places: Sequence[Placement]) -> None:
    for place in places:
        if (
            not -place.scale < place.first + (place.coarse - 1) * place.scale
            or not place.first < place.fine - 1 + place.scale
        ):
            raise UsageError(
                what="the reference and the input do not overlap", fix="give a reference of the same place"
            )


def _warnings(
    header: Header, places: Sequence[Placement], card: ModelCard, request: Request, noted: Sequence[str]
) -> tuple[str, ...]:
    """What was noted so far and still matters to this model, and what the model cannot do with this input."""
    if card.name == "nearest":  # copies samples, however thick the slices
        return tuple(w for w in noted if "slice thickness" not in w)
    warnings = list(noted)
    shifted = [axis for axis, place in zip(header.grid.axes, places, strict=True) if place.between]
    if shifted and card.project and request.consistency:
        text = "interpolated, and not made to explain the input"
        warnings.append(f"only shifted, by a part of a sample, on {', '.join(shifted)}: {text}")
    axis = header.slice_axis
    if axis is not None and places[axis].changed and request.told == Told():
        thickness = header.facts.get("thickness_mm")
        if thickness and thickness.origin == "assumed" and not any("thickness" in w for w in warnings):
            ways = "give --slice-thickness MM, or auto to estimate it"
            warnings.append(f"the slice thickness is assumed to equal the slice spacing; {ways}")
    if card.caution:
        warnings.append(card.caution)
    return tuple(warnings)


def _beyond(plan: Plan) -> tuple[str, ...]:
    """A reference that lies for the most part outside the input is one of another place, more often than not."""
    margins = [(0.5 + 0.5 / float(place.scale), place.positions(), place.coarse) for place in plan.places]
    within = [float(np.mean((u > -margin) & (u < count - 1 + margin))) for margin, u, count in margins]
    share = 1 - math.prod(within)
    return (f"{share:.1%} of the reference lies outside the input: no samples there",) if share > MOSTLY else ()


def _cut_ends(plan: Plan) -> tuple[str, ...]:
    """What lies partly within a reference, and so far beyond it that it is no constraint: one warning, or none."""
    models = [plan.degradation(c) for c, channel in enumerate(plan.channels) if channel.treatment != "nearest"]
    cut = []
    for axis, place in enumerate(plan.places):
        count = max((int((place.inside() & ~model.sees(axis)).sum()) for model in models), default=0)
        if count:
            slices = f"{count} slice{'s' if count > 1 else ''}"
            cut.append(slices if axis == plan.slice_axis else f"{count} along {plan.coarse.axes[axis]}")
    text = "not compared with the product, for they reach beyond the reference where it cuts the input"
    return (f"{text}: {', '.join(cut)}",) if cut else ()


def threads_for(device: str, card: ModelCard, cores: int) -> int:
    """Tiles that a process makes at a time.

    One with a network on the CPU, which has threads of its own; on a GPU so many that it has work while others project.
    """
    if not card.network:
        return cores
    return max(1, min(MOST_ON_A_DEVICE, cores // 2)) if device == "cuda" else 1


def _count(asked: int | None, name: str, default: int = 1) -> int:
    if asked is not None and asked < 1:
        raise UsageError(what=f"{asked} {name} cannot work", fix=f"give --{name} 1 or more")
    return asked or default


def _fine_grid(
    header: Header, request: Request, reference: Grid | None, warnings: list[str]
) -> tuple[Grid, Orientation]:
    """The grid asked for, along the input's axes, and what turns it onto its own.

    Raises UsageError: what is wrong is the request, not the input.
    """
    try:
        to_input = Orientation.onto(reference or header.grid, header.grid)
        along_input = None if reference is None else to_input.grid(reference)
        return _grid_asked(header, request, along_input, warnings), to_input.inverse
    except GeometryError as error:
        raise UsageError(error.what, error.why, error.fix) from error


def _grid_asked(header: Header, request: Request, reference: Grid | None, warnings: list[str]) -> Grid:
    grid = header.grid
    asked = [request.scale is not None, request.spacing is not None, reference is not None]
    if sum(asked) > 1:
        raise UsageError(
            what="scale, spacing and like (or a guide, which is like one) contradict each other", fix="give one of them"
        )
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
    finer = [target if decimal_fraction(own) > target else None for own in grid.spacing]
    if not any(finer):
        own = " x ".join(f"{s:.4g}" for s in grid.spacing)
        raise UsageError(
            what=f"no axis of the input is coarser than {float(target):.4g} {grid.frame.unit}: its spacing is {own}",
            why="super-resolution only adds samples",
            fix="ask for a finer --spacing, or give --scale",
        )
    return grid.factor_to(finer)


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
        if 1 in grid.shape:
            raise _few_slices(grid, grid.shape.index(1))
        raise UsageError(
            what="the volume is isotropic already", why="there is no finer spacing to take over", fix="give --scale"
        )
    return Factor(tuple(scales))


def _refuse_absurd(factor: Factor, grid: Grid) -> None:
    for axis, scale, length in zip(grid.axes, factor, grid.shape, strict=True):
        if length * scale > MAX_AXIS:
            raise InputError(
                what=f"axis {axis} would have {int(length * scale)} samples",
                why=f"more than {MAX_AXIS} are no image of a sensor; the header may be damaged",
                fix="check the input, or cut it into parts",
            )
    for axis, scale in zip(grid.axes, factor, strict=True):
        if scale > MAX_SCALE:
            raise UsageError(
                what=f"a scale of {float(scale):.4g} on axis {axis} is absurd",
                why=f"above {MAX_SCALE} nothing of the product would be measured",
                fix="ask for less",
            )


def _refuse_blur(header: Header, told: Told) -> None:
    """Raise UsageError if what was told cannot have made this input."""
    profile = told.profile
    if profile is None:
        return
    if profile.in_mm and header.domain == "geo":
        raise UsageError(
            what=f"the degradation {profile} is in millimetres",
            why="that is how slices of a volume are told; pixels of a raster are not measured in them",
            fix="give mtf:M, gaussian:F (in pixels), block or wald",
        )
    grid, axis = header.grid, header.slice_axis or 0
    width = profile.fwhm_coarse(grid.spacing[axis], millimetres=grid.frame.unit == "mm")
    low, high = BLUR_LIMITS
    if not low <= width <= high:
        raise UsageError(
            what=f"the degradation {profile} is {width:.3g} samples wide",
            why=f"real ones measure {low:g} to {high:g}; with a wrong width the result is worse than cubic",
            fix="give another --degradation",
        )


def _card(
    header: Header, places: Sequence[Placement], request: Request, warnings: list[str], *, guided: bool
) -> ModelCard:
    """The model asked for, or the best one that fits; what does not fit is refused with the reason.

    guided: whether there is a guide. Without an image channel it is `nearest`, and nothing else may have been asked.
    """
    if all(channel.kind != "image" for channel in header.channels):
        _refuse_to_mix_labels(header, request)
        return cards.find("nearest")
    refusal = header.facts.get("refuse_networks")
    if request.model is not None:
        card = cards.find(request.model)
        if guided and not card.guided:
            raise UsageError(what=f"{card.name} takes no guide", fix="leave out --model, or --guide")
        if card.guided and not guided:
            raise UsageError(what=f"{card.id} needs a finer image of the same place", fix="name it with --guide")
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
    reasons = []
    for card in reversed(cards.available()):  # the newest version of a name comes last
        suits = card.network and card.estimates == "image" and card.guided == guided
        if not suits or card.domain not in ("any", header.domain):
            continue
        reason = _misfit(card, header, places) or _unknown_blur(card, header, places, request.told)
        if not reason:
            card.verify()
            return card
        reasons.append(reason)
    if guided:
        raise ModelError(
            what=f"no model can use this guide: {reasons[0] if reasons else 'none is installed for such images'}",
            fix="leave out --guide, or name a card with --model",
        )
    if header.domain:
        reason = reasons[0] if reasons else "no network was trained for it"
        warnings.append(f"made with the floor (cubic + projection): {reason}")
    return cards.find("floor")


def _refuse_to_mix_labels(header: Header, request: Request) -> None:
    """Raise InputError if more than repeating labels was asked of an input without an image channel."""
    asked = cards.find(request.model).name if request.model else "--kind image" if request.kind == "image" else ""
    if asked in ("", "nearest"):
        return
    guess = next((channel.guess for channel in header.channels if channel.guess), "")
    told = "--kind says so" if request.kind == "labels" else "the file declares it"
    repeat = "use --model nearest, or leave --model out, to repeat them"
    raise InputError(
        what=f"the input holds labels, not an image: {guess or told}",
        why=f"labels have no values between them, so {asked} cannot be used",
        fix=f"{repeat}; if it is an image, say --kind image" if guess else repeat,
    )


def _misfit(card: ModelCard, header: Header, places: Sequence[Placement]) -> str:
    """Why a network cannot make this product, '' if it can."""
    if card.domain not in ("any", header.domain):
        return f"it was trained for domain '{card.domain}', the input is '{header.domain or 'bare arrays'}'"
    scales = [p.scale for p in places]
    if card.axes == "through-plane" and (header.slice_axis is None or finest(scales) != header.slice_axis):
        slices = "" if header.slice_axis is None else f" ({header.grid.axes[header.slice_axis]})"
        return f"{card.id} refines the slice axis{slices}, and that more than the others"
    return card.suits(scales) or card.misplaced(places)


def _unknown_blur(card: ModelCard, header: Header, places: Sequence[Placement], told: Told) -> str:
    """Why the blur is beyond what a network was trained for, '' if it is not."""
    if card.blur_fwhm_coarse is None:
        return ""
    low, high = card.blur_fwhm_coarse[0] / BLUR_SLACK, card.blur_fwhm_coarse[1] * BLUR_SLACK
    most = max(place.scale for place in places)
    for number, channel in enumerate(header.channels):
        for a, profile in enumerate(header.profiles(number, told)):
            if channel.kind != "image" or places[a].scale != most:  # what else is refined is interpolated
                continue
            width = profile.fwhm_coarse(header.grid.spacing[a], millimetres=header.grid.frame.unit == "mm")
            if not low <= width <= high:
                return f"{profile} is {width:.2g} coarse samples wide, {card.id} knows {low:.2g} to {high:.2g}"
    return ""


def _channel_plan(
    header: Header, number: int, card: ModelCard, request: Request, places: Sequence[Placement]
) -> ChannelPlan:
    channel = header.channels[number]
    image = channel.kind == "image"
    spec = tuple(
        str(profile_between(place, blur)) if place.changed else "same"
        for blur, place in zip(header.profiles(number, request.told), places, strict=True)
    )
    replicated = (not image or card.name == "nearest") and card.estimates == "image"
    treatment = "nearest" if replicated else "network" if card.network and image else "interpolate"
    # the inverse of a shift by half a sample is unbounded: such a product is interpolated, and says so
    project = image and card.project and request.consistency and not any(place.between for place in places)
    return ChannelPlan(channel.name, treatment, spec, channel.noise_model, project)
