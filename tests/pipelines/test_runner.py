"""The engine on arrays: where samples land, tiles and workers that change nothing, restarts, noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pipelines import guiding, runner, stages
from pipelines.degradation import Profile
from pipelines.errors import InputError, StoppedError, TileError
from pipelines.grid import Box, Factor, Frame, Grid
from pipelines.image import IN_PLANE, ArraySource, Channel, Header, Source
from pipelines.planning import Plan
from pipelines.product import StoredProduct
from pipelines.report import Stopwatch
from pipelines.request import Request
from pipelines.store import Ledger, Record, Store
from pipelines.worker import Worker

Made = tuple[np.ndarray, Plan, Store]


def volume(shape: tuple[int, int, int] = (26, 40, 36), spacing: float = 5.0, thickness: float = 5.0) -> Header:
    profiles = (Profile("slice", thickness), IN_PLANE, IN_PLANE)
    affine = np.diag([spacing, 1.0, 1.0, 1.0])
    return Header(
        Grid("zyx", shape, affine, Frame("mm", "patient")),
        (Channel("image", profiles, noise_model="rician"),),
        domain="med",
        modality="MR",
        slice_axis=0,
    )


def raster(shape: tuple[int, int] = (150, 140), bands: int = 1) -> Header:
    grid = Grid("yx", shape, np.array([[0, 10.0, 500000], [-10, 0, 5e6], [0, 0, 1]]), Frame("m", "map", "test"))
    profiles = (Profile("mtf", 0.3),) * 2
    return Header(grid, tuple(Channel(f"b{k}", profiles) for k in range(bands)), domain="geo", modality="optical")


def made(
    folder: Path,
    samples: np.ndarray,
    header: Header,
    *,
    shard: tuple[int, ...] | None = None,
    guide: Source | None = None,
    **asked: object,
) -> Made:
    source = ArraySource(samples, header)
    request = Request(**{"model": "floor", "noise": 0, **asked})  # type: ignore[arg-type]
    plan = runner.plan(source, request, guide=guide)
    plan = replace(plan, shard=shard) if shard else plan
    store = Store(folder)
    store.write_json("plan.json", plan.to_json())
    if guide is not None:
        guiding.ingest(store, guide, plan)
    _run(store, source, plan)
    return StoredProduct(store, replace(header, grid=plan.fine), plan).read(Box.whole(plan.fine.shape)), plan, store


def _run(
    store: Store, source: Source, plan: Plan, stopped: Callable[[], bool] = stages.never
) -> tuple[int, dict[int, Record]]:
    watch = Stopwatch()
    with stages.crew_of(store, plan, watch) as crew:
        return stages.run(store, source, plan, crew, watch=watch, stopped=stopped)


def _scene(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    scene = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    return (1000 * scene / np.ptp(scene)).astype(np.float32)


@pytest.mark.parametrize("scale", ["2", "4", "4.5", "25/6"])
def test_a_ramp_through_the_slices_lands_where_it_should(tmp_path: Path, scale: str) -> None:
    header = volume((30, 6, 5))
    ramp = np.broadcast_to(
        header.grid.world(np.stack([np.arange(30.0)] + [np.zeros(30)] * 2, 1))[:, :1, None], (30, 6, 5)
    )
    product, plan, _ = made(tmp_path, ramp, header, scale=f"{scale}x1x1")
    truth = plan.fine.world(np.stack([np.arange(plan.fine.shape[0])] + [np.zeros(plan.fine.shape[0])] * 2, 1))[:, 0]
    error = np.abs(product[0, :, 3, 2] - truth)
    # edge samples are held, which is no ramp: that wears off by a factor of about 3 a slice
    for slices, tolerance in ((8, 1.6e-4), (9, 1e-4)):
        inner = [slices <= u <= 29 - slices for u in plan.places[0].coordinates()]
        assert error[inner].max() <= tolerance
    assert np.abs(np.diff(plan.fine.faces() - plan.coarse.faces(), axis=0)).max() <= 5.0 / plan.scale[0] / 2


@pytest.mark.parametrize("scale", ["2", "4", "3", "4.5", "25/6", "5/2"])
def test_a_ramp_across_an_image_lands_where_it_should(tmp_path: Path, scale: str) -> None:
    header = replace(raster((56, 48)), dtype="float64")
    rows, columns = np.mgrid[:56, :48].astype(float)
    product, plan, _ = made(tmp_path, rows + 2 * columns, header, scale=scale)
    s = float(Fraction(scale))
    fine_rows, fine_columns = np.mgrid[: plan.fine.shape[0], : plan.fine.shape[1]]
    offset = [float(p.first) for p in plan.places]
    truth = (fine_rows - offset[0]) / s + 2 * (fine_columns - offset[1]) / s
    inner = (slice(int(16 * s), -int(16 * s)),) * 2
    # the blur is cut at 4 sigma by definition: between lattice points that is lopsided, and moves a row's centre
    model = plan.degradation(0).matrices[1]
    assert model is not None
    centres = np.abs(model @ np.arange(model.shape[1]) - plan.places[1].centres())[16:-16].max() / s
    assert centres <= (1e-12 if s == int(s) else 1e-5)
    worst = np.abs(product[0] - truth)[inner].max()  # of 1 a row and 2 a column
    assert worst <= 1e-6 + (1 + 2) * 4 * centres


SHARDS = {2: [(512, 512), (256, 256), (512, 256)], 3: [(256, 64, 64), (64, 32, 64), (32, 32, 32)]}


@pytest.mark.parametrize(
    ("header", "scale"),
    [(volume((40, 70, 64), 4.0, 4.0), "4x1x1"), (raster((260, 150)), "2"), (raster((130, 120)), "4")],
    ids=["volume", "image 2x", "image 4x"],
)
def test_tiles_change_nothing(tmp_path: Path, header: Header, scale: str) -> None:
    samples = _scene(header.grid.shape)
    products = []
    for number, shard in enumerate(SHARDS[header.grid.ndim]):
        product, plan, _ = made(tmp_path / str(number), samples, header, scale=scale, shard=shard)
        products.append(product)
        assert plan.tile_count == len(plan.cover(Worker(tmp_path / str(number)).card))
    for product in products[1:]:
        assert np.abs(product - products[0]).max() <= 1e-6 * np.ptp(samples)


def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path) -> None:
    header = raster((300, 260), bands=2)
    samples = np.stack([_scene((300, 260), k) for k in range(2)])
    digests = set()
    for workers in (1, 2, 3, 4):
        _, plan, store = made(
            tmp_path / str(workers), samples, header, scale=2, shard=(256, 256), workers=workers, noise="auto"
        )
        digests.add(tuple(r.checksum for _, r in sorted(Ledger(store, plan.run_hash).records().items())))
    assert len(digests) == 1


def test_the_product_degraded_again_is_the_input(tmp_path: Path) -> None:
    header = volume((24, 40, 36), 4.0, 4.0)
    samples = _scene(header.grid.shape)
    product, plan, _ = made(tmp_path, samples, header, scale="4x1x1")
    residual = plan.degradation(0).forward(product[0]) - samples
    assert np.sqrt(np.mean(residual**2)) <= 1e-6 * np.ptp(samples)


def test_a_killed_run_goes_on_and_makes_the_same_bytes(tmp_path: Path) -> None:
    header = raster((300, 260))
    samples = _scene((300, 260))
    whole, plan, finished = made(tmp_path / "a", samples, header, scale=2, shard=(256, 256), workers=1)
    del whole
    store = Store(tmp_path / "b")
    store.write_json("plan.json", plan.to_json())
    count = [0]

    def stopped() -> bool:
        count[0] += 1
        return count[0] > 4

    with pytest.raises(StoppedError):
        _run(store, ArraySource(samples, header), plan, stopped)
    found = set(Ledger(store, plan.run_hash).records())
    assert len(found) < plan.tile_count
    done, records = _run(store, ArraySource(samples, header), plan)
    assert done == len(found)
    expected = Ledger(finished, plan.run_hash).records()
    assert {t: r.checksum for t, r in records.items()} == {t: r.checksum for t, r in expected.items()}


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    header = raster((300, 260))
    samples = _scene((300, 260))
    _, plan, store = made(tmp_path, samples, header, scale=2, shard=(256, 256))
    path = store.shard_path((1, 0))
    content = path.read_bytes()
    path.write_bytes(content[:-8] + b"damaged!")
    done, _ = _run(store, ArraySource(samples, header), plan)
    assert done == plan.tile_count - 1
    assert path.read_bytes() == content


def test_a_shard_of_zeros_is_a_shard(tmp_path: Path) -> None:
    samples = np.zeros((300, 260))
    samples[200:, 200:] = _scene((100, 60))
    product, plan, store = made(tmp_path, samples, raster((300, 260)), scale=2, shard=(256, 256))
    assert product[0, :100, :100].max() == 0
    assert len(Ledger(store, plan.run_hash).records()) == plan.tile_count


def test_a_failing_tile_is_named_and_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = raster((300, 260))
    samples = _scene((300, 260))
    good = Worker.compute

    def failing(self: Worker, tile: object, window: object) -> object:
        if tile.index == 1:  # type: ignore[attr-defined]
            raise ValueError("planted")
        return good(self, tile, window)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "compute", failing)
    with pytest.raises(TileError, match="tile 1: planted"):
        made(tmp_path, samples, header, scale=2, shard=(256, 256))
    monkeypatch.undo()
    _, plan, _ = made(tmp_path, samples, header, scale=2, shard=(256, 256))
    assert plan.tile_count > 1


def test_holes_stay_holes_and_do_not_leak(tmp_path: Path) -> None:
    header = replace(raster((80, 70)), may_have_invalid=True)
    samples = _scene((80, 70)) + 500
    holed = samples.copy()
    holed[20:30, 40:60] = np.nan
    holed[0, 0] = np.nan
    garbage = np.where(np.isnan(holed), np.inf, holed)
    product, _, _ = made(tmp_path / "a", holed, header, scale=2)
    again, _, _ = made(tmp_path / "b", garbage, header, scale=2)
    assert np.array_equal(np.isnan(product[0]), np.repeat(np.repeat(np.isnan(holed), 2, 0), 2, 1))
    assert np.array_equal(product, again, equal_nan=True)
    clean, _, _ = made(tmp_path / "c", samples, raster((80, 70)), scale=2)
    far = np.ones((160, 140), bool)
    far[:80, 40:] = False
    far[:40, :40] = False
    assert np.abs(product[0] - clean[0])[far].max() <= 1e-4 * 1000  # of the range


def test_a_constant_stays_constant(tmp_path: Path) -> None:
    samples = np.stack([np.full((40, 40), 7.0), _scene((40, 40))])
    product, _, _ = made(tmp_path, samples, raster((40, 40), bands=2), scale=2)
    assert np.abs(product[0] - 7).max() <= 1e-5


@pytest.mark.parametrize("value", [7.0, np.nan])
def test_an_image_of_one_value_or_none_is_refused(tmp_path: Path, value: float) -> None:
    header = replace(raster((40, 40)), may_have_invalid=True)
    with pytest.raises(InputError, match="valid sample"):
        made(tmp_path, np.full((40, 40), value), header, scale=2)


def test_a_label_map_is_refused_and_replicated_when_asked(tmp_path: Path) -> None:
    labels = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 9, (8, 8)), 12, 0), 12, 1)
    with pytest.raises(InputError, match="label map"):
        made(tmp_path / "a", labels, raster((96, 96)), scale=2)
    product, _, _ = made(tmp_path / "b", labels, raster((96, 96)), scale=2, model="nearest")
    assert np.array_equal(product[0], np.repeat(np.repeat(labels, 2, 0), 2, 1))


@pytest.mark.parametrize("flip", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_flipped_volume_gives_the_flipped_product(tmp_path: Path, flip: tuple[int, ...]) -> None:
    header = volume((12, 20, 18), 4.0, 4.0)
    samples = _scene(header.grid.shape)
    straight, _, _ = made(tmp_path / "a", samples, header, scale="5/2x1x1")
    mirrored, _, _ = made(tmp_path / "b", np.flip(samples, flip), header, scale="5/2x1x1")
    assert np.abs(np.flip(mirrored[0], flip) - straight[0]).max() <= 1e-6 * np.ptp(samples)


def test_noise_is_explained_within_itself_and_beats_fitting_it(tmp_path: Path) -> None:
    header = volume((24, 48, 48), 4.0, 4.0)
    fine = header.grid.rescaled(Factor((Fraction(4), Fraction(1), Fraction(1))))
    rng = np.random.default_rng(3)
    truth = ndimage.gaussian_filter(rng.normal(size=fine.shape), 1.5)
    truth = 500 + 400 * truth / np.abs(truth).max()
    model = header.degradation(fine)
    clean = model.forward(truth)
    sigma = 14.0
    noisy = np.hypot(clean + rng.normal(0, sigma, clean.shape), rng.normal(0, sigma, clean.shape))

    def error(noise: float) -> tuple[float, np.ndarray]:
        product, _, _ = made(tmp_path / str(noise), noisy, header, scale="4x1x1", noise=noise)
        return float(np.sqrt(np.mean((product[0] - truth) ** 2))), product[0]

    told, product = error(sigma)
    assert np.sqrt(np.mean((model.forward(product) - noisy) ** 2)) <= 1.2 * sigma
    assert told <= error(0)[0] * 1.0001


def collect(progress: list[tuple[str, int, int]]) -> Callable[[str, int, int], None]:
    return lambda *step: progress.append(step)


def test_a_file_run_reports_every_stage(tmp_path: Path) -> None:
    header = raster((64, 60), bands=2)
    samples = np.stack([_scene((64, 60), k) for k in range(2)])
    seen: list[tuple[str, int, int]] = []
    report = runner.upscale(
        ArraySource(samples, header), tmp_path / "out.zarr", scale=2, model="floor", noise=0, progress=collect(seen)
    )
    assert {"read", "tiles", "export", "verify"} <= {stage for stage, _, _ in seen}
    assert report.shape_after == (128, 120)
    assert report.consistency_rmse is not None
    assert report.consistency_rmse <= 1e-4
    assert report.consistency_over_noise is None
    assert not (tmp_path / "out.zarr.work").exists()
    assert (tmp_path / "out.zarr.report.json").exists()


TURNED = np.array([[0.98, -0.17, 0.05], [0.16, 0.97, 0.17], [-0.08, -0.16, 0.98]])
AFFINES = {
    "straight": np.eye(3),
    "oblique": TURNED,
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "permuted": np.eye(3)[[2, 0, 1]],
    "sheared": np.array([[1, 0.02, 0], [0, 1, 0.03], [0, 0, 1.0]]),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("scale", ["2", "4", "9/2", "25/6"])
def test_world_coordinates_come_back_on_any_volume_grid(tmp_path: Path, name: str, scale: str) -> None:
    affine = np.eye(4)
    affine[:3, :3] = AFFINES[name] * [4.0, 1.1, 0.9]
    affine[:3, 3] = [-80, 40, 12]
    header = replace(volume((30, 5, 6), 4.0, 4.0), dtype="float64")
    header = replace(header, grid=replace(header.grid, affine=affine))
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in (30, 5, 6)], indexing="ij"), -1)
    world = header.grid.world(index)
    for axis in range(3):
        product, plan, _ = made(tmp_path / str(axis), world[..., axis], header, scale=f"{scale}x1x1")
        fine = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in plan.fine.shape], indexing="ij"), -1)
        inner = [9 <= u <= 20 for u in plan.places[0].coordinates()]
        assert np.abs(product[0] - plan.fine.world(fine)[..., axis])[inner].max() <= 1e-4
    whole = Fraction(scale) * 30 == int(Fraction(scale) * 30)
    assert np.abs(plan.fine.faces() - plan.coarse.faces()).max() <= (
        1e-9 if whole else 0.25 * 4 / float(Fraction(scale))
    )


@pytest.mark.parametrize(
    "linear", [[[0, 10], [-10, 0]], [[0, 10], [10, 0]], [[3, 9.5], [-9.5, 3]], [[0, 10], [-8, 2]]],
    ids=["north-up", "south-up", "rotated", "sheared"],
)  # fmt: skip
@pytest.mark.parametrize("scale", ["2", "4"])
def test_world_coordinates_come_back_on_any_raster_grid(tmp_path: Path, linear: list[list[float]], scale: str) -> None:
    affine = np.array([[*linear[0], 5.0e5], [*linear[1], 5.0e6], [0, 0, 1]])
    header = replace(raster((48, 44), bands=2), dtype="float64")
    header = replace(header, grid=replace(header.grid, affine=affine))
    index = np.stack(np.mgrid[:48, :44].astype(float), -1)
    product, plan, _ = made(tmp_path, np.moveaxis(header.grid.world(index), -1, 0), header, scale=scale)
    fine = np.moveaxis(plan.fine.world(np.stack(np.mgrid[: plan.fine.shape[0], : plan.fine.shape[1]], -1)), -1, 0)
    edge = 16 * int(scale)
    error_px = np.abs(product - fine)[:, edge:-edge, edge:-edge] / min(header.grid.spacing)
    assert error_px.max() <= 1e-6
    assert np.abs(plan.fine.faces() - plan.coarse.faces()).max() <= 1e-6
