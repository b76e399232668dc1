"""Hypothesis strategies: grids oblique, flipped, sheared; odd sizes; exact scales."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from pipelines.grid import Factor, Frame, Grid, Placement, fine_length

SCALES = st.sampled_from(
    [
        Fraction(1),
        Fraction(3, 2),
        Fraction(2),
        Fraction(5, 2),
        Fraction(10, 3),
        Fraction(4),
        Fraction(25, 6),
        Fraction(9, 2),
    ]
)
"""Integers, and the ratios that spacings in files give."""


@st.composite
def grids(draw: st.DrawFn, axes: str = "zyx", low: int = 1, high: int = 24) -> Grid:
    """A grid with axes flipped, permuted, turned and sheared."""
    d = len(axes)
    shape = tuple(draw(st.integers(low, high)) for _ in axes)
    spacing = np.array([draw(st.sampled_from([0.7188, 1.0, 1.25, 3.3, 5.2])) for _ in axes])
    turn = np.eye(d)
    for a in range(d - 1):
        angle = draw(st.floats(-0.6, 0.6))
        plane = np.eye(d)
        plane[a, a] = plane[a + 1, a + 1] = np.cos(angle)
        plane[a, a + 1], plane[a + 1, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ plane
    order = draw(st.permutations(range(d)))
    signs = np.array([draw(st.sampled_from([-1.0, 1.0])) for _ in axes])
    shear = np.eye(d)
    shear[0, -1] = draw(st.sampled_from([0.0, 0.1]))
    affine = np.eye(d + 1)
    affine[:d, :d] = (turn @ shear)[:, list(order)] * signs * spacing
    affine[:d, d] = [draw(st.floats(-300, 300)) for _ in axes]
    return Grid(axes, shape, affine, Frame("mm", "patient"))


@st.composite
def factors(draw: st.DrawFn, ndim: int = 3) -> Factor:
    """An exact scale per axis."""
    return Factor(tuple(draw(SCALES) for _ in range(ndim)))


@st.composite
def places(draw: st.DrawFn, low: int = 2, high: int = 40) -> Placement:
    """One changed axis."""
    coarse = draw(st.integers(low, high))
    scale = draw(SCALES.filter(lambda s: s > 1))
    fine = fine_length(coarse, scale)
    return Placement(coarse, fine, scale, (scale - 1) / 2 + (fine - coarse * scale) / 2)
