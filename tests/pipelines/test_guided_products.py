"""Products with the detail of a guide: through the whole engine, with the shipped network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

import pipelines as ts
from pipelines.degradation import Degradation
from pipelines.grid import Box, Factor
from pipelines.image import ArraySource, Header
from pipelines.planning import Calibration
from pipelines.store import Ledger
from tests.pipelines.files import Run, write_raster
from tests.pipelines.test_runner import Made, _scene, made, raster

MODEL = "guided-geo"


def place(
    shape: tuple[int, int], bands: int = 2, guides: int = 3
) -> tuple[Header, np.ndarray, np.ndarray, ArraySource]:
    """(header and samples of an input, its truth, its guide): bands are mixtures of guides, changing over it."""
    fine = [_scene((2 * shape[0], 2 * shape[1]), k) for k in range(guides)]
    slope = np.linspace(0.2, 1.0, fine[0].shape[1])
    truth = np.stack([fine[k % guides] * slope + 0.5 * fine[(k + 1) % guides] for k in range(bands)])
    header = raster(shape, bands)
    grid = header.grid.rescaled(Factor((2, 2)))
    samples = Degradation.between(header.grid, grid, header.profiles(0)).forward(truth)
    channels = raster(shape, guides).channels
    guide = ArraySource(np.stack(fine), replace(header, grid=grid, channels=channels))
    return header, samples.astype(np.float32), truth, guide


def guided(folder: Path, header: Header, samples: np.ndarray, guide: ArraySource, **asked: object) -> Made:
    return made(folder, samples, header, guide=guide, model=MODEL, **asked)


def between(image: np.ndarray) -> np.ndarray:
    """As if seen by samples that lie half a sample further on both axes."""
    rows = (image[:-1] + image[1:]) / 2
    return np.asarray((rows[:, :-1] + rows[:, 1:]) / 2)


def off(product: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((product - truth) ** 2)))


def test_a_guide_gives_detail_that_the_input_lacks_and_the_input_is_explained(tmp_path: Path) -> None:
    header, samples, truth, guide = place((60, 56))
    product, plan, _ = guided(tmp_path / "a", header, samples, guide)
    floor, _, _ = made(tmp_path / "b", samples, header, scale=2)
    assert plan.fine.same_place(guide.header.grid)
    assert off(product, truth) < 0.5 * off(floor, truth)
    for c in range(len(samples)):
        residual = plan.degradation(c).forward(product[c]) - samples[c]
        assert np.sqrt(np.mean(residual**2)) <= 1e-5 * np.ptp(samples)


def test_six_times_finer_no_kernel_is_extrapolated(tmp_path: Path) -> None:
    header, samples, _, guide = place((60, 56), bands=1)
    sharp = guide.read(Box.whole(guide.header.grid.shape))[:1].repeat(3, axis=1).repeat(3, axis=2)
    fine = replace(guide.header, grid=header.grid.rescaled(Factor((6, 6))), channels=guide.header.channels[:1])
    _, plan, store = guided(tmp_path, header, samples, ArraySource(sharp, fine))
    assert plan.scale == (6.0, 6.0)
    found = Calibration.from_json(store.read_json("calibration.json") or {}).guide
    assert found is not None
    assert [relation.kernel for relation in found.relations] == [(1.0, 0.0, 0.0)]


def test_tiles_change_nothing(tmp_path: Path) -> None:
    header, samples, _, guide = place((150, 140), bands=1)
    whole, _, _ = guided(tmp_path / "0", header, samples, guide, shard=(512, 512))
    for n, shard in enumerate([(256, 256), (256, 512)], start=1):
        product, plan, _ = guided(tmp_path / str(n), header, samples, guide, shard=shard)
        assert plan.tile_count > 1
        assert np.abs(product - whole).max() <= 1e-5 * np.ptp(samples)


def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path) -> None:
    header, samples, _, guide = place((150, 140), bands=1)
    digests = set()
    for workers in (1, 2):
        _, plan, store = guided(tmp_path / str(workers), header, samples, guide, shard=(256, 256), workers=workers)
        records = Ledger(store, plan.run_hash).records()
        assert len(records) == plan.tile_count == 4
        digests.add(tuple(r.checksum for _, r in sorted(records.items())))
    assert len(digests) == 1


def test_the_order_of_the_guides_bands_does_not_matter(tmp_path: Path) -> None:
    header, samples, _, guide = place((40, 36), bands=1)
    turned = ArraySource(guide.read(Box.whole(guide.header.grid.shape))[::-1].copy(), guide.header)
    one, _, _ = guided(tmp_path / "a", header, samples, guide)
    other, _, _ = guided(tmp_path / "b", header, samples, turned)
    assert np.abs(one - other).max() <= 1e-4 * np.ptp(samples)


def test_a_guide_on_a_shifted_grid_gives_its_own_grid(tmp_path: Path) -> None:
    header, samples, truth, guide = place((60, 56), bands=1)
    fine = guide.header.grid
    moved, bands = between(truth[0]), guide.read(Box.whole(fine.shape))
    affine = fine.affine.copy()
    affine[:2, 2] += affine[:2, :2] @ [0.5, 0.5]
    grid = replace(fine, shape=moved.shape, affine=affine)
    other = ArraySource(np.stack([between(band) for band in bands]), replace(guide.header, grid=grid))
    product, plan, _ = guided(tmp_path / "a", header, samples, other)
    floor, _, _ = made(tmp_path / "b", samples, header, scale=2)
    assert plan.fine.same_place(grid)
    inner = (slice(8, -8),) * 2
    assert off(product[0][inner], moved[inner]) < off(between(floor[0])[inner], moved[inner])


def test_another_guide_is_another_run(tmp_path: Path) -> None:
    header, samples, _, guide = place((40, 36), bands=1)
    other = ArraySource(guide.read(Box.whole(guide.header.grid.shape)) + 1, guide.header)
    plans = [guided(tmp_path / str(n), header, samples, g)[1] for n, g in enumerate((guide, other))]
    assert plans[0].run_hash != plans[1].run_hash
    assert type(plans[0]).from_json(plans[0].to_json()).run_hash == plans[0].run_hash


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    _, samples, _, guide = place((40, 36))
    coarse = write_raster(tmp_path / "20m.tif", samples, transform=Affine(20, 0, 500000, 0, -20, 5100000))
    bands = guide.read(Box.whole(guide.header.grid.shape))
    return coarse, write_raster(tmp_path / "10m.tif", bands, transform=Affine(10, 0, 500000, 0, -10, 5100000))


def test_upscale_takes_a_guide_and_its_grid(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    coarse, fine = files
    code, _, err = run("upscale", coarse, tmp_path / "o.tif", "--guide", fine, "--quiet")
    assert code == 0, err
    with rasterio.open(tmp_path / "o.tif") as product, rasterio.open(fine) as guide:
        assert product.shape == guide.shape
        assert product.transform == guide.transform
        assert product.count == 2
        by_command = product.read()
    ts.upscale(coarse, tmp_path / "p.tif", guide=fine)
    with rasterio.open(tmp_path / "p.tif") as product:
        assert np.array_equal(product.read(), by_command)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--scale", "2"], "contradict"),
        (["--model", "floor"], "takes no guide"),
        (["--guide", "20m.tif"], "no finer"),
        (["--guide", "none.tif"], "no file"),
    ],
)
def test_what_does_not_go_with_a_guide_is_said(
    run: Run, files: tuple[Path, Path], tmp_path: Path, more: list[str], said: str
) -> None:
    coarse, fine = files
    more = [str(tmp_path / word) if word.endswith(".tif") else word for word in more]
    code, _, err = run("upscale", coarse, tmp_path / "o.tif", "--guide", fine, *more, "--quiet")
    assert code in (2, 3)
    assert said in err
    assert not (tmp_path / "o.tif").exists()


def test_a_guided_model_without_a_guide_is_refused(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    code, _, err = run("upscale", files[0], tmp_path / "o.tif", "--model", MODEL, "--quiet")
    assert code == 2
    assert "--guide" in err


def test_holes_of_the_guide_are_filled_and_the_product_is_whole(tmp_path: Path) -> None:
    header, samples, _, guide = place((40, 36), bands=1)
    bands = guide.read(Box.whole(guide.header.grid.shape))
    bands[:, 10:20, 10:20] = np.nan
    holed = ArraySource(bands, replace(guide.header, may_have_invalid=True))
    product, _, _ = guided(tmp_path, header, samples, holed)
    assert np.isfinite(product).all()
