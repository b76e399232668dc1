"""What every network of the textbook line must do, in 2-D and 3-D and at every scale, in very small variants."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch

from pipelines.errors import ModelError
from pipelines.networks.textbook import REGISTRY, build
from pipelines.networks.textbook.field import Field, traced
from pipelines.networks.textbook.network import Textbook
from pipelines.networks.textbook.upsampling import UPSAMPLERS, Cubic, shuffled, upsampler

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "srcnn": ("srcnn", {"channels": [4, 3], "kernels": [5, 1, 3]}),
    "vdsr": ("vdsr", {"channels": 4, "layers": 4}),
    "espcn": ("espcn", {"channels": [4, 4], "kernels": [3, 3, 3]}),
    "srresnet": ("srresnet", {"channels": 4, "blocks": 1, "ends": 3}),
    "srresnet with batch norm": ("srresnet", {"channels": 4, "blocks": 1, "ends": 3, "norm": "batch"}),
    "edsr": ("edsr", {"channels": 4, "blocks": 2, "residual_scale": 0.5}),
    "wdsr a": ("wdsr", {"channels": 4, "blocks": 1, "widening": 2}),
    "wdsr b": ("wdsr", {"channels": 4, "blocks": 1, "widening": 3, "kind": "b", "weight_norm": False}),
    "srdensenet": ("srdensenet", {"growth": 3, "layers": 2, "blocks": 2, "channels": 4}),
    "rdn": ("rdn", {"channels": 4, "growth": 3, "layers": 2, "blocks": 2}),
    "drrn": ("drrn", {"channels": 4, "blocks": 1, "units": 2}),
    "memnet": ("memnet", {"channels": 4, "memories": 2, "units": 2}),
    "rcan": ("rcan", {"channels": 4, "groups": 1, "blocks": 1, "reduction": 2, "window": 3}),
    "rcan of the whole image": ("rcan", {"channels": 4, "groups": 1, "blocks": 1, "reduction": 2, "window": 0}),
    "rrdb": ("rrdb", {"channels": 4, "growth": 2, "blocks": 1}),
    "unet": ("unet", {"channels": [4, 4, 6], "units": 0, "upsampler": "interpolate"}),
    "unet of residual units": ("unet", {"channels": [4, 6], "units": 2}),
    "encoder_decoder": ("encoder_decoder", {"channels": [4, 6], "units": 1}),
    "autoencoder": ("autoencoder", {"channels": [4, 4, 6], "kind": "plain"}),
    "autoencoder residual": ("autoencoder", {"channels": [4, 6]}),
    "autoencoder attention": ("autoencoder", {"channels": [4, 6], "kind": "attention"}),
    "autoencoder multiscale": ("autoencoder", {"channels": [4, 6], "kind": "multiscale"}),
    "vae": ("vae", {"channels": [4, 6], "latent": 2}),
    "swinir": ("swinir", {"channels": 4, "groups": 1, "layers": 2, "heads": 2, "window": 2}),
}
"""Small variants by name."""

SCALES = [(2, 2), (3, 3), (4, 1), (2, 2, 2), (4, 1, 1)]
LOCAL = [name for name in SMALL if name != "rcan of the whole image"]

every = pytest.mark.parametrize("scale", SCALES, ids=lambda s: "x".join(map(str, s)))


@lru_cache(maxsize=8)
def trained(name: str, scale: tuple[int, ...]) -> Textbook:
    """As if after some training: nothing is zero, so everything may matter."""
    net = untrained(name, scale).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return net.eval()


@lru_cache(maxsize=256)
def field(name: str, scale: tuple[int, ...]) -> Field:
    return traced(trained(name, scale))


def untrained(name: str, scale: tuple[int, ...]) -> Textbook:
    torch.manual_seed(3)
    network, options = SMALL[name]
    return build(network, scale, **options)


def samples(net: Textbook, least: int = 4, batch: int = 1) -> torch.Tensor:
    shape = [m * math.ceil(least / m) for m in net.multiple_of]
    return torch.randn(batch, 1, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny convolutions only wait for each other on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_network_has_a_small_variant() -> None:
    assert {network for network, _ in SMALL.values()} == set(REGISTRY)


@every
@pytest.mark.parametrize("name", SMALL)
def test_an_untrained_network_is_the_floor_on_the_fine_grid(name: str, scale: tuple[int, ...]) -> None:
    net = untrained(name, scale)
    x = samples(net, batch=2)
    for mode in (True, False):
        y = net.train(mode)(x)
        assert y.shape == (2, 1, *(n * s for n, s in zip(x.shape[2:], scale, strict=True)))
        assert not y.any()


@every
@pytest.mark.parametrize("name", SMALL)
def test_a_gradient_reaches_every_parameter_after_one_step(name: str, scale: tuple[int, ...]) -> None:
    net = untrained(name, scale)
    x = samples(net, least=6, batch=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    target = torch.randn(net(x).shape, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        optimizer.zero_grad()
        (net(x) - target).square().mean().backward()
        optimizer.step()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    assert net.eval()(x).isfinite().all()


@every
@pytest.mark.parametrize("name", LOCAL)
def test_a_tile_with_its_halo_equals_the_whole(name: str, scale: tuple[int, ...]) -> None:
    net, own = trained(name, scale), field(name, scale)
    around = [m * math.ceil(h / m) for h, m in zip(own.halo, own.multiple_of, strict=True)]
    lengths = [2 * (a + m) + m for a, m in zip(around, own.multiple_of, strict=True)]
    x = torch.randn(1, 1, *lengths, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cut = tuple(slice(m, n - m) for n, m in zip(lengths, own.multiple_of, strict=True))
    with torch.inference_mode():
        whole, tile = net(x), net(x[(0, 0, *cut)][None, None])
    for a, (h, m, s) in enumerate(zip(around, own.multiple_of, scale, strict=True)):
        tile = tile.narrow(2 + a, h * s, m * s)
        whole = whole.narrow(2 + a, (h + m) * s, m * s)
    assert whole.abs().max() > 1e-3
    assert (tile - whole).abs().max() <= 1e-12 * whole.abs().max()


@every
@pytest.mark.parametrize("name", LOCAL)
def test_the_traced_halo_is_what_gradients_see(name: str, scale: tuple[int, ...]) -> None:
    """All weights and samples are positive here: nothing is hidden behind a unit that is off."""
    net, own = copy.deepcopy(trained(name, scale)), field(name, scale)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * parameter.abs())
    for axis, (halo, m, s) in enumerate(zip(own.halo, own.multiple_of, scale, strict=True)):
        around = m * math.ceil(halo / m) + m
        shape = [2 * around + m if a == axis else k for a, k in enumerate(own.multiple_of)]
        x = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        reached = 0
        for n in range(around, around + m):
            x.requires_grad_(True).grad = None
            net(x).narrow(2 + axis, n * s, s).square().sum().backward()
            assert x.grad is not None
            seen = x.grad.movedim(2 + axis, -1).flatten(0, -2).any(dim=0).nonzero().flatten()
            reached = max(reached, int((seen - n).abs().max()))
        zero_weights = REGISTRY[SMALL[name][0]].lattice == "fine"  # some of the cubic estimate's
        assert reached <= halo <= reached + zero_weights


@pytest.mark.parametrize(
    ("name", "fine_samples"), [("srcnn", 17), ("vdsr", 41), ("drrn", 105)], ids=["srcnn", "vdsr", "drrn"]
)
def test_published_receptive_fields_are_found(name: str, fine_samples: int) -> None:
    """On the fine lattice as the papers count; the cubic estimate adds two coarse samples on either side."""
    options = {"channels": [2, 2]} if name == "srcnn" else {"channels": 2}
    half = fine_samples // 2
    expected = max(math.floor((s + half) / 2 + 0.25) + 2 for s in (0, 1))
    found = traced(build(name, (2, 2), **options)).halo
    assert found[0] == found[1]
    assert abs(found[0] - expected) <= 1


def test_means_over_the_image_are_not_local() -> None:
    net = untrained("rcan of the whole image", (2, 2))
    with pytest.raises(ModelError, match="rcan is not local"):
        traced(net)
    net.local = True  # whatever it says, the trace finds out
    with pytest.raises(ModelError, match="rcan is not local"):
        traced(net)


def test_samples_that_do_not_fit_the_strides_are_refused() -> None:
    with pytest.raises(ModelError, match=r"unet got 6x8 samples.*multiples of 4x4"):
        untrained("unet", (2, 2))(torch.zeros(1, 1, 6, 8))


def test_latent_variables_are_drawn_in_training_only() -> None:
    net = trained("vae", (2, 2))
    x = samples(net, 8).double()
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))
    latent = next(m for m in net.modules() if hasattr(m, "divergence"))
    assert latent.divergence > 0
    net.eval()


@pytest.mark.parametrize(
    ("name", "scale", "options", "match"),
    [
        ("edrs", (2, 2), {}, "Did you mean 'edsr'"),
        ("edsr", (2,), {}, "scale 2"),
        ("edsr", (1, 1), {}, "scale 1x1"),
        ("edsr", (2.5, 2), {}, "whole multiples"),
        ("edsr", (2, 2), {"chanels": 4}, "Did you mean 'channels'"),
        ("edsr", (2, 2), {"channels": 0}, "no value for the option 'channels'"),
        ("edsr", (2, 2), {"channels": "many"}, "Give one like 64"),
        ("edsr", (2, 2), {"residual_scale": float("nan")}, "Give one like 1.0"),
        ("edsr", (2, 2), {"upsampler": "magic"}, "subpixel, transposed, interpolate"),
        ("srresnet", (2, 2), {"norm": "instance"}, "no norm 'instance'"),
        ("drrn", (2, 2), {"norm": "instance"}, "no norm 'instance'"),
        ("srcnn", (2, 2), {"kernels": [4, 1, 3]}, "no middle sample"),
        ("srcnn", (2, 2), {"kernels": [3, 3]}, "2 kernels do not fit 2"),
        ("wdsr", (2, 2), {"kind": "c"}, "Choose a or b"),
        ("rcan", (2, 2), {"window": 4}, "no middle sample"),
        ("autoencoder", (2, 2), {"kind": "odd"}, "plain, residual, attention, multiscale"),
        ("swinir", (2, 2), {"heads": 7}, "divides the channels"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, scale: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        build(name, scale, **options)


@pytest.mark.parametrize("kind", UPSAMPLERS)
@every
def test_an_upsampler_does_not_shift_the_field_of_view(kind: str, scale: tuple[int, ...]) -> None:
    up = upsampler(kind, scale, 1).double()
    with torch.no_grad():
        for parameter in up.parameters():
            parameter.fill_(1.0 if parameter.ndim > 1 else 0.0)
    x = torch.rand(1, 1, *(7 for _ in scale), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    axes = tuple(range(2, 2 + len(scale)))
    assert (up(x.flip(axes)) - up(x).flip(axes)).abs().max() <= 1e-12, "symmetrical kernels, so mirrored samples"


def test_a_shuffle_is_that_of_torch() -> None:
    x = torch.randn(2, 18, 4, 5)
    assert torch.equal(shuffled(x, (3, 3)), torch.nn.functional.pixel_shuffle(x, 3))


def test_a_new_subpixel_head_makes_no_checkerboard() -> None:
    torch.manual_seed(0)
    y = upsampler("subpixel", (3, 2), 4)(torch.randn(1, 4, 6, 6))
    assert torch.equal(y[:, :, ::3, ::2], y[:, :, 1::3, 1::2])


def test_a_ramp_stays_a_ramp_on_the_fine_lattice() -> None:
    rows = torch.arange(12, dtype=torch.float64)
    fine = Cubic((4, 1))(rows[:, None].expand(12, 3)[None, None])
    place = (torch.arange(48, dtype=torch.float64) + 0.5) / 4 - 0.5
    inner = slice(10, 38)
    assert (fine[0, 0, inner, 1] - place[inner]).abs().max() <= 1e-12
