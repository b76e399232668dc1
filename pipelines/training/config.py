"""A training as its YAML says it: read, checked and frozen. Needs no torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ModelError, UsageError
from pipelines.networks.guided_shape import GuidedOptions
from pipelines.networks.shape import LatticeOptions
from pipelines.networks.textbook import MOST_SCALE, REGISTRY

KINDS = ("volumes", "rasters", "fusion")
"""Of training data."""

SCHEDULES = ("cosine", "constant", "step", "late")
"""Of the rate after the warm-up: down to 0 over all steps, the same, a tenth of it after each third of the steps, or
the same until LATE of the steps and down to 0 in the rest."""

LATE = 0.75
"""Until there a training of the schedule `late` does not depend on how many steps it will have (Hägele et al. 2024)."""

NOISES = ("gaussian", "rician", "poisson")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is drawn at random of a pair; shares are of pairs, 0 is never. The forward model makes the pair after it.

    flips, turns: of every axis, of axes with the same scale; contrast: share with another curve of intensities
    (gamma, inverted, rising, any); bias: share with a smooth field; synthetic: share whose regions get intensities at
    random (Billot et al., SynthSR, 2021), label maps always; noise: share with noise, of up to `noise_most` of the
    range, of the `noises` named (none: that of the image, rician for MR and gaussian else); nominal: share with the
    nominal blur, of others the width of a slice over the spacing (gaps below 1) and the modulation of an image at
    the coarse Nyquist lie between the two numbers of `width` and `mtf`; blur: share whose true blur is not the told.
    """

    flips: bool = True
    turns: bool = True
    contrast: float = 0.3
    bias: float = 0.2
    synthetic: float = 0.0
    noise: float = 0.3
    noise_most: float = 0.04
    noises: tuple[str, ...] = ()
    nominal: float = 0.5
    width: tuple[float, float] = (0.6, 1.2)
    mtf: tuple[float, float] = (0.15, 0.45)
    blur: float = 0.3


NOTHING = Augmentation(
    flips=False, turns=False, contrast=0.0, bias=0.0, noise=0.0, nominal=1.0, blur=0.0, synthetic=0.0
)
"""Of the pairs that a training is judged by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adversarial:
    """A discriminator beside the network: a row of `adversarial.KINDS`, its share of the loss and where it starts.

    start: steps without it, in which the network learns fidelity; 0 needs `init_from`. rate: of the discriminator;
    discriminator: its options.
    """

    kind: str = "relativistic"
    weight: float = 0.005
    start: int = 0
    rate: float = 1e-4
    discriminator: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """A training, as its YAML says it. Unknown keys are refused.

    network: options of the shipped family, or `name` of a textbook network and its options, with its `scale`, whole
    numbers per axis. kind: 'volumes', 'rasters', or 'fusion' of the guided family; data: folder under the data folder;
    hold_out: scenes left out; held_out_share: of the scenes, by a hash of their names, that the training is judged by
    and never sees.

    extent: of a patch, in coarse samples per axis (lattice: its side, fine samples of a volume and coarse ones of a
    raster); margin: coarse samples at its faces that the loss leaves out, for the network sees zeros beyond them;
    batch: pairs a step, of all processes; readers: processes that make pairs.

    loss: terms of `losses.TERMS`, and `kl` of a variational network; project: whether the loss sees the projected
    estimate, and the unprojected one with `raw_weight` only. rate, warm_up, schedule, clip, weight_decay, average
    (decay of the averaged weights, which are what is kept): of the optimizer. dropout: share of the channels that the
    last convolutions read. mixed: body in bfloat16; threads: of torch, part of what makes the bytes. check_every: steps
    between looks at the held-out scenes, `checked` pairs of them; patience: looks without a gain after which the
    training ends, 0 for never; then the best weights are kept.

    error_of: name or card of a lattice network; the one trained learns how far from the truth that one's products are;
    error_scale: what the errors it learned of single patches are multiplied with.

    init_from: name or card of a bundle whose weights are the start; freeze: parts of the network (the start of the
    names of its parameters) that stay as they are. search: what `--search` tries.
    """

    name: str
    kind: str
    steps: int
    data: str = ""
    version: str = "1.0"
    network: dict[str, Any] = field(default_factory=dict)
    scale: tuple[int, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    batch: int = 8
    extent: int | tuple[int, ...] = 128
    margin: int = 2
    rate: float = 1e-3
    warm_up: int = 200
    schedule: str = "cosine"
    clip: float = 1.0
    weight_decay: float = 0.0
    dropout: float = 0.0
    average: float = 0.999
    loss: dict[str, Any] = field(default_factory=lambda: {"l1": 1.0})
    project: bool = True
    raw_weight: float = 0.05
    mixed: bool = True
    threads: int = 1
    readers: int = 1
    checkpoint_every: int = 250
    check_every: int = 250
    checked: int = 32
    patience: int = 0
    hold_out: tuple[str, ...] = ()
    held_out_share: float = 0.15
    augment: Augmentation = field(default_factory=Augmentation)
    adversarial: Adversarial | None = None
    error_of: str = ""
    error_scale: float = 1.0
    init_from: str = ""
    freeze: tuple[str, ...] = ()
    search: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> TrainingConfig:
        """From a YAML file. Raises UsageError, naming the nearest known key."""
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(what=f"{path.name} cannot be read as a training config", why=str(error)) from error
        return cls.of(data, path.name)

    @classmethod
    def of(cls, data: Any, name: str = "the config") -> TrainingConfig:
        """From plain values. Raises UsageError."""
        values = _values(cls, data, name)
        if values["kind"] not in KINDS:
            raise UsageError(what=f"{name} trains on '{values['kind']}'", fix=f"choose one of {', '.join(KINDS)}")
        for key, group in (("augment", Augmentation), ("adversarial", Adversarial)):
            if isinstance(values.get(key), Mapping):
                values[key] = group(**_values(group, values[key], f"'{key}' of {name}"))
        config = cls(**values)
        for known, told in ((cls, config), (Augmentation, config.augment), (Adversarial, config.adversarial)):
            if told is not None:
                _check(known, told, name)
        (_check_textbook if config.textbook else _check_lattice)(config, set(values), name)
        return config

    def to_json(self) -> dict[str, Any]:
        """Plain values; `of` gives the same config back."""
        values: dict[str, Any] = _plain(
            {k: v for k, v in asdict(self).items() if not (k == "adversarial" and v is None)}
        )
        return values

    def same_until(self, steps: int) -> int:
        """Steps that a training with so many steps in all, and else as this one, has in common with it."""
        if steps == self.steps:
            return steps
        if self.schedule == "constant":
            return min(steps, self.steps)
        return int(LATE * min(steps, self.steps)) if self.schedule == "late" else 0

    @property
    def textbook(self) -> bool:
        """Whether the network is one of the textbook line."""
        return "name" in self.network

    @property
    def options(self) -> LatticeOptions:
        """Shape of a lattice network."""
        return LatticeOptions.of(self.network)

    @property
    def guided(self) -> GuidedOptions:
        """Shape of a guided network."""
        return GuidedOptions.of(self.network)

    @property
    def patch(self) -> tuple[int, ...]:
        """Coarse samples per axis of a patch of a textbook network."""
        return self.extent if isinstance(self.extent, tuple) else (self.extent,) * len(self.scale)

    @property
    def fine_patch(self) -> tuple[int, ...]:
        """Its fine samples per axis."""
        return tuple(n * s for n, s in zip(self.patch, self.scale, strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _values(cls: type, data: Any, name: str) -> dict[str, Any]:
    """Lists as tuples. Raises UsageError for unknown and missing keys."""
    known = {f.name: f for f in fields(cls)}
    if not isinstance(data, Mapping):
        raise UsageError(what=f"{name} holds no keys", fix=f"known are {', '.join(known)}")
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise UsageError(what=f"{name} has the unknown key '{key}'", fix=f"did you mean '{close[0]}'?")
    missing = [n for n, f in known.items() if n not in data and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise UsageError(what=f"{name} lacks {', '.join(missing)}", why="a training needs it")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def _whole(least: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number of {least} or more", lambda v: type(v) is int and v >= least


def _number(low: float, high: float = math.inf, *, above: bool = False) -> tuple[str, Callable[[Any], bool]]:
    text = f"a number {'above' if above else 'of'} {low:g}" + (f" to {high:g}" if high < math.inf else " or more")

    def fits(value: Any) -> bool:
        return (
            type(value) in (int, float)
            and (low < value if above else low <= value)
            and value <= high
            and value < math.inf
        )

    return text, fits


def _choice(*names: str) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(names)}", lambda v: v in names


def _many(what: str, fits: Callable[[Any], bool]) -> tuple[str, Callable[[Any], bool]]:
    return f"a list of {what}", lambda v: isinstance(v, tuple) and all(fits(x) for x in v)


def _ends(low: float, high: float) -> tuple[str, Callable[[Any], bool]]:
    text = f"two rising numbers from {low:g} to {high:g}"
    return (
        text,
        lambda v: (
            isinstance(v, tuple)
            and len(v) == 2
            and all(type(x) in (int, float) for x in v)
            and low <= v[0] <= v[1] <= high
        ),
    )


_SWITCH = ("true or false", lambda v: isinstance(v, bool))
_TEXT = ("a text", lambda v: isinstance(v, str))
_NAME = ("a name without / or spaces", lambda v: isinstance(v, str) and bool(v) and not set(v) & set("/\\ \t\n"))
_KEYS = ("keys and values", lambda v: isinstance(v, Mapping))
_SHARE = _number(0, 1)
_EXTENT = (
    "a whole number of 2 or more, or one per axis",
    lambda v: all(type(n) is int and n >= 2 for n in (v if isinstance(v, tuple) else (v,))),
)

VALUES: dict[type, dict[str, tuple[str, Callable[[Any], bool]]]] = {
    TrainingConfig: {
        "name": _NAME,
        "kind": _choice(*KINDS),
        "data": _TEXT,
        "version": _NAME,
        "network": _KEYS,
        "scale": _many(f"whole numbers of 1 to {MOST_SCALE}", lambda v: type(v) is int and 1 <= v <= MOST_SCALE),
        "card": _KEYS,
        "loss": _KEYS,
        "search": _KEYS,
        "extent": _EXTENT,
        "schedule": _choice(*SCHEDULES),
        "hold_out": _many("names", lambda v: isinstance(v, str)),
        "freeze": _many("names", lambda v: isinstance(v, str)),
        "held_out_share": _number(0, 0.9),
        "init_from": _TEXT,
        "error_of": _TEXT,
        "weight_decay": _number(0),
        "dropout": _number(0, 0.9),
        "raw_weight": _number(0),
        "average": _number(0, 1),
        **{key: _number(0, above=True) for key in ("rate", "clip", "error_scale")},
        **dict.fromkeys(("project", "mixed"), _SWITCH),
        **{key: _whole(0) for key in ("seed", "margin", "readers", "patience")},
        **{
            key: _whole(1)
            for key in ("steps", "batch", "warm_up", "threads", "checkpoint_every", "check_every", "checked")
        },
    },
    Augmentation: {
        **dict.fromkeys(("flips", "turns"), _SWITCH),
        **dict.fromkeys(("contrast", "bias", "synthetic", "noise", "nominal", "blur"), _SHARE),
        "noise_most": _number(0, 1, above=True),
        "noises": _many(f"some of {', '.join(NOISES)}", lambda v: v in NOISES),
        "width": _ends(0.3, 2.0),
        "mtf": _ends(0.05, 0.8),
    },
    Adversarial: {
        "kind": _TEXT,
        "weight": _number(0, above=True),
        "start": _whole(0),
        "rate": _number(0, above=True),
        "discriminator": _KEYS,
    },
}
"""What each key can be: in words, and whether a value is."""


def _check(cls: type, told: Any, name: str) -> None:
    """Raise UsageError unless every value can be that of its key."""
    for key, (words, fits) in VALUES[cls].items():
        value = getattr(told, key)
        if not fits(value):
            shown = list(value) if isinstance(value, tuple) else value
            raise UsageError(what=f"{name} has the {key} {shown!r}", fix=f"give {words}")


LATTICE_KEYS = frozenset(
    (
        *("name", "kind", "steps", "data", "version", "network", "card", "seed", "batch", "extent", "rate", "warm_up"),
        *("clip", "average", "raw_weight", "mixed", "threads", "readers", "checkpoint_every", "hold_out"),
        *("schedule", "weight_decay", "error_of", "error_scale"),
    )
)
"""Keys that mean something to a lattice network; its pairs have a degradation and contrasts of their own."""


def _check_lattice(config: TrainingConfig, told: set[str], name: str) -> None:
    foreign = sorted(told - LATTICE_KEYS)
    if foreign:
        raise UsageError(
            what=f"{name} has the key '{foreign[0]}' and names no textbook network",
            why="a lattice network has no such choice",
            fix=f"name one like {{name: edsr}} in network ({', '.join(REGISTRY)}), or leave the key out",
        )
    try:
        _ = config.guided if config.kind == "fusion" else config.options
    except TypeError as error:
        raise UsageError(what=f"{name} describes an unknown network", why=str(error)) from error
    if bool(config.error_of) != config.options.positive:
        raise UsageError(
            what=f"{name} has error_of or a positive network, and not both",
            why="errors are told as magnitudes, images are not",
            fix="give both, or neither",
        )
    if isinstance(config.extent, tuple):
        raise UsageError(what=f"{name} has an extent per axis", why="patches of a lattice network are square")


def _check_textbook(config: TrainingConfig, told: set[str], name: str) -> None:
    row = config.network["name"]
    if row not in REGISTRY:
        close = difflib.get_close_matches(str(row), REGISTRY, n=1)
        raise ModelError(
            what=f"{name} names the network '{row}', which is not known",
            why=f"known are {', '.join(REGISTRY)}",
            fix=f"did you mean '{close[0]}'?" if close else "choose one of them",
        )
    if config.kind == "fusion":
        raise UsageError(what=f"{name} trains '{row}' with guides", fix="leave the network's name out")
    axes = {"volumes": 3, "rasters": 2}[config.kind]
    if len(config.scale) != axes or max(config.scale) == 1:
        raise UsageError(
            what=f"{name} has the scale {list(config.scale)}",
            why=f"{config.kind} have {axes} axes, and at least one must become finer",
            fix="give scale: [4, 1, 1] or the like" if axes == 3 else "give scale: [2, 2] or the like",
        )
    if "extent" not in told or len(config.patch) != axes:
        raise UsageError(
            what=f"{name} has no extent for {axes} axes", fix="give the coarse samples of a patch, one number per axis"
        )
    if min(config.patch) <= 2 * config.margin:
        raise UsageError(
            what=f"{name} has patches of {'x'.join(map(str, config.patch))} samples and a margin of {config.margin}",
            why="the loss leaves the margin out, and nothing would be left",
            fix="take a larger extent or a smaller margin",
        )
    if not (config.loss or config.raw_weight):
        raise UsageError(what=f"{name} has no loss", fix="give one like {l1: 1}")
    if config.adversarial and not (config.adversarial.start or config.init_from):
        raise UsageError(
            what=f"{name} trains against a discriminator from its first step",
            why="an untrained network learns nothing from one",
            fix="give init_from: the bundle of a network trained for fidelity, or adversarial: {start: STEPS}",
        )
