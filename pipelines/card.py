"""What a model is: its card, where the cards are, and which one a request gets. Needs neither torch nor NumPy.

A bundle is a card and its weights, `NAME-VERSION.json` and `.safetensors`, in configs/models. nearest, linear, cubic
and the floor need no weights; their cards are built in.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipelines.errors import ModelError

if TYPE_CHECKING:
    from pipelines.grid import Placement

_INSTALLED = Path(__file__).parent / "configs"

CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent / "configs"
"""Shipped settings and bundles: inside the package once installed, beside it in a checkout."""

DOMAINS = ("med", "geo", "any")
INTERPOLATIONS = ("nearest", "linear", "cubic", "none")
ESTIMATES = ("image", "error")
AXES = ("through-plane", "image", "any")

MEASURED = ("bytes_per_sample", "bytes_fixed", "kmac_per_sample")
"""Fields that say what a network costs: they change no byte of a product."""

BETWEEN = 2
"""Coarse samples on each side of the nearest one that interpolating a residual touches."""


def finest(scales: Sequence[Fraction | float]) -> int | None:
    """The axis that is refined, and more than any other; None without one."""
    most = max(scales)
    return list(scales).index(most) if most > 1 and list(scales).count(most) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """All that planning needs to know about a model.

    estimates: what it makes of an input, an image or how far from the truth the images of another model are (`error`:
    the standard deviation of each fine sample); error_model: name or, beside the card, file of the one that does so for
    this one, '' without one;
    interpolation: the estimate the residual is added to, or none; project: whether the projection follows unless told
    otherwise; network, options: family in `pipelines.networks` and its shape, None without one; axes: 'through-plane'
    (one axis of a volume; the others may be cut, shifted or refined less), 'image' (both axes of a raster, same scale)
    or 'any'; scales: least and largest it was trained for; blur_fwhm_coarse: the same of the blur [coarse samples];
    noise_over_scale: most noise it was trained for, over
    the 1st to 99th percentile of the samples; halo, multiple_of: coarse samples, the upsampled axis
    of a volume first; local: whether a fine sample depends on the halo only; otherwise windows of twice the halo are
    blended, and what is made is not certified; guided: whether it needs a guide; bytes_per_sample: peak working bytes
    per coarse sample read and channel, bytes_fixed: what comes on top whatever the size; kmac_per_sample: thousand
    multiply-adds per fine sample computed and channel, of a network that is not counted by its options; sha256: of
    weights_file; figures: measured gains; training: what it cost; typical: ranges of `likeness.statistics` met in
    training; contradiction: root mean square of measured - degraded estimate before the projection, over the scale of
    the samples, that it rarely exceeded there.
    """

    name: str
    version: str = "1.0"
    domain: str = "any"
    estimates: str = "image"
    error_model: str = ""
    interpolation: str = "cubic"
    project: bool = True
    network: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    axes: str = "any"
    scales: tuple[float, float] = (1.0, 64.0)
    blur_fwhm_coarse: tuple[float, float] | None = None
    noise_over_scale: float | None = None
    channels: str = "any number, each alone"
    normalisation: str = "none"
    halo: tuple[int, ...] = ()
    multiple_of: tuple[int, ...] = ()
    local: bool = True
    guided: bool = False
    bytes_per_sample: float = 0.0
    bytes_fixed: float = 0.0
    kmac_per_sample: float = 0.0
    sha256: str = ""
    weights_file: str = ""
    trained_on: str = "nothing"
    licence: str = "Apache-2.0"
    figures: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    typical: dict[str, Any] = field(default_factory=dict)
    contradiction: float = 0.0
    notes: str = ""
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("domain", self.domain, DOMAINS),
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("estimates", self.estimates, ESTIMATES),
            ("axes", self.axes, AXES),
        ):
            if value not in allowed:
                raise ModelError(
                    what=f"the card of {self.name} has the {what} '{value}'", fix=f"known are {', '.join(allowed)}"
                )

    @property
    def id(self) -> str:
        """NAME-VERSION."""
        return f"{self.name}-{self.version}"

    @property
    def task(self) -> str:
        """What it is for, in words."""
        if not self.network:
            return "interpolation" + (" that explains the input" if self.project else "")
        if self.estimates == "error":
            return "errors of another model"
        if self.guided:
            return "finer pixels with the detail of a guide"
        return {"through-plane": "thick slices to thin", "image": "finer pixels"}.get(self.axes, "super-resolution")

    @property
    def path(self) -> str:
        """What finds the card again: its file, or its name if it is built in."""
        return str(self.folder / f"{self.id}.json") if self.folder else self.name

    @property
    def of_errors(self) -> ModelCard | None:
        """The card of the error model. Raises ModelError."""
        if not self.error_model:
            return None
        beside = self.error_model.endswith(".json")
        return find(self.folder / self.error_model if beside and self.folder else self.error_model)

    @property
    def digest(self) -> str:
        """SHA-256 of all of the card that may change a product."""
        data = self.to_json()
        for told in ("trained_on", "licence", "figures", "training", "notes", "error_model", *MEASURED):
            data.pop(told)
        for later, usual in (("estimates", "image"), ("typical", {}), ("contradiction", 0.0)):
            if data[later] == usual:
                data.pop(later)
        if self.local:  # as cards were before there were others
            data.pop("local")
        if not self.guided:
            data.pop("guided")
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    @property
    def weights(self) -> Path | None:
        """The safetensors file, None without a network."""
        return self.folder / self.weights_file if self.folder and self.weights_file else None

    @property
    def factors(self) -> tuple[int, ...]:
        """The only scale per axis that the network makes, a volume's most refined axis first; () if it makes any."""
        return tuple(self.options.get("scale", ()))

    def reach(self, places: Sequence[Placement]) -> tuple[int, ...]:
        """The network's halo per axis, in array order (0 without a network)."""
        if not self.network:
            return (0,) * len(places)
        if self.axes == "through-plane":
            axis = finest([place.scale for place in places])
            return tuple(
                self.halo[0] if a == axis else self.halo[1] + BETWEEN * place.changed for a, place in enumerate(places)
            )
        return tuple(self.halo[: len(places)])

    @property
    def caution(self) -> str:
        """What a product of a network that is not local must say, '' of one that is."""
        if self.local:
            return ""
        share = self.figures.get("seam_share")
        seams = f"differ from the whole image's by {share:.1%}" if share is not None else "were not measured"
        sides = "x".join(str(2 * h) for h in self.halo)
        return (
            f"{self.id} is not local, hence not certified: windows of {sides} samples are blended, whose seams {seams}"
        )

    def suits(self, scales: Sequence[Fraction | float]) -> str:
        """'' if the network can upsample by these scales (one per axis), else the reason why not."""
        changed = [float(s) for s in scales if s != 1]
        low, high = self.scales
        if not self.network:
            return ""
        if not changed:
            return f"{self.id} makes samples finer, and none is asked to be"
        if self.axes == "through-plane":
            axis = finest(scales) if len(scales) == 3 else None
            if axis is None:
                return f"{self.id} refines one axis of a volume, and that more than the others"
            changed = [float(scales[axis])]
        if self.guided and (len(scales) != 2 or len(changed) != 2):
            return f"{self.id} refines both axes of an image"
        if (
            self.axes == "image"
            and not self.guided
            and (len(scales) != 2 or len(set(changed)) != 1 or len(changed) != 2)
        ):
            return f"{self.id} upsamples both axes of an image by the same scale"
        if self.factors and self._turned(scales) != self.factors:
            own, asked = ("x".join(f"{float(s):g}" for s in each) for each in (self.factors, self._turned(scales)))
            return f"{self.id} makes exactly {own}, not {asked}"
        if any(not low <= s <= high for s in changed):
            return f"{self.id} was trained for scales {low:g} to {high:g}, not {max(changed):g}"
        return ""

    def misplaced(self, places: Sequence[Placement]) -> str:
        """'' if the network can make samples at these places, whose scales it suits, else the reason why not."""
        if self.network and self.factors and any(place.offset.denominator != 1 for place in places):
            return f"{self.id} divides every input sample evenly, and some samples asked for lie across their faces"
        return ""

    def _turned(self, scales: Sequence[Fraction | float]) -> tuple[Fraction | float, ...]:
        """The scales in the order of `halo`."""
        axis = finest(scales) if self.axes == "through-plane" else None
        return tuple(scales[a] for a in sorted(range(len(scales)), key=lambda a: a != axis))

    def verify(self) -> None:
        """Raise ModelError unless the weights are those the card speaks of."""
        if not self.network:
            return
        path = self.weights
        if path is None or not path.is_file():
            raise ModelError(
                what=f"the weights of {self.id} are missing",
                why=f"{self.weights_file or 'no file'} is not beside its card",
                fix="install the package again, or put the file back",
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ModelError(
                what=f"the weights of {self.id} are not those of its card",
                why=f"the card says sha256 {self.sha256[:12] or 'nothing'}, the file has {found[:12]}",
                fix="install the package again, or correct the card if the change is meant",
            )

    @property
    def weights_bytes(self) -> int:
        """Size of the weights; 0 without any, or where the file is missing."""
        return self.weights.stat().st_size if self.weights and self.weights.is_file() else 0

    @property
    def parameters(self) -> int:
        """Numbers in the weights, as their file's header counts them; 0 without any. Raises ModelError."""
        if not self.weights_bytes or self.weights is None:
            return 0
        try:
            with self.weights.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
            raise ModelError(what=f"the weights of {self.id} cannot be read", why=str(error)) from error

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """Coarse samples per axis, in the order of `halo`, that a fine sample depends on; () without a network."""
        return tuple(2 * h + 1 for h in self.halo)

    @property
    def scale(self) -> str:
        """Scales in words: '1.5-8x', or 'any' without a network."""
        return f"{self.scales[0]:g}-{self.scales[1]:g}x" if self.network else "any"

    def summary(self) -> dict[str, Any]:
        """The card and what follows from it, for people and scripts."""
        return {
            "id": self.id if self.network else self.name,
            "task": self.task,
            "scale": self.scale,
            "weights_bytes": self.weights_bytes,
            "parameters": self.parameters,
            "receptive_field": list(self.receptive_field),
            **self.to_json(),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same card back."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "folder"}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: Path | None = None) -> Self:
        """A card from plain values. Raises ModelError for unknown or missing fields."""
        known = {f.name for f in fields(cls)} - {"folder"}
        unknown = sorted(set(data) - known)
        if unknown or "name" not in data:
            fault = f"the unknown field '{unknown[0]}'" if unknown else "no name"
            raise ModelError(
                what=f"a model card has {fault}", why="it was written for another version", fix="update truescale"
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values, folder=folder)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The card in a JSON file. Raises ModelError."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(what=f"{path.name} cannot be read as a model card", why=str(error)) from error
        if not isinstance(data, dict):
            raise ModelError(what=f"{path.name} is not a model card", why="it holds no JSON object")
        return cls.from_json(data, path.parent)

    def write(self, path: Path) -> None:
        """Write the card as JSON, readable and with one value a line."""
        path.write_text(json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_PLAIN = ModelCard(name="cubic", project=False, trained_on="nothing: no weights")

BUILT_IN: dict[str, ModelCard] = {
    "nearest": replace(_PLAIN, name="nearest", interpolation="nearest", notes="copies the nearest sample"),
    "linear": replace(_PLAIN, name="linear", interpolation="linear", notes="linear interpolation"),
    "cubic": replace(_PLAIN, notes="cubic B-spline interpolation"),
    "floor": replace(_PLAIN, name="floor", project=True, notes="cubic, then the projection: explains the input"),
}
"""Models without weights."""


def available(folder: Path | None = None) -> list[ModelCard]:
    """Built-in models, then the bundles of configs/models by name and version."""
    return [*BUILT_IN.values(), *_bundles(folder)]


def _bundles(folder: Path | None) -> list[ModelCard]:
    cards = [ModelCard.read(p) for p in sorted((folder or CONFIGS / "models").glob("*.json"))]
    return sorted(cards, key=lambda c: (c.name, _order(c.version)))


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))


def find(name_or_path: str | Path, folder: Path | None = None) -> ModelCard:
    """The model of that name (NAME, NAME-VERSION, NAME@VERSION: the newest without a version) or card file.

    Raises ModelError that names the nearest known model.
    """
    text = str(name_or_path)
    if text.endswith(".json"):
        path = Path(text)
        if not path.is_file():
            raise ModelError(what=f"there is no model card {path.name}", fix="give the path of an existing .json")
        return ModelCard.read(path)
    if text in BUILT_IN:
        return BUILT_IN[text]
    bundles = _bundles(folder)
    named = [c for c in bundles if text in (c.name, c.id, f"{c.name}@{c.version}")]
    if named:
        return named[-1]
    names = [*BUILT_IN, *dict.fromkeys(c.name for c in bundles)]
    close = difflib.get_close_matches(text, [*names, *(c.id for c in bundles)], n=1, cutoff=0.5)
    raise ModelError(
        what=f"there is no model '{text}'",
        why=f"known are {', '.join(names)}",
        fix=f"did you mean '{close[0]}'?" if close else "see them with truescale models",
    )
