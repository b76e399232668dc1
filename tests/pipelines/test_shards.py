"""Shards encoded here are shards to zarr."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import shards
from pipelines.store import create_array


@given(
    channels=st.integers(1, 3),
    rows=st.integers(1, 90),
    columns=st.integers(1, 90),
    dtype=st.sampled_from(["float32", "float64", "uint16", "uint8"]),
    empty=st.booleans(),
)
def test_zarr_reads_every_shard_back(channels: int, rows: int, columns: int, dtype: str, empty: bool) -> None:
    image = (np.random.default_rng(rows).normal(100, 30, (channels, rows, columns)) * (not empty)).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        array = create_array(Path(folder), "a", image.shape, dtype, (1, 16, 16), (channels, 48, 32))
        for y in range(-(-rows // 48)):
            for x in range(-(-columns // 32)):
                part = image[:, y * 48 : (y + 1) * 48, x * 32 : (x + 1) * 32]
                path = Path(folder, "a", "c", "0", str(y), str(x))
                written = shards.write(path, shards.encode(part, array.chunks, array.shards))
                assert written == shards.checksum(path)
        assert np.array_equal(array[:], image)
        assert not list(Path(folder).rglob("*.partial"))


def test_zarr_refuses_a_shard_with_a_damaged_chunk_or_index(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)
    array = create_array(tmp_path, "a", image.shape, "float32", (1, 16, 16), (1, 32, 32))
    content = b"".join(shards.encode(image, array.chunks, array.shards))
    path = tmp_path / "a" / "c" / "0" / "0" / "0"
    for place in (40, len(content) - 6):
        shards.write(path, [content[:place], bytes([content[place] ^ 1]), content[place + 1 :]])
        with pytest.raises(ValueError, match=r"checksum|crc32c|do not match"):
            array[:]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "0"
    shards.write(path, [b"old"])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        shards.write(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["0"]
