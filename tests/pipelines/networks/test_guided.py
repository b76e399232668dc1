"""The guided network: what it does not depend on, and what it is before any training."""

from __future__ import annotations

import torch

from pipelines.networks.guided import GuidedNet
from pipelines.networks.guided_shape import GuidedOptions, blocks

OPTIONS = GuidedOptions(channels=8, blocks=1)


def network(seed: int = 0) -> GuidedNet:
    torch.manual_seed(seed)
    net = GuidedNet(OPTIONS)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    return net.eval()


def maps(guides: int = 3, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, 4, side, side), torch.randn(1, guides, 3, side, side), torch.ones(1, guides)


def test_untrained_it_adds_nothing() -> None:
    assert torch.count_nonzero(GuidedNet(OPTIONS)(*maps())) == 0


def test_it_consumes_its_margin() -> None:
    shared, each, weights = maps()
    assert network()(shared, each, weights).shape == (1, 1, 32 - 2 * OPTIONS.margin, 32 - 2 * OPTIONS.margin)


@torch.inference_mode()
def test_the_order_of_guides_does_not_matter_and_their_number_may_change() -> None:
    net, (shared, each, weights) = network(), maps()
    made = net(shared, each, weights)
    assert torch.allclose(made, net(shared, each.flip(1), weights), rtol=0, atol=1e-6)
    fewer = net(shared, each[:, :2], weights[:, :2])
    assert torch.allclose(fewer, net(shared, each, torch.tensor([[1.0, 1.0, 0.0]])), rtol=0, atol=1e-6)
    assert not torch.allclose(made, fewer, rtol=0, atol=1e-3)


@torch.inference_mode()
def test_units_and_constants_do_not_matter() -> None:
    net, (shared, each, weights) = network(), maps()
    made = net(shared, each, weights)
    assert torch.allclose(3 * made, net(3 * shared, 3 * each, weights), rtol=0, atol=1e-4)
    levels = torch.arange(4.0)[:, None, None]
    assert torch.allclose(made, net(shared + levels, each + 3 * levels[:3], weights), rtol=0, atol=1e-4)


def test_blocks_lie_on_the_grid_whatever_range_is_asked_for() -> None:
    assert blocks(0, 600) == [(0, 256), (256, 512), (512, 600)]
    assert blocks(250, 600)[1:] == blocks(0, 600)[1:]
    assert blocks(256, 512) == [(256, 512)]
