"""Ingest and export by the processes of a cluster: the same bytes, one writer a chunk, nothing half taken as done."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
from distributed import Client, LocalCluster
from numpy.typing import NDArray

from pipelines import filling, formats, runner, spreading, zarr_image
from pipelines.engine import cluster
from pipelines.engine.crew import Crew
from pipelines.errors import InputError, StoppedError
from pipelines.grid import Box
from pipelines.image import ArraySource, Source
from pipelines.job import Job
from pipelines.planning import Plan
from pipelines.request import Request
from pipelines.spreading import BoxWork
from pipelines.store import Store, attempt
from pipelines.zarr_image import ZarrImage, write_image
from srgeo.raster import open_raster
from tests.pipelines.files import Run, smooth, write_raster
from tests.srmed.make_dicom import Series

OWN = ("plan.json", "job.json", "ledger", "exported.json")
"""Of a work folder: what says who has worked, not what was made."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images have many bands, and others help with them."""
    monkeypatch.setattr(zarr_image, "BAND_SAMPLES", 1)
    monkeypatch.setattr(filling, "CHUNKS", 1)
    monkeypatch.setattr(spreading, "SPREAD_FROM", 2)


@pytest.fixture
def slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several slabs a chunk, for processes that share this one's memory."""
    monkeypatch.setattr(zarr_image, "SLAB_SAMPLES", 60_000)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two workers in this process."""
    options = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as here, Client(here):
        yield here.scheduler.address


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many boxes the others have done, each time that they were asked."""
    counted: list[int] = []
    do = Crew.do

    def counting(self: Crew, load: Callable[[], Any], todo: Sequence[Any], **options: Any) -> None:
        done = options["on_done"]
        if isinstance(todo[0], Box):
            counted.append(0)

        def on_done(pairs: list[Any]) -> None:
            if isinstance(todo[0], Box):
                counted[-1] += len(pairs)
            done(pairs)

        do(self, load, todo, **{**options, "on_done": on_done})

    monkeypatch.setattr(Crew, "do", counting)
    return counted


def raster(folder: Path) -> Path:
    """Two bands with holes: one in the middle of a chunk, one across chunks."""
    data = np.stack([smooth((1200, 150)), smooth((1200, 150))[::-1]]).astype(np.uint16)
    data[:, 100:140, 50:90] = 0
    data[:, 480:700, 100:] = 0
    return write_raster(folder / "scene.tif", data, nodata=0)


def volume(folder: Path, ending: str = ".nii") -> Path:
    path = folder / f"t2{ending}"
    nib.save(nib.Nifti1Image(smooth((40, 36, 70)), np.diag([1, 1, 3, 1])), path)
    return path


def series(folder: Path) -> Path:
    return Series(slices=70, rows=20, columns=24, spacing=3.0).write(folder / "series")


def ingested(folder: Path) -> Path:
    return runner.ingest(raster(folder), folder / "scene.zarr")


def files(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, but for what names the workers."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(OWN)}


def made(source: Path, folder: Path, workers: int = 1, cluster: str | None = None) -> dict[str, bytes]:
    """All files of the work folder and of the product."""
    folder.mkdir()
    request = Request(model="floor", noise=3.0, workers=workers)
    job = Job(str(source), str(folder / "o.zarr"), request, work=str(folder / "work"))
    runner.carry_out(job, cluster=cluster)
    return {f"{part}/{name}": c for part in ("work", "o.zarr") for name, c in files(folder / part).items()}


@pytest.mark.usefixtures("small", "slabs")
@pytest.mark.parametrize("image", [raster, ingested, volume, series], ids=lambda make: make.__name__)
def test_a_cluster_writes_the_bytes_of_one_process(
    image: Callable[[Path], Path], tmp_path: Path, address: str, elsewhere: list[int]
) -> None:
    source = image(tmp_path)
    one, other = made(source, tmp_path / "one"), made(source, tmp_path / "other", cluster=address)
    assert len(elsewhere) >= 2  # read and written at least
    assert min(elsewhere) > 0
    assert list(one) == list(other)
    assert one == other


@pytest.mark.usefixtures("small")
def test_two_processes_write_the_bytes_of_one_and_start_once(
    tmp_path: Path, elsewhere: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    client = cluster.client

    def counting(where: str | None, workers: int) -> Any:
        started.append(workers)
        return client(where, workers)

    monkeypatch.setattr(cluster, "client", counting)
    source = raster(tmp_path)
    assert made(source, tmp_path / "one") == made(source, tmp_path / "two", workers=2)
    assert started == [2]
    assert len(elsewhere) == 4  # read, twice for its holes, written
    assert min(elsewhere) > 0


@pytest.mark.usefixtures("small")
def test_a_stream_has_one_reader_and_an_array_stays_here(tmp_path: Path, address: str, elsewhere: list[int]) -> None:
    path = tmp_path / "t2.nii.gz"
    nib.save(nib.Nifti1Image(smooth((40, 36, 70)).astype(np.int16), np.diag([1, 1, 3, 1])), path)
    runner.upscale(path, tmp_path / "a.nii", model="floor", cluster=address)
    with formats.open_source(path) as source:
        array = ArraySource(source.read(Box.whole(source.header.grid.shape)), source.header)
    runner.upscale(array, tmp_path / "b.nii", model="floor", cluster=address)
    assert elsewhere == []
    with formats.open_source(tmp_path / "a.nii") as one, formats.open_source(tmp_path / "b.nii") as other:
        whole = Box.whole(one.header.grid.shape)
        assert np.array_equal(one.read(whole), other.read(whole))


def test_an_image_of_few_bands_is_read_by_one_process(tmp_path: Path, address: str, elsewhere: list[int]) -> None:
    made(raster(tmp_path), tmp_path / "one", cluster=address)
    assert elsewhere == []


@pytest.mark.parametrize(
    ("name", "anywhere"), [("scene.tif", True), ("strip.tif", True), ("t2.nii", True), ("t2.nii.gz", False)]
)
def test_a_file_says_whether_it_can_be_read_anywhere(tmp_path: Path, name: str, anywhere: bool) -> None:
    if name.endswith(".tif"):
        write_raster(tmp_path / name, smooth((1, 60, 50)), **({"blockysize": 60} if name == "strip.tif" else {}))
    else:
        volume(tmp_path, name.removeprefix("t2"))
    with formats.open_source(tmp_path / name) as source:
        assert source.anywhere == anywhere


def test_a_raster_of_one_huge_strip_has_one_reader(tmp_path: Path) -> None:
    with open_raster(write_raster(tmp_path / "strip.tif", smooth((1, 60, 50)))) as source:
        source.description = replace(source.description, block=(2100, 2100))
        assert not source.anywhere


def prepared(tmp_path: Path) -> tuple[Path, Store, Plan]:
    source = raster(tmp_path)
    store = Store(runner.prepare(Job(str(source), str(tmp_path / "o.tif"), Request(model="floor", noise=3.0))))
    return source, store, Plan.from_json(store.read_json("plan.json") or {})


def band_sum(source: Source, box: Box) -> float:
    return float(np.nansum(source.read(box)))


def test_a_process_that_sees_no_such_input_leaves_it_to_others(tmp_path: Path) -> None:
    source, store, plan = prepared(tmp_path)
    box = Box((0, 0), (10, 10))
    with formats.open_source(source) as opened:
        content, folder = pickle.dumps(opened), str(store.folder)
        work = BoxWork(content, opened.identity, folder, plan.run_hash, band_sum)
        assert work.load()([box]) == [(box, band_sum(opened, box))]
        assert BoxWork(content, "another", folder, plan.run_hash, band_sum).load()([box]) == []
    source.unlink()
    assert work.load()([box]) == []


def test_a_process_cut_off_from_its_run_reads_no_further(tmp_path: Path) -> None:
    source, store, plan = prepared(tmp_path)
    with formats.open_source(source) as opened:
        make = BoxWork(pickle.dumps(opened), opened.identity, str(store.folder), plan.run_hash, band_sum).load()
    box = Box((0, 0), (10, 10))
    assert make([box])
    store.stop.touch()
    assert make([box]) == []
    store.stop.unlink()
    store.write_json("plan.json", {**plan.to_json(), "noise": 4.0})
    assert make([box]) == []


@pytest.mark.usefixtures("small")
def test_what_no_other_process_sees_is_done_here(
    tmp_path: Path, address: str, elsewhere: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = raster(tmp_path)
    one = made(source, tmp_path / "one")
    monkeypatch.setattr(BoxWork, "_opened", lambda _: None)
    assert made(source, tmp_path / "other", cluster=address) == one
    assert set(elsewhere) == {0}


@pytest.mark.usefixtures("small", "slabs")
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_run_stopped_while_it_reads_goes_on_to_the_same_bytes(
    tmp_path: Path, address: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WINDOW", 1)  # two of three bands at once
    source = raster(tmp_path)
    one = made(source, tmp_path / "one")
    folder = tmp_path / "other"
    folder.mkdir()
    job = Job(str(source), str(folder / "o.zarr"), Request(model="floor", noise=3.0), work=str(folder / "work"))
    seen: list[int] = []

    def progress(stage: str, done: int, _: int) -> None:
        if stage == "read":
            seen.append(done)

    place = address if where == "elsewhere" else None
    with pytest.raises(StoppedError):
        runner.carry_out(job, cluster=place, progress=progress, stopped=lambda: bool(seen and seen[-1] > 0))
    assert 0 < seen[-1] < 1200
    assert not (folder / "work" / "ingest.json").exists()
    assert not (folder / "work" / "coarse.zarr" / "zarr.json").exists()
    (folder / "work" / "coarse.zarr" / "samples" / "c").mkdir(exist_ok=True)
    (folder / "work" / "coarse.zarr" / "left over").write_text("of a killed process")
    runner.carry_out(replace(job, resume=True), cluster=place)
    assert {f"{p}/{n}": c for p in ("work", "o.zarr") for n, c in files(folder / p).items()} == one


@pytest.mark.usefixtures("small")
def test_an_input_damaged_in_one_band_is_refused_and_leaves_nothing(run: Run, tmp_path: Path, address: str) -> None:
    samples = np.random.default_rng(3).integers(100, 4000, (1, 1200, 260)).astype(np.uint16)
    source = write_raster(tmp_path / "scene.tif", samples, tiled=True, blockxsize=256, blockysize=256, compress="lzw")
    with rasterio.open(source) as file:
        at, size = (int(file.get_tag_item(f"BLOCK_{what}_0_3", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
    content = bytearray(source.read_bytes())
    content[at : at + size] = b"\xff" * size
    source.write_bytes(content)
    code, _, err = run("upscale", source, tmp_path / "o.tif", "--model", "floor", "--quiet", "--cluster", address)
    assert code == 3, err
    assert "damaged" in err
    assert not list(tmp_path.glob("o.tif*"))


class Failing(ArraySource):
    """The second read fails."""

    _reads = 0

    def read(self, box: Box) -> NDArray[np.floating]:
        self._reads += 1
        if self._reads == 2:
            raise InputError(what="damaged")
        return super().read(box)


@pytest.mark.usefixtures("small", "slabs")
def test_a_writer_that_ends_in_the_middle_of_a_band_changes_no_chunk(tmp_path: Path) -> None:
    with formats.open_source(raster(tmp_path)) as opened:
        header, samples = opened.header, opened.read(Box.whole(opened.header.grid.shape))
        write_image(opened, header, tmp_path / "a.zarr")
    before, failing = files(tmp_path / "a.zarr"), Failing(samples + 1, header)
    with attempt(tmp_path / "a.zarr") as name, pytest.raises(InputError):
        zarr_image._write_band(tmp_path / "a.zarr", name, True, failing, Box((0, 0), (512, 150)))
    assert files(tmp_path / "a.zarr") == before


def test_the_identity_of_an_ingested_image_changes_with_a_sample_of_any_band(tmp_path: Path) -> None:
    source = raster(tmp_path)
    with formats.open_source(source) as opened:
        header, samples = opened.header, opened.read(Box.whole(opened.header.grid.shape))
    found = set()
    for k, row in enumerate((None, 3, 600, 1199)):
        changed = samples.copy()
        if row is not None:
            changed[1, row, 7] += 1
        write_image(ArraySource(changed, header), header, tmp_path / f"{k}.zarr")
        found.add(ZarrImage(tmp_path / f"{k}.zarr").identity)
    assert len(found) == 4
