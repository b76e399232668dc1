"""The textbook line of super-resolution networks, one file per network and one row in the table below. Without torch.

Every network maps normalised coarse samples (b, 1, *coarse) to a residual (b, 1, *fine), fine = coarse * scale, in 2-D
or 3-D by the length of the scale. Its last convolution starts at zero, so an untrained network is the floor.
Convolutions are zero padded, so the caller crops the halo (`field.traced`): what is left depends on real samples only.

To add one: a file with a function (scale, *, option, ...) -> Textbook, and a row here with all options' defaults.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.errors import ModelError

if TYPE_CHECKING:
    from pipelines.networks.textbook.network import Textbook

MAY_BE_ZERO = ("window", "units")
"""Options that switch something off."""

MOST_SCALE = 16
"""Per axis. The head of a sub-pixel network grows with the product over the axes."""


@dataclass(frozen=True, slots=True)
class Network:
    """A row: who proposed it, where it computes and what it can be told.

    build: 'module:function' in this package; paper: author, venue and year; lattice: 'coarse', or 'fine' for one that
    starts from the cubic estimate and costs the more; options: every option and its default, the paper's unless noted;
    local: whether it depends on a bounded number of samples with these defaults (only then can tiles agree).
    """

    build: str
    paper: str
    lattice: str
    options: Mapping[str, Any]
    local: bool = True


REGISTRY: dict[str, Network] = {
    "srcnn": Network(
        "srcnn:srcnn",
        "Dong et al., ECCV 2014; TPAMI 2016",
        "fine",
        {"channels": [64, 32], "kernels": [9, 5, 5]},
    ),
    "vdsr": Network("vdsr:vdsr", "Kim et al., CVPR 2016", "fine", {"channels": 64, "layers": 20}),
    "espcn": Network(
        "espcn:espcn", "Shi et al., CVPR 2016", "coarse", {"channels": [64, 32], "kernels": [5, 3, 3], "act": "tanh"}
    ),
    "srresnet": Network(
        "residual:srresnet",
        "Ledig et al., CVPR 2017 (the generator of SRGAN); without its batch norm by default",
        "coarse",
        {"channels": 64, "blocks": 16, "ends": 9, "norm": "none", "upsampler": "subpixel"},
    ),
    "edsr": Network(
        "residual:edsr",
        "Lim et al., CVPRW 2017",
        "coarse",
        {"channels": 64, "blocks": 16, "residual_scale": 1.0, "upsampler": "subpixel"},
    ),
    "wdsr": Network(
        "residual:wdsr",
        "Yu et al., arXiv 1808.08718, 2018",
        "coarse",
        {"channels": 32, "blocks": 16, "widening": 4, "kind": "a", "weight_norm": True},
    ),
    "srdensenet": Network(
        "dense:srdensenet",
        "Tong et al., ICCV 2017",
        "coarse",
        {"growth": 16, "layers": 8, "blocks": 8, "channels": 256, "upsampler": "transposed"},
    ),
    "rdn": Network(
        "dense:rdn",
        "Zhang et al., CVPR 2018",
        "coarse",
        {"channels": 64, "growth": 64, "layers": 8, "blocks": 16, "upsampler": "subpixel"},
    ),
    "drrn": Network(
        "recursive:drrn",
        "Tai, Yang and Liu, CVPR 2017; without its batch norm by default",
        "fine",
        {"channels": 128, "blocks": 1, "units": 25, "norm": "none"},
    ),
    "memnet": Network(
        "recursive:memnet",
        "Tai et al., ICCV 2017; without its batch norm by default",
        "fine",
        {"channels": 64, "memories": 6, "units": 6, "norm": "none"},
    ),
    "rcan": Network(
        "rcan:rcan",
        "Zhang et al., ECCV 2018; means over a sliding window instead of the image (window 0: the image, not local)",
        "coarse",
        {"channels": 64, "groups": 10, "blocks": 20, "reduction": 16, "window": 9, "upsampler": "subpixel"},
    ),
    "rrdb": Network(
        "rrdb:rrdb",
        "Wang et al., ECCVW 2018 (the generator of ESRGAN)",
        "coarse",
        {"channels": 64, "growth": 32, "blocks": 23, "residual_scale": 0.2, "upsampler": "interpolate"},
    ),
    "unet": Network(
        "unet:unet",
        "Ronneberger et al., MICCAI 2015; Çiçek et al., MICCAI 2016",
        "coarse",
        {"channels": [32, 64, 128, 256], "units": 2, "upsampler": "transposed"},
    ),
    "encoder_decoder": Network(
        "unet:encoder_decoder",
        "Noh et al., ICCV 2015 (transposed convolutions, no skips)",
        "coarse",
        {"channels": [32, 64, 128], "units": 2, "upsampler": "transposed"},
    ),
    "autoencoder": Network(
        "autoencoder:autoencoder",
        "plain: Hinton and Salakhutdinov, Science 2006; residual: Mao et al., NIPS 2016; attention: Oktay et al., "
        "MIDL 2018; multiscale: Lai et al., CVPR 2017",
        "fine",
        {"channels": [32, 64, 128], "kind": "residual"},
    ),
    "vae": Network(
        "autoencoder:vae",
        "Kingma and Welling, ICLR 2014; a map of latent variables",
        "fine",
        {"channels": [32, 64], "latent": 8},
    ),
    "swinir": Network(
        "swinir:swinir",
        "Liang et al., ICCVW 2021 (the light variant); windows lie on the grid of the image (in 3-D take 4)",
        "coarse",
        {"channels": 60, "groups": 4, "layers": 6, "heads": 6, "window": 8, "mlp_ratio": 2.0, "upsampler": "subpixel"},
    ),
}
"""Networks by name."""


def build(name: str, scale: Sequence[int], **options: Any) -> Textbook:
    """A network that is not trained. scale: integers per axis (2 or 3 axes), at least one above 1.

    Raises ModelError for an unknown name or option, or a value that it cannot take.
    """
    row = _row(name)
    scale = _checked_scale(name, scale)
    told = {**row.options, **{key: _checked(name, row, key, value) for key, value in options.items()}}
    module, _, function = row.build.partition(":")
    net: Textbook = getattr(importlib.import_module(f"{__name__}.{module}"), function)(scale, **told)
    net.options = {"name": name, "scale": list(scale), **told}
    return net


def axes_of(scale: Sequence[int]) -> str:
    """What a card says of the axes: the most refined axis of a volume may be any of its axes."""
    if len(scale) == 2:
        return "image" if scale[0] == scale[1] else "any"
    return "through-plane" if scale[0] > scale[1] == scale[2] else "any"


def _row(name: str) -> Network:
    if name in REGISTRY:
        return REGISTRY[name]
    close = difflib.get_close_matches(name, REGISTRY, n=1)
    raise ModelError(
        what=f"there is no textbook network '{name}'",
        why=f"known are {', '.join(REGISTRY)}",
        fix=f"did you mean '{close[0]}'?" if close else "choose one of them",
    )


def _checked_scale(name: str, scale: Sequence[int]) -> tuple[int, ...]:
    whole = all(isinstance(s, int) and 1 <= s <= MOST_SCALE for s in scale)
    if len(scale) not in (2, 3) or not whole or max(scale) == 1:
        raise ModelError(
            what=f"{name} cannot make the scale {'x'.join(map(str, scale))}",
            why=f"it makes whole multiples up to {MOST_SCALE} of 2 or 3 axes, and at least one of them finer",
            fix="give one integer per axis, like 2x2 or 4x1x1",
        )
    return tuple(scale)


def _checked(name: str, row: Network, key: str, value: Any) -> Any:
    """The value if it can be that of the option. Raises ModelError."""
    if key not in row.options:
        close = difflib.get_close_matches(key, row.options, n=1)
        raise ModelError(
            what=f"{name} has no option '{key}'",
            why=f"its options are {', '.join(row.options)}",
            fix=f"did you mean '{close[0]}'?" if close else "choose one of them",
        )
    default = row.options[key]
    kind = type(default)
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if kind is float and fits:
        fits = 0 < value < math.inf
    numbers = value if isinstance(value, list) else [value] if kind is int else []
    least = 0 if key in MAY_BE_ZERO else 1
    if (
        not fits
        or (isinstance(value, list) and not value)
        or not all(isinstance(n, int) and n >= least for n in numbers)
    ):
        raise ModelError(
            what=f"{value!r} is no value for the option '{key}' of {name}",
            fix=f"give one like {default!r}",
        )
    return value
