"""What judges images while a generator learns: discriminators of patches, and the losses of both.

MONAI's PatchAdversarialLoss is not used: its squares take logits through a leaky ReLU and its hinge through tanh, so a
discriminator that is wrong by much learns little.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from monai.networks.nets.patchgan_discriminator import MultiScalePatchDiscriminator, PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from pipelines.errors import UsageError

Logits = tuple[Tensor, ...]
"""What a discriminator makes: a map of logits (b, 1, *places) per scale: the higher, the more real."""

DualLoss = Callable[[Logits, Logits], Tensor]
"""Called with the logits of real and of made images."""

OPTIONS: dict[str, Any] = {"kind": "patch", "channels": 32, "layers": 3, "scales": 2, "norm": "none", "spectral": True}
"""Of a discriminator, and their defaults."""

NORMS = {"none": None, "instance": "INSTANCE", "batch": "BATCH"}


class _Discriminator(nn.Module):
    """Images (b, c, *spatial) -> logits of patches, one map per scale."""

    def __init__(self, net: nn.Module, least_side: int) -> None:
        super().__init__()
        self.net, self.least_side = net, least_side

    def forward(self, images: Tensor) -> Logits:
        """Raises UsageError for images of fewer than `least_side` samples along an axis."""
        side = min(images.shape[2:])
        if side < self.least_side:
            raise UsageError(
                what=f"a discriminator got images with a side of {side} samples",
                why=f"its layers halve them: it needs {self.least_side}",
                fix="take larger patches, or give it fewer layers or scales",
            )
        made = self.net(images)
        return tuple(made[0]) if isinstance(made, tuple) else (made[-1],)


def discriminator(options: Mapping[str, Any], ndim: int, channels: int) -> nn.Module:
    """A discriminator that is not trained: images (b, channels, *spatial) -> Logits.

    options: of OPTIONS. kind: 'patch' (Isola et al., CVPR 2017) or 'multiscale' (after Wang et al., CVPR 2018: `scales`
    of them on the same image, each with `layers` more than the one before); channels: of its first layer; layers: that
    halve the samples; norm: none, instance or batch; spectral: divide weights by their largest singular value (Miyato
    et al., ICLR 2018), which keeps it from outrunning the generator. Its attribute `least_side` says how small images
    may be. Raises UsageError.
    """
    told = {**OPTIONS, **{key: _checked(key, value) for key, value in options.items()}}
    shared = {
        "spatial_dims": ndim,
        "in_channels": channels,
        "channels": told["channels"],
        "norm": NORMS[told["norm"]],
        "bias": told["norm"] == "none",
        "num_layers_d": told["layers"],
    }
    if told["kind"] == "patch":
        net: nn.Module = PatchDiscriminator(**shared)
        least = 3 * 2 ** told["layers"]  # two layers of 4 samples that do not halve take one each, and leave one
    else:
        halvings = told["layers"] * told["scales"]
        net = MultiScalePatchDiscriminator(num_d=told["scales"], minimum_size_im=2**halvings, **shared)
        least = 2 * 2**halvings
    if told["spectral"]:
        for part in net.modules():
            if isinstance(part, (nn.Conv2d, nn.Conv3d)):
                spectral_norm(part)
    return _Discriminator(net, least)


def losses(kind: str) -> tuple[DualLoss, DualLoss]:
    """The losses (of the discriminator, of the generator); each is called with (real, made) logits: rows of KINDS.

    For the discriminator the logits are of detached images. Means over places, then over scales. Raises UsageError.
    """
    if kind not in KINDS:
        raise _unknown("there is no adversarial loss", kind, KINDS)
    return cast(tuple[DualLoss, DualLoss], tuple(_over_scales(loss) for loss in KINDS[kind]))


def _over_scales(loss: Callable[[Tensor, Tensor], Tensor]) -> DualLoss:
    def mean(real: Logits, made: Logits) -> Tensor:
        return torch.stack([loss(r.float(), m.float()) for r, m in zip(real, made, strict=True)]).mean()

    return mean


def _told(logits: Tensor, real: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))


def _bce_d(real: Tensor, made: Tensor) -> Tensor:
    return _told(real, 1) + _told(made, 0)


def _bce_g(real: Tensor, made: Tensor) -> Tensor:
    del real
    return _told(made, 1)


def _squares_d(real: Tensor, made: Tensor) -> Tensor:
    return 0.5 * ((real - 1).square().mean() + made.square().mean())


def _squares_g(real: Tensor, made: Tensor) -> Tensor:
    del real
    return 0.5 * (made - 1).square().mean()


def _hinge_d(real: Tensor, made: Tensor) -> Tensor:
    return functional.relu(1 - real).mean() + functional.relu(1 + made).mean()


def _hinge_g(real: Tensor, made: Tensor) -> Tensor:
    del real
    return -made.mean()


def _relativistic_d(real: Tensor, made: Tensor) -> Tensor:
    return _told(real - made.mean(), 1) + _told(made - real.mean(), 0)


def _relativistic_g(real: Tensor, made: Tensor) -> Tensor:
    return _relativistic_d(made, real)


KINDS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "bce": (_bce_d, _bce_g),  # Goodfellow et al., NIPS 2014, the generator's loss that does not saturate
    "lsgan": (_squares_d, _squares_g),  # Mao et al., ICCV 2017
    "hinge": (_hinge_d, _hinge_g),  # Lim and Ye, arXiv 1705.02894, 2017
    "relativistic": (_relativistic_d, _relativistic_g),  # the average kind: Jolicoeur-Martineau, ICLR 2019; ESRGAN's
}
"""Of the discriminator and of the generator, by name."""


def _checked(key: str, value: Any) -> Any:
    if key not in OPTIONS:
        raise _unknown("a discriminator has no option", key, OPTIONS)
    choices = {"kind": ("patch", "multiscale"), "norm": NORMS, "spectral": (True, False)}.get(key)
    if choices is None:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    else:
        fits = isinstance(value, type(OPTIONS[key])) and value in choices
    if not fits:
        text = f"choose one of {', '.join(map(str, choices))}" if choices else "give a number of 1 or more"
        raise UsageError(what=f"{value!r} is no {key} of a discriminator", fix=text)
    return value


def _unknown(what: str, name: str, known: Mapping[str, Any]) -> UsageError:
    close = difflib.get_close_matches(name, known, n=1)
    return UsageError(
        what=f"{what} '{name}'",
        why=f"known are {', '.join(known)}",
        fix=f"did you mean '{close[0]}'?" if close else "choose one of them",
    )
