from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipelines.errors import ModelError
from pipelines.grid import Box, Placement, fine_length
from pipelines.networks import Condition
from pipelines.networks.lattice import LatticeNet, locate
from pipelines.networks.predictor import LatticePredictor
from pipelines.networks.shape import LatticeOptions
from pipelines.tiles import reflected

VOLUME = LatticeOptions(channels=8, blocks=2, basis=5, planes=3, fold=2, thin=True, phases=1, hidden=16)
IMAGE = LatticeOptions(channels=8, blocks=2, basis=5, hidden=16)
SHARED = Fraction(1)


def predictor(options: LatticeOptions, *, trained: bool = True) -> LatticePredictor:
    """A network with fixed random weights; untrained: as training would start."""
    torch.manual_seed(3)
    net = LatticeNet(options)
    if trained:
        torch.nn.init.normal_(net.last.conv.weight, std=0.5)
        torch.nn.init.normal_(net.film[2].weight, std=0.1)
    return LatticePredictor(net)


def placement(coarse: int, scale: Fraction) -> Placement:
    """Lattices that share their centre."""
    fine = fine_length(coarse, scale)
    return Placement(coarse, fine, scale, (scale - 1) / 2 + (fine - coarse * scale) / 2)


def scene(places: tuple[Placement, ...], channels: int = 1) -> NDArray[np.float32]:
    """Noise on the coarse lattice."""
    return np.random.default_rng(5).normal(size=(channels, *(p.coarse for p in places))).astype(np.float32)


def residual(
    net: LatticePredictor,
    samples: NDArray[np.float32],
    places: tuple[Placement, ...],
    write: Box | None = None,
    condition: Condition | None = None,
    margin: int = 0,
) -> NDArray[np.float32]:
    """r of a write box (default: all), reading exactly the halo and `margin` more."""
    write = write or Box.whole([p.fine for p in places])
    low, high = [], []
    for a, (p, halo) in enumerate(zip(places, net.reach(places), strict=True)):
        index = locate(p.coordinates(write.start[a], write.stop[a]))[0]
        low.append(min(index) - halo - margin)
        high.append(max(index) + 1 + halo + margin)
    read = Box(tuple(low), tuple(high))
    for a, p in enumerate(places):
        samples = np.take(samples, reflected(read.start[a], read.stop[a], p.coarse), axis=a + 1)
    told = condition or Condition((1.0,) * len(samples), (0.0,) * len(samples))
    return net.residual(samples, read, write, places, told)


def volume_places(scale: Fraction = Fraction(4), axis: int = 0) -> tuple[Placement, ...]:
    """A volume of 9 thick slices along `axis` and 20 x 23 columns."""
    across = iter((20, 23))
    return tuple(placement(9, scale) if a == axis else placement(next(across), SHARED) for a in range(3))


def image_places(scale: Fraction = Fraction(2)) -> tuple[Placement, ...]:
    """An image of 21 x 26 samples."""
    return placement(21, scale), placement(26, scale)


CASES = [(VOLUME, volume_places()), (IMAGE, image_places())]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny convolutions only wait for each other on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("options", "places"), CASES)
def test_an_untrained_network_is_the_floor(options: LatticeOptions, places: tuple[Placement, ...]) -> None:
    assert not residual(predictor(options, trained=False), scene(places), places).any()


@pytest.mark.parametrize(("options", "places"), CASES)
def test_units_and_offsets_do_not_matter(options: LatticeOptions, places: tuple[Placement, ...]) -> None:
    net, samples = predictor(options), scene(places)
    r = residual(net, samples, places)
    assert np.abs(r).max() > 0.01
    scaled = residual(net, (300 * samples + 20).astype(np.float32), places) / 300
    assert np.abs(scaled - r).max() <= 1e-4 * np.abs(r).max()


@pytest.mark.parametrize(("options", "places"), CASES)
def test_a_constant_stays_a_constant(options: LatticeOptions, places: tuple[Placement, ...]) -> None:
    samples = np.full((1, *(p.coarse for p in places)), 7.0, np.float32)
    assert np.abs(residual(predictor(options), samples, places)).max() <= 1e-5


@pytest.mark.parametrize("scale", [Fraction(2), Fraction(4), Fraction(25, 6)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tiles_of_a_volume_equal_the_whole(scale: Fraction, axis: int) -> None:
    places = volume_places(scale, axis)
    net, samples = predictor(VOLUME), scene(places)
    whole = residual(net, samples, places)
    cuts = [(0, p.fine // 3, p.fine // 2 + 1, p.fine) for p in places]
    for i in range(3):
        write = Box(tuple(c[i] for c in cuts), tuple(c[i + 1] for c in cuts))
        tile = residual(net, samples, places, write, margin=i)
        assert np.abs(tile - whole[:, *write.slices]).max() <= 1e-5


@pytest.mark.parametrize("scale", [Fraction(2), Fraction(4), Fraction(25, 6)])
def test_tiles_of_an_image_equal_the_whole(scale: Fraction, monkeypatch: pytest.MonkeyPatch) -> None:
    places = image_places(scale)
    net, samples = predictor(IMAGE), scene(places, channels=2)
    whole = residual(net, samples, places)
    monkeypatch.setattr(net, "_block", 7)
    assert np.abs(residual(net, samples, places) - whole).max() <= 1e-5
    write = Box((5, 11), (places[0].fine - 3, 40))
    assert np.abs(residual(net, samples, places, write) - whole[:, *write.slices]).max() <= 1e-5


def test_a_cut_of_the_plane_is_a_part_of_the_whole() -> None:
    places = volume_places()
    net, samples = predictor(VOLUME), scene(places)
    whole = residual(net, samples, places)
    cut = (places[0], Placement(20, 11, SHARED, Fraction(-6)), places[2])
    assert np.abs(residual(net, samples, cut) - whole[:, :, 6:17]).max() <= 1e-6


@pytest.mark.parametrize("scale", [Fraction(1), Fraction(127, 125), Fraction(2)])
def test_a_residual_between_the_samples_of_the_plane_is_interpolated(scale: Fraction) -> None:
    shifted = Placement(20, math.floor(20 * scale), scale, Fraction(2, 5))
    thick, _, across = volume_places()
    places = (thick, shifted, across)
    net, samples = predictor(VOLUME), scene(places)
    whole = residual(net, samples, places)
    write = Box((5, 4, 3), (30, 17, 20))
    assert np.abs(residual(net, samples, places, write) - whole[:, *write.slices]).max() <= 1e-5
    on_lattice = residual(net, samples, volume_places())
    u = np.array([float(c) for c in shifted.coordinates(5, 14)])
    neighbours = [on_lattice[:, :, np.floor(u).astype(int) + k] for k in range(2)]
    low, high = np.minimum(*neighbours), np.maximum(*neighbours)
    spread = np.abs(on_lattice).max()
    assert ((whole[:, :, 5:14] >= low - 0.3 * spread) & (whole[:, :, 5:14] <= high + 0.3 * spread)).all()


@pytest.mark.parametrize(("options", "places"), CASES)
def test_half_precision_changes_little_and_agrees_between_tiles(
    options: LatticeOptions, places: tuple[Placement, ...]
) -> None:
    torch.manual_seed(3)
    net = LatticeNet(options, mixed=True)
    net.load_state_dict(predictor(options)._net.state_dict())
    half, samples = LatticePredictor(net), scene(places)
    whole, exact = residual(half, samples, places), residual(predictor(options), samples, places)
    assert 0 < np.abs(whole - exact).max() <= 0.02 * np.abs(exact).max()
    write = Box(tuple(p.fine // 3 for p in places), tuple(p.fine for p in places))
    assert np.abs(residual(half, samples, places, write) - whole[:, *write.slices]).max() <= 1e-5


def test_any_subset_of_fine_planes_has_the_same_bytes() -> None:
    places = volume_places(Fraction(25, 6))
    net, samples = predictor(VOLUME), scene(places)
    read = Box.whole((9, 20, 23)).grow(net.reach(places))
    for a, p in enumerate(places):
        samples = np.take(samples, reflected(read.start[a], read.stop[a], p.coarse), axis=a + 1)
    told = Condition((1.0,), (0.0,))
    rows = [net.residual(samples, read, Box((n, 0, 0), (n + 1, 20, 23)), places, told) for n in (0, 12, 13, 36)]
    pair = net.residual(samples, read, Box((12, 0, 0), (14, 20, 23)), places, told)
    assert np.abs(np.concatenate(rows[1:3], axis=1) - pair).max() <= 1e-6


def test_a_batch_never_depends_on_how_many_planes_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    places = volume_places()
    net, samples = predictor(VOLUME), scene(places)
    whole = residual(net, samples, places)
    monkeypatch.setattr("pipelines.networks.predictor.BATCH_SAMPLES", 2000)
    assert np.abs(residual(net, samples, places) - whole).max() <= 1e-5


@pytest.mark.parametrize(("options", "places"), CASES)
def test_the_halo_is_what_a_sample_depends_on(options: LatticeOptions, places: tuple[Placement, ...]) -> None:
    """NaN anywhere beyond the halo leaves the sample finite; NaN at the halo, for some sample, does not."""
    net = predictor(options)
    halo = net.reach(places)
    reached = [0] * len(places)
    for shift in range(2):  # both phases of the fold
        start = tuple(p.fine // 2 + shift for p in places)
        write = Box(start, tuple(n + 1 for n in start))
        centre = [locate(p.coordinates(n, n + 1))[0][0] for p, n in zip(places, start, strict=True)]
        read = Box(
            tuple(c - h - 3 for c, h in zip(centre, halo, strict=True)),
            tuple(c + h + 4 for c, h in zip(centre, halo, strict=True)),
        )
        for a, h in enumerate(halo):
            for distance in (-h - 2, -h - 1, -h, 0, h, h + 1, h + 2):
                samples = np.ones((1, *read.shape), np.float32)
                np.moveaxis(samples, a + 1, 0)[distance + h + 3] = np.nan
                r = net.residual(samples, read, write, places, Condition((1.0,), (0.0,)))
                if np.isnan(r).any():
                    assert abs(distance) <= h
                    reached[a] = max(reached[a], abs(distance))
    assert tuple(reached) == halo


@pytest.mark.parametrize(("options", "places"), CASES)
def test_a_read_box_without_the_halo_is_refused(options: LatticeOptions, places: tuple[Placement, ...]) -> None:
    net = predictor(options)
    shape = tuple(p.coarse for p in places)
    with pytest.raises(ModelError, match="too few"):
        net.residual(
            scene(places), Box.whole(shape), Box.whole([p.fine for p in places]), places, Condition((1.0,), (0.0,))
        )


def test_axes_that_do_not_suit_are_refused() -> None:
    with pytest.raises(ModelError, match="one axis of a volume most, not 2 of 3"):
        predictor(VOLUME).reach((placement(9, Fraction(2)), placement(9, Fraction(2)), placement(9, SHARED)))
    with pytest.raises(ModelError, match="both axes of an image, not 1 of 3"):
        predictor(IMAGE).reach(volume_places())


@pytest.mark.parametrize(("options", "places"), CASES)
def test_any_device_threads_give_the_same_bytes(options: LatticeOptions, places: tuple[Placement, ...]) -> None:
    net, samples = predictor(replace(options, channels=32)), scene(places)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append(residual(net, samples, places).tobytes())
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


def test_each_channel_hears_its_own_condition() -> None:
    places = image_places()
    net, samples = predictor(IMAGE), scene(places, channels=2)
    both = residual(net, samples, places, condition=Condition((1.0, 1.4), (0.0, 0.03)))
    second = residual(net, samples[1:], places, condition=Condition((1.4,), (0.03,)))
    assert np.array_equal(both[1:], second)
    assert np.abs(both - residual(net, samples, places)).max() > 1e-3


def test_an_integer_scale_is_a_sub_pixel_convolution() -> None:
    """At 2x the four phases are the four sub-lattices, each one weighted sum of the same maps."""
    places = image_places()
    net, samples = predictor(IMAGE), scene(places)
    r = residual(net, samples, places)[0]
    margin = IMAGE.margin[0]
    rows, columns = (reflected(-margin, p.coarse + margin, p.coarse) for p in places)
    told = torch.tensor([-1.0, 0.0, 0.0])
    maps = net._net(torch.from_numpy(samples[0][rows][:, columns])[None, None], told)[0]
    for y in (0, 1):
        for x in (0, 1):
            phase = torch.tensor([[y / 2 - 0.25, x / 2 - 0.25]])
            expected = torch.einsum("k,kij->ij", net._net.basis(phase, told)[0], maps).detach().numpy()
            assert np.abs(r[y::2, x::2] - expected).max() <= 1e-5
