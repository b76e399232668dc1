"""How the sensor made the coarse samples: y = A x + n, one sparse matrix per axis, and the exact adjoint.

The one definition shared by the projection, the simulated training pairs and the evaluation. `A_ji` is proportional to
the integral of the profile around the coarse centre `c_j` over fine sample `i`; every row sums to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from pipelines.errors import GeometryError, UsageError
from pipelines.grid import Box, Grid, Orientation, Placement, placements

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian over its standard deviation."""

CUT_SIGMA = 4.0
"""Gaussians end here, on both sides, before the integral."""

LOST = 1e-3
"""A row that loses more than this share beyond a partial reference is no constraint."""

ALONG = 64
"""Samples of the faster axes that a matrix is applied to at a time, at least."""

WINDOW = 200
"""Coarse samples that say how far the projection reaches on a longer axis."""

NEGLIGIBLE = 1e-7
"""A row of (K + l I)^-1 below this share of its peak is out of reach."""

Cumulative = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Integral of a profile from its lower end to u (fine samples); constant outside its support."""


def _gaussian(sigma: float) -> tuple[Cumulative, float]:
    cut = CUT_SIGMA * sigma
    return lambda u: special.ndtr(np.clip(u, -cut, cut) / sigma), cut


def _cosine(width: float) -> tuple[Cumulative, float]:
    def cumulative(u: NDArray[np.float64]) -> NDArray[np.float64]:
        v = np.clip(u, -width, width)
        return np.asarray(v / (2 * width) + np.sin(math.pi * v / width) / (2 * math.pi))

    return cumulative, width


def _box(width: float) -> tuple[Cumulative, float]:
    return lambda u: np.clip(u, -width / 2, width / 2), width / 2


@dataclass(frozen=True, slots=True)
class Profile:
    """The weight of the scene around the centre of a coarse sample, along one axis.

    kind: slice, cosine, box, mtf, gaussian, block or wald. value: FWHM or width in mm for slice, cosine and box (in
    coarse samples where the frame has no millimetres); modulation at the coarse Nyquist for mtf; FWHM in coarse
    samples for gaussian; none for block and wald. Text form 'slice:4'.
    """

    kind: str
    value: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in PROFILES:
            raise UsageError(
                what=f"'{self.kind}' is not a degradation", fix=f"choose one of {', '.join(sorted(PROFILES))}"
            )
        needs = PROFILES[self.kind].needs
        if needs != (self.value is not None):
            form = f"{self.kind}:NUMBER" if needs else self.kind
            raise UsageError(what=f"the degradation '{self}' is incomplete or has too much", fix=f"write {form}")
        if self.value is not None and not (0 < self.value < (1 if self.kind == "mtf" else math.inf)):
            limit = "between 0 and 1" if self.kind == "mtf" else "above 0"
            raise UsageError(what=f"the degradation '{self}' is out of range", fix=f"give a number {limit}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read 'slice:4', 'mtf:0.3', 'block'... Raises UsageError."""
        kind, colon, value = text.strip().partition(":")
        try:
            return cls(kind, float(value) if colon else None)
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(what=f"'{value}' in the degradation '{text}' is no number") from error

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}:{self.value:.6g}"

    @property
    def in_mm(self) -> bool:
        """Whether the width is a length rather than a share of a coarse sample."""
        return self.kind in ("slice", "cosine", "box")

    def fwhm_coarse(self, spacing: float, *, millimetres: bool) -> float:
        """Full width at half maximum in coarse samples: what a network is told about the blur."""
        if self.kind == "mtf":
            return FWHM_PER_SIGMA * math.sqrt(-2 * math.log(self.value or 1.0)) / math.pi
        if self.kind == "gaussian":
            return self.value or 1.0
        if self.kind == "wald":
            return 1.2
        return 1.0 if self.value is None else self.value / (spacing if millimetres else 1.0)


@dataclass(frozen=True, slots=True)
class _Shape:
    """cumulative(value in fine samples or the number itself, scale) and whether the profile needs a number."""

    make: Callable[[float, float], tuple[Cumulative, float]]
    needs: bool = True


PROFILES: dict[str, _Shape] = {
    "slice": _Shape(lambda width, _: _gaussian(width / FWHM_PER_SIGMA)),
    "cosine": _Shape(lambda width, _: _cosine(width)),
    "box": _Shape(lambda width, _: _box(width)),
    "mtf": _Shape(lambda m, s: _gaussian(s * math.sqrt(-2 * math.log(m)) / math.pi)),
    "gaussian": _Shape(lambda fwhm, s: _gaussian(s * fwhm / FWHM_PER_SIGMA)),
    "block": _Shape(lambda _, s: _box(s), needs=False),
    "wald": _Shape(lambda _, s: _box(s), needs=False),  # the block of its second step
}


def axis_matrix(place: Placement, profile: Profile, width_fine: float | None = None) -> sparse.csr_array:
    """The degradation (coarse, fine) along one axis. Rows sum to 1; rows mostly outside the fine samples are empty.

    width_fine: for profiles whose width is a length, that length in fine samples.
    """
    s = float(place.scale)
    number = profile.value or 0.0 if width_fine is None else width_fine
    cumulative, half = PROFILES[profile.kind].make(number, s)
    total = float(cumulative(np.array([math.inf]))[0] - cumulative(np.array([-math.inf]))[0])
    centres = place.centres()
    first = np.floor(centres - half + 0.5).astype(int)
    taps = np.arange(math.ceil(2 * half) + 2)
    columns = first[:, None] + taps
    offset = columns - centres[:, None]
    weights = np.diff(cumulative(np.stack([offset - 0.5, offset + 0.5])), axis=0)[0]
    inside = (columns >= 0) & (columns < place.fine)
    weights = np.where(inside, weights, 0.0)
    lost = np.maximum(_beyond(place, centres, cumulative, total), 0.0)
    weights[lost > LOST] = 0.0
    rows = np.broadcast_to(np.arange(place.coarse)[:, None], columns.shape)
    keep = weights > 0
    matrix = sparse.csr_array((weights[keep], (rows[keep], columns[keep])), shape=(place.coarse, place.fine))
    if profile.kind == "wald":
        matrix = sparse.csr_array(matrix @ _wald_blur(place.fine, 1.0 / s))
    return _normalised(matrix)


def _beyond(
    place: Placement, centres: NDArray[np.float64], cumulative: Cumulative, total: float
) -> NDArray[np.float64]:
    """Share of each row's weight on parts of the scene that are measured but not on the fine lattice.

    0 where both lattices share a face; not so with a reference that covers a part of the input only.
    """
    half = float(place.scale) / 2
    low = cumulative(-0.5 - centres) - cumulative(np.array([-math.inf]))
    high = cumulative(np.array([math.inf])) - cumulative(place.fine - 0.5 - centres)
    cut_low = centres[0] - half < -0.5 - 0.5  # by more than the half fine sample that rounding explains
    cut_high = centres[-1] + half > place.fine - 0.5 + 0.5
    return np.asarray((low * cut_low + high * cut_high) / total)


def _wald_blur(length: int, sigma: float) -> sparse.csr_array:
    """Sampled, not integrated, Gaussian on the fine samples: rows (length, length) that sum to 1."""
    reach = math.floor(CUT_SIGMA * sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    rows = np.repeat(np.arange(length), len(taps))
    columns = (np.arange(length)[:, None] + np.arange(-reach, reach + 1)).ravel()
    inside = (columns >= 0) & (columns < length)
    band = sparse.csr_array((np.tile(taps, length)[inside], (rows[inside], columns[inside])), shape=(length, length))
    return _normalised(band)


def _normalised(matrix: sparse.csr_array) -> sparse.csr_array:
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    scale = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    result = sparse.csr_array(sparse.diags_array(scale) @ matrix)
    result.sort_indices()
    return result


def along(
    matrix: NDArray[np.float64] | sparse.csr_array, image: NDArray[np.floating], axis: int
) -> NDArray[np.float64]:
    """`matrix` applied to one axis of `image`, in float64."""
    image = np.ascontiguousarray(image, np.float64)
    before, length, after = math.prod(image.shape[:axis]), image.shape[axis], math.prod(image.shape[axis + 1 :])
    shape = (*image.shape[:axis], matrix.shape[0], *image.shape[axis + 1 :])
    if before == 1:
        return np.asarray(matrix @ image.reshape(length, after)).reshape(shape)
    lines, result = image.reshape(before, length, after), np.empty((before, matrix.shape[0], after))
    together = max(1, ALONG // max(1, after))  # lines of a fast axis are turned a few at a time, inside the caches
    for first in range(0, before, together):
        some = lines[first : first + together]
        columns = some[0] if len(some) == 1 else some.transpose(1, 0, 2).reshape(length, -1)
        made = np.asarray(matrix @ columns).reshape(matrix.shape[0], len(some), after)
        result[first : first + together] = made.transpose(1, 0, 2)
    return result.reshape(shape)


def profile_between(place: Placement, blur: Profile) -> Profile:
    """What the sensor did on one axis: its blur, or nothing but shares of area where samples are only shifted.

    Both lattices are equally fine there: to take the blur back would sharpen what nobody asked to be finer.
    """
    return Profile("block") if place.scale == 1 else blur


def width_in_fine(profile: Profile, coarse: Grid, axis: int, place: Placement) -> float | None:
    """Width in fine samples of a profile given as a length, None for the others."""
    if not profile.in_mm or profile.value is None:
        return None
    unit = coarse.spacing[axis] if coarse.frame.unit == "mm" else 1.0
    return profile.value * float(place.scale) / unit


@dataclass(frozen=True, slots=True, eq=False)
class Degradation:
    """The forward model between a fine and a coarse lattice, separable.

    matrices: one (coarse, fine) matrix per axis, None for an axis that both share; spec: their profiles as text;
    noise_sigma: standard deviation of the noise in input units, None if unknown.
    Arrays are (..., *axes): leading axes are left alone.
    """

    coarse_shape: tuple[int, ...]
    fine_shape: tuple[int, ...]
    matrices: tuple[sparse.csr_array | None, ...]
    spec: tuple[str, ...] = ()
    noise_sigma: float | None = None

    @classmethod
    def between(cls, coarse: Grid, fine: Grid, profiles: Sequence[Profile], noise_sigma: float | None = None) -> Self:
        """The model of a sensor with one profile per axis. Raises GeometryError if the grids do not fit."""
        matrices: list[sparse.csr_array | None] = []
        spec = []
        for a, (place, blur) in enumerate(zip(placements(coarse, fine), profiles, strict=True)):
            if not place.changed:
                matrices.append(None)
                spec.append("same")
                continue
            profile = profile_between(place, blur)
            matrices.append(_cached_matrix(place, profile, width_in_fine(profile, coarse, a, place)))
            spec.append(str(profile))
        return cls(coarse.shape, fine.shape, tuple(matrices), tuple(spec), noise_sigma)

    @property
    def changed(self) -> tuple[int, ...]:
        """Axes with a matrix."""
        return tuple(a for a, m in enumerate(self.matrices) if m is not None)

    def sees(self, axis: int) -> NDArray[np.bool_]:
        """Which coarse samples (coarse,) see fine ones along an axis: all but those that reach beyond a reference."""
        matrix = self.matrices[axis]
        return np.ones(self.coarse_shape[axis], bool) if matrix is None else np.diff(matrix.indptr) > 0

    def forward(self, fine: NDArray[np.floating]) -> NDArray[np.float64]:
        """A x: (..., *fine_shape) -> (..., *coarse_shape)."""
        return self._apply(fine, self.fine_shape, transpose=False)

    def adjoint(self, coarse: NDArray[np.floating]) -> NDArray[np.float64]:
        """A^T y: (..., *coarse_shape) -> (..., *fine_shape); the transpose of the same matrices."""
        return self._apply(coarse, self.coarse_shape, transpose=True)

    def forward_valid(
        self, fine: NDArray[np.floating], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(degraded valid samples, valid share of each row's weight); NaN where that share is below one half."""
        share = self.forward(valid.astype(np.float64))
        total = self.forward(np.where(valid, fine, 0.0))
        usable = share >= 0.5
        return np.where(usable, total / np.where(usable, share, 1.0), np.nan), share

    def _apply(self, image: NDArray[np.floating], shape: tuple[int, ...], *, transpose: bool) -> NDArray[np.float64]:
        d = len(shape)
        if image.shape[-d:] != shape:
            raise GeometryError(what=f"an array of shape {image.shape} does not end with {shape}")
        result = np.asarray(image, np.float64)
        for a in self.changed[::-1] if transpose else self.changed:  # the slowest where there is least to turn
            matrix = self.matrices[a]
            assert matrix is not None
            result = along(matrix.T.tocsr() if transpose else matrix, result, result.ndim - d + a)
        return result

    def fine_box(self, coarse: Box) -> Box:
        """Fine samples that the coarse samples of a box see."""
        start, stop = list(coarse.start), list(coarse.stop)
        for a in self.changed:
            columns = self.matrices[a][start[a] : stop[a]].indices  # type: ignore[index]  # changed axes have one
            start[a], stop[a] = (int(columns.min()), int(columns.max()) + 1) if columns.size else (0, 0)
        return Box(tuple(start), tuple(stop))

    def crop(self, coarse: Box, fine: Box) -> Degradation:
        """The rows of a coarse box on the samples of a fine box; rows that see more than that box are zero."""
        matrices: list[sparse.csr_array | None] = []
        for a, matrix in enumerate(self.matrices):
            if matrix is None:
                matrices.append(None)
                continue
            rows = matrix[coarse.start[a] : coarse.stop[a]]
            part = sparse.csr_array(rows[:, fine.start[a] : fine.stop[a]])
            whole = np.asarray(rows.sum(axis=1)).ravel()
            seen = np.asarray(part.sum(axis=1)).ravel()
            matrices.append(sparse.csr_array(sparse.diags_array((seen > whole - 1e-12).astype(float)) @ part))
        return replace(self, coarse_shape=coarse.shape, fine_shape=fine.shape, matrices=tuple(matrices))

    def turned(self, orientation: Orientation) -> Degradation:
        """The same model of arrays that are turned onto other axes."""
        matrices = tuple(
            m if m is None or not back else sparse.csr_array(m[::-1, ::-1])
            for m, back in zip(orientation.axes(self.matrices), orientation.flipped, strict=True)
        )
        return replace(
            self,
            coarse_shape=orientation.axes(self.coarse_shape),
            fine_shape=orientation.axes(self.fine_shape),
            matrices=matrices,
            spec=orientation.axes(self.spec) if self.spec else (),
        )

    @property
    def support(self) -> tuple[int, ...]:
        """Coarse samples per axis from a fine sample to the farthest row that sees it, at most."""
        result = []
        for matrix, fine, coarse in zip(self.matrices, self.fine_shape, self.coarse_shape, strict=True):
            taps = 0 if matrix is None else int(np.diff(matrix.indptr).max())
            result.append(math.ceil(taps * coarse / fine / 2) + 1 if taps else 0)
        return tuple(result)

    @property
    def reach(self) -> tuple[int, ...]:
        """Coarse samples per axis beyond which the projection of one sample is negligible (0 on shared axes)."""
        return tuple(0 if m is None else _reach(m) for m in self.matrices)


@lru_cache(maxsize=64)
def _cached_matrix(place: Placement, profile: Profile, width: float | None) -> sparse.csr_array:
    return axis_matrix(place, profile, width)


def _reach(matrix: sparse.csr_array) -> int:
    """Smallest distance from which on the inverse of K is below NEGLIGIBLE of its peak.

    Of a long axis that of the row in the middle of a window; of a short one the largest of all rows, for the distance
    from its middle to its ends is none.
    """
    seeing = matrix[np.flatnonzero(np.diff(matrix.indptr))]  # a reference may cover a part of the input only
    count = seeing.shape[0]
    if count == 0:
        return 0
    first = max(0, count // 2 - WINDOW // 2)
    rows = seeing[first : first + WINDOW]
    kernel = (rows @ rows.T).toarray()
    weight = max(1e-12, 0.0 if well_conditioned(kernel) else 1e-4) * float(np.linalg.norm(kernel, 2))
    inverse = np.abs(np.linalg.inv(kernel + weight * np.eye(len(kernel))))
    looked = range(count) if count <= WINDOW else [len(kernel) // 2]
    return 1 + max(int(np.abs(np.flatnonzero(inverse[k] > NEGLIGIBLE * inverse[k].max()) - k).max()) for k in looked)


def well_conditioned(kernel: NDArray[np.float64]) -> bool:
    """Whether K = A A^T can be inverted without a weight: condition number at most 1e4 (empty rows apart)."""
    values = np.linalg.eigvalsh(kernel)
    seen = values[values > 1e-14 * values.max()]
    return bool(seen.max() <= 1e4 * seen.min())
