"""Which images can guide: decided from headers alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.degradation import Profile
from pipelines.errors import TruescaleError
from pipelines.grid import Frame, Grid
from pipelines.guides import guided
from pipelines.image import Channel, Header

BLUR = (Profile("mtf", 0.3),) * 2


def raster(shape: tuple[int, int], pixel: float, corner: tuple[float, float] = (0.0, 0.0), crs: str = "A") -> Header:
    """corner: of the field of view, rows then columns."""
    affine = np.diag([pixel, pixel, 1.0])
    affine[:2, 2] = np.array(corner) + pixel / 2
    return Header(Grid(("y", "x"), shape, affine, Frame("m", "map", crs)), (Channel("b", BLUR),), domain="geo")


COARSE = raster((20, 30), 20.0)


def test_a_larger_guide_is_cut_to_the_input() -> None:
    grid, plan = guided(COARSE, raster((60, 80), 10.0, (-40.0, -60.0)), "id")
    assert grid.shape == (40, 60)
    assert plan.start == (4, 6)
    assert np.allclose(grid.affine, raster((40, 60), 10.0).grid.affine, rtol=0, atol=1e-9)


def test_a_guide_shifted_by_part_of_a_pixel_keeps_its_own_grid() -> None:
    grid, plan = guided(COARSE, raster((41, 61), 10.0, (-5.0, -5.0)), "id")
    assert plan.start == (1, 1)  # the first lies on the face
    assert grid.affine[0, 2] == pytest.approx(10.0)


def test_bands_that_are_no_image_do_not_guide() -> None:
    guide = raster((40, 60), 10.0)
    both = replace(guide, channels=(Channel("scl", BLUR, kind="classes"), Channel("b", BLUR)))
    assert guided(COARSE, both, "id")[1].channels == (1,)


@pytest.mark.parametrize(
    ("guide", "said"),
    [
        (raster((20, 30), 20.0), "no finer"),
        (raster((40, 60), 10.0, crs="B"), "does not fit"),
        (raster((40, 60), 10.0, (5000.0, 0.0)), "do not overlap"),
        (raster((30, 60), 10.0), "a part of the input"),
        (replace(raster((40, 60), 10.0), channels=(Channel("scl", BLUR, kind="classes"),)), "only classes"),
    ],
    ids=["as coarse", "another CRS", "elsewhere", "too small", "classes"],
)
def test_what_cannot_guide_is_refused_in_words(guide: Header, said: str) -> None:
    with pytest.raises(TruescaleError, match=said):
        guided(COARSE, guide, "id")


def test_a_flipped_guide_is_refused() -> None:
    guide = raster((40, 60), 10.0)
    affine = guide.grid.affine.copy()
    affine[0, 0], affine[0, 2] = -10.0, 395.0
    with pytest.raises(TruescaleError, match="flipped or turned"):
        guided(COARSE, replace(guide, grid=replace(guide.grid, affine=affine)), "id")
