"""What every Source and every Sink must do. A format's test inherits the class and says how its file is made.

class TestNiftiSource(SourceContract):
    def make(self, folder): ...      # write a small image, at least 5 samples on the slowest axis
    def open(self, path): ...
    def change(self, path): ...      # other samples, same grid
    def damage(self, path): ...      # samples unreadable, headers intact
"""

from __future__ import annotations

import itertools
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.errors import ExportError, InputError, UsageError
from pipelines.grid import Box
from pipelines.image import Header, Sink, Source

MAX_HEADER_BYTES = 65536
"""A pickled Source of a small file holds its path and no samples."""


def whole(source: Source) -> NDArray[np.float32]:
    """All samples of a Source (channel, *shape)."""
    return source.read(Box.whole(source.header.grid.shape))


def some_boxes(shape: tuple[int, ...]) -> list[Box]:
    """Corners, single samples, thin slices along every axis, the middle and the whole."""
    boxes = [Box.whole(shape), Box(tuple(n // 3 for n in shape), tuple(max(n // 3 + 1, 2 * n // 3) for n in shape))]
    for corner in itertools.product((0, 1), repeat=len(shape)):
        start = tuple((n - 1) * c for n, c in zip(shape, corner, strict=True))
        boxes.append(Box(start, tuple(a + 1 for a in start)))
    for axis, n in enumerate(shape):
        low, high = [0] * len(shape), list(shape)
        low[axis], high[axis] = n // 2, n // 2 + 1
        boxes.append(Box(tuple(low), tuple(high)))
    return boxes


class SourceContract:
    """Inherit and give the four methods below."""

    def make(self, folder: Path) -> Path:
        """Write a small image into an empty folder; at least 5 samples on the slowest axis, not constant."""
        raise NotImplementedError

    def open(self, path: Path) -> Source:
        """Open it."""
        raise NotImplementedError

    def change(self, path: Path) -> None:
        """Write other samples on the same grid to the same place."""
        raise NotImplementedError

    def damage(self, path: Path) -> bool:
        """Make samples unreadable while the headers stay intact; False if opening always notices."""
        raise NotImplementedError

    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        folder = tmp_path / "contract"
        folder.mkdir()
        return self.make(folder)

    def test_the_header_agrees_with_the_samples(self, image: Path) -> None:
        with self.open(image) as source:
            header, samples = source.header, whole(source)
        assert isinstance(header, Header)
        assert samples.dtype == np.float32
        assert samples.shape == (len(header.channels), *header.grid.shape)
        assert all(len(c.profiles) == header.grid.ndim for c in header.channels)
        assert np.isfinite(samples).all() or header.may_have_invalid
        assert header.domain in ("med", "geo", "")
        np.dtype(header.dtype)
        assert np.ptp(samples[np.isfinite(samples)]) > 0

    def test_opening_needs_no_samples(self, image: Path) -> None:
        with self.open(image) as source:
            before = source.header
        if not self.damage(image):
            pytest.skip("this format notices damaged samples when it is opened")
        with self.open(image) as source:
            assert source.header == before

    def test_damaged_samples_are_an_input_error(self, image: Path) -> None:
        if not self.damage(image):
            with pytest.raises(InputError):
                self.open(image)
            return
        with self.open(image) as source, pytest.raises(InputError):
            whole(source)

    @pytest.mark.parametrize("slices", [0.5, 1, 2.5, 1e9])
    def test_blocks_hold_each_sample_once_within_the_limit(self, image: Path, slices: float) -> None:
        with self.open(image) as source:
            shape = source.header.grid.shape
            per_slice = int(np.prod(shape[1:]))
            hits = np.zeros(shape, np.uint8)
            for box in source.blocks(int(slices * per_slice)):
                hits[box.slices] += 1
                assert box.size <= max(slices, 1) * per_slice
        assert hits.min() == hits.max() == 1

    def test_a_part_equals_the_same_part_of_the_whole(self, image: Path) -> None:
        with self.open(image) as source:
            samples = whole(source)
            for box in some_boxes(source.header.grid.shape):
                np.testing.assert_array_equal(source.read(box), samples[(slice(None), *box.slices)])

    def test_reading_does_not_depend_on_the_order(self, image: Path) -> None:
        with self.open(image) as source:
            boxes = list(source.blocks(int(np.prod(source.header.grid.shape[1:])) * 2))
            forwards = {box: source.read(box) for box in boxes}
        with self.open(image) as source:
            backwards = {box: source.read(box) for box in reversed(boxes)}
            again = {box: source.read(box) for box in boxes}
        for box in boxes:
            np.testing.assert_array_equal(forwards[box], backwards[box])
            np.testing.assert_array_equal(forwards[box], again[box])

    def test_the_caller_owns_what_was_read(self, image: Path) -> None:
        with self.open(image) as source:
            first = whole(source)
            kept = first.copy()
            first[...] = -7
            np.testing.assert_array_equal(whole(source), kept)

    def test_it_travels_as_a_path(self, image: Path) -> None:
        with self.open(image) as source:
            samples = whole(source)
            sent = pickle.dumps(source)
            assert len(sent) < MAX_HEADER_BYTES
            with pickle.loads(sent) as arrived:
                assert arrived.header == source.header
                assert arrived.identity == source.identity
                np.testing.assert_array_equal(whole(arrived), samples)

    def test_the_identity_stays_while_the_samples_stay(self, image: Path) -> None:
        with self.open(image) as first, self.open(image) as second:
            whole(first)
            assert first.identity == second.identity
            assert first.identity

    def test_the_identity_changes_with_the_samples(self, image: Path) -> None:
        with self.open(image) as source:
            before, samples = source.identity, whole(source)
        self.change(image)
        with self.open(image) as source:
            assert not np.array_equal(whole(source), samples)
            assert source.identity != before

    def test_the_identity_tells_no_path(self, image: Path) -> None:
        with self.open(image) as source:
            assert image.stem not in source.identity
            assert "/" not in source.identity

    def test_closing_twice_is_harmless(self, image: Path) -> None:
        source = self.open(image)
        whole(source)
        source.close()
        source.close()


class FailingSource:
    """A product whose samples end with an error after `good` reads: what a full disk or a signal leaves behind."""

    def __init__(self, inner: Source, error: BaseException, good: int = 0) -> None:
        self._inner, self._error, self._left = inner, error, good

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def read(self, box: Box) -> NDArray[np.float32]:
        if self._left <= 0:
            raise self._error
        self._left -= 1
        return self._inner.read(box)


def _failing(product: Source, error: BaseException) -> Source:
    return FailingSource(product, error)  # type: ignore[return-value]  # forwards everything but read


class SinkContract:
    """Inherit and give the methods below."""

    suffix = ""
    """Of a file that the sink writes."""

    def sink(self) -> Sink:
        """The sink."""
        raise NotImplementedError

    def product(self) -> Source:
        """A small product, at least 5 samples on the slowest axis, float32 values that the format keeps exactly."""
        raise NotImplementedError

    def open(self, path: Path) -> Source:
        """Open what was written."""
        raise NotImplementedError

    def test_what_is_written_reads_back_at_its_place(self, tmp_path: Path) -> None:
        path = tmp_path / f"product{self.suffix}"
        with self.product() as product:
            self.sink().refuse(product.header, path)
            self.sink().write(product, None, path, {"software": "truescale"})
            with self.open(path) as again:
                np.testing.assert_array_equal(whole(again), whole(product))
                corners = np.array(some_boxes(product.header.grid.shape)[2].start)
                np.testing.assert_allclose(
                    again.header.grid.world(corners), product.header.grid.world(corners), rtol=0, atol=1e-3
                )
                assert again.header.grid.shape == product.header.grid.shape

    def test_the_same_product_gives_the_same_bytes(self, tmp_path: Path) -> None:
        names = [f"a{self.suffix}", f"another{self.suffix}"]
        for name in names:
            with self.product() as product:
                self.sink().write(product, None, tmp_path / name, {"software": "truescale"})
        assert (tmp_path / names[0]).read_bytes() == (tmp_path / names[1]).read_bytes()

    @pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt(), MemoryError("planted")])
    def test_nothing_half_written_stays(self, tmp_path: Path, error: BaseException) -> None:
        with self.product() as product, pytest.raises(type(error)):
            self.sink().write(_failing(product, error), None, tmp_path / f"product{self.suffix}", {})
        assert list(tmp_path.iterdir()) == []

    def test_an_older_file_survives_a_failure(self, tmp_path: Path) -> None:
        path = tmp_path / f"product{self.suffix}"
        path.write_bytes(b"older")
        with self.product() as product, pytest.raises(RuntimeError):
            self.sink().write(_failing(product, RuntimeError("planted")), None, path, {})
        assert path.read_bytes() == b"older"

    def test_a_full_disk_is_an_export_error(self, tmp_path: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # no file may grow beyond 64 bytes
        try:
            with self.product() as product, pytest.raises(ExportError):
                self.sink().write(product, None, tmp_path / f"product{self.suffix}", {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.iterdir()) == []

    def test_another_suffix_is_refused(self, tmp_path: Path) -> None:
        with self.product() as product, pytest.raises((UsageError, InputError)):
            self.sink().refuse(product.header, tmp_path / "product.unknown")
