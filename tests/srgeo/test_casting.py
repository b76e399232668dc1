"""Rounding, clipping and keeping away from nodata."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srgeo.casting import Storage, stored


def _one(values: list[float], storage: Storage) -> tuple[list[float], list[bool], int]:
    array, valid, clipped = stored(np.array(values, np.float32).reshape(1, 1, -1), storage)
    assert array.dtype == storage.dtype
    return array.ravel().tolist(), valid.ravel().tolist(), clipped


def test_integers_are_rounded_to_even_and_never_wrap() -> None:
    values, valid, clipped = _one([10.4, 10.5, 10.6, 11.5, -0.4, -3, 65535.4, 70000, np.nan, np.inf], Storage("uint16"))
    assert values == [10, 10, 11, 12, 0, 0, 65535, 65535, 0, 0]
    assert valid == [True] * 8 + [False] * 2
    assert clipped == 2


def test_signed_integers_clip_at_both_ends() -> None:
    assert _one([-40000, 40000, -1.5], Storage("int16"))[0] == [-32768, 32767, -2]
    assert _one([-129, 128], Storage("int8"))[0] == [-128, 127]
    assert _one([5e9, -5e9], Storage("int32"))[0] == [2147483647, -2147483648]


def test_fewer_bits_have_a_smaller_range() -> None:
    assert _one([5000, 4095, -1], Storage("uint16", bits=12)) == ([4095, 4095, 0], [True] * 3, 2)
    assert _one([9e9], Storage("uint32", bits=24))[0] == [(1 << 24) - 1]


@pytest.mark.parametrize(
    ("nodata", "values", "expected"),
    [
        (0, [0.2, -0.2, -7, 0], [1, 1, 1, 1]),
        (65535, [65535, 65534.6, 70000], [65534, 65534, 65534]),
        (100, [99.7, 100.3, 100], [99, 101, 101]),
    ],
)
def test_a_valid_sample_moves_off_nodata_to_its_own_side(nodata: int, values: list[float], expected: list[int]) -> None:
    result, valid, _ = _one([*values, np.nan], Storage("uint16", nodata=nodata))
    assert result == [*expected, nodata]
    assert valid == [True] * len(values) + [False]


def test_floats_keep_nan_or_take_nodata() -> None:
    assert np.isnan(_one([1.5, np.nan], Storage("float32"))[0][1])
    values, valid, clipped = _one([-9999, np.nan, 2.5, np.inf], Storage("float32", nodata=-9999))
    assert values[0] != -9999
    assert abs(values[0] + 9999) < 0.01
    assert values[1:] == [-9999, 2.5, -9999]
    assert valid == [True, False, True, False]
    assert clipped == 0


@given(
    st.lists(st.floats(-1e6, 1e6, width=32) | st.just(float("nan")), min_size=1, max_size=50),
    st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "int32"]),
    st.none() | st.integers(0, 127),
)
def test_validity_never_changes_and_values_move_least(values: list[float], dtype: str, nodata: int | None) -> None:
    samples = np.array(values, np.float32).reshape(1, 1, -1)
    storage = Storage(dtype, nodata=nodata)
    array, valid, _ = stored(samples, storage)
    np.testing.assert_array_equal(valid, np.isfinite(samples))
    low, high = storage.limits
    nearest = np.clip(np.where(valid, samples, 0).astype(np.float64), low, high)
    moved = np.abs(array.astype(np.float64) - nearest)[valid]
    assert (moved <= (0.5 if nodata is None else 1.0)).all()
    if nodata is not None:
        np.testing.assert_array_equal(array != nodata, valid)
