"""Chunks are written aside and take their place whole, if they are still wanted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipelines.errors import StoppedError
from pipelines.filling import fill_invalid
from pipelines.image import ArraySource
from pipelines.product import WatchedSource
from pipelines.store import Store, attempt, create_array, own_chunks
from pipelines.zarr_image import ZarrImage, write_image
from tests.pipelines.test_runner import raster


def test_what_was_begun_for_an_attempt_that_has_ended_takes_no_place(tmp_path: Path) -> None:
    """As by a process that was halted and wakes when the folder is another run's."""
    group = tmp_path / "coarse.zarr"

    def array() -> None:
        create_array(group, "samples", (1, 8, 8), "float32", (1, 8, 8), None)[:] = 1.0

    def write() -> None:
        with attempt(group) as name, own_chunks(group, name) as begun:
            aside = begun("samples")
            shutil.rmtree(group)  # another run begins
            array()
            aside[:] = 2.0  # zarr makes again what is gone

    array()
    with pytest.raises(StoppedError):
        write()
    assert np.all(zarr.open_array(str(group / "samples"))[:] == 1.0)
    assert not (group / ".begun").exists()


def test_filling_holes_heeds_a_stop(tmp_path: Path) -> None:
    store, values = Store(tmp_path), np.ones((1, 40, 40))
    values[:, 10:20] = np.nan
    header = replace(raster((40, 40)), may_have_invalid=True)
    write_image(ArraySource(values, header), header, store.coarse)

    def stop(*_: int) -> None:
        raise StoppedError(what="stopped")

    with ZarrImage(store.coarse) as image, pytest.raises(StoppedError):
        fill_invalid(tmp_path, WatchedSource(image, stop))
