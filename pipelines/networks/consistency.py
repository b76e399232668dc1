"""The projection of `pipelines.projection` in torch: differentiable, for training through it.

With G = A^T (A A^T + l I)^-1 a corrected estimate is `x + G (y - A x)`; its derivative is the symmetric `I - G A`, so
that gradients live in what the measurement cannot see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipelines.degradation import Degradation
from pipelines.projection import NULL, Spectrum


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """Dense float32 matrices of one Degradation: small images only.

    matrices: A (coarse, fine) per axis, None where the axis is shared; vectors: eigenvectors of A A^T per axis;
    inverse: 1 / (eigenvalue + l), one axis per image axis.
    """

    matrices: tuple[Tensor | None, ...]
    vectors: tuple[Tensor | None, ...]
    inverse: Tensor

    @classmethod
    def of(
        cls,
        degradation: Degradation,
        weight: float = 0.0,
        spectra: Sequence[Spectrum] | None = None,
        device: str = "cpu",
    ) -> Self:
        """The twin of `Solver(degradation, weight, spectra)`."""
        given = iter(spectra) if spectra else None
        matrices: list[Tensor | None] = []
        vectors: list[Tensor | None] = []
        eigenvalues = np.ones((1,) * len(degradation.coarse_shape))
        for axis, matrix in enumerate(degradation.matrices):
            if matrix is None:
                matrices.append(None)
                vectors.append(None)
                continue
            own = next(given) if given else Spectrum.of(matrix)
            shape = [1] * eigenvalues.ndim
            shape[axis] = -1
            eigenvalues = eigenvalues * own.values.reshape(shape)
            matrices.append(torch.tensor(matrix.toarray(), dtype=torch.float32, device=device))
            vectors.append(torch.tensor(own.vectors, dtype=torch.float32, device=device))
        seen = eigenvalues > NULL * eigenvalues.max()
        inverse = np.where(seen, 1.0 / np.where(seen, eigenvalues + weight, 1.0), 0.0)
        return cls(tuple(matrices), tuple(vectors), torch.tensor(inverse, dtype=torch.float32, device=device))

    @classmethod
    def stacked(cls, twins: Sequence[Self]) -> Self:
        """One for images (b, c, *axes), the first with the first twin and so on; all of one shape."""
        d = len(twins[0].matrices)

        def together(each: Sequence[Tensor | None]) -> Tensor | None:
            found = [t for t in each if t is not None]
            return torch.stack(found)[(slice(None), *(None,) * (d - 1))] if found else None

        axes = range(d)
        return cls(
            tuple(together([twin.matrices[a] for twin in twins]) for a in axes),
            tuple(together([twin.vectors[a] for twin in twins]) for a in axes),
            torch.stack([twin.inverse for twin in twins])[:, None],
        )

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""

        def moved(each: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
            return tuple(None if t is None else t.to(device) for t in each)

        return type(self)(moved(self.matrices), moved(self.vectors), self.inverse.to(device))

    def forward(self, fine: Tensor) -> Tensor:
        """A x: (..., *fine) -> (..., *coarse)."""
        return _apply(self.matrices, fine, transpose=False)

    def correction(self, residual: Tensor) -> Tensor:
        """G r: (..., *coarse) -> (..., *fine), the least change that explains the residual."""
        weighed = _apply(self.vectors, residual, transpose=True) * self.inverse
        return _apply(self.matrices, _apply(self.vectors, weighed, transpose=False), transpose=True)

    def unseen(self, fine: Tensor) -> Tensor:
        """(I - G A) r: what is left of a change of the estimate after the projection."""
        return fine - self.correction(self.forward(fine))

    def project(self, estimate: Tensor, observed: Tensor) -> Tensor:
        """The corrected estimate x + G (y - A x)."""
        return estimate + self.correction(observed - self.forward(estimate))


def _apply(matrices: tuple[Tensor | None, ...], image: Tensor, *, transpose: bool) -> Tensor:
    d = len(matrices)
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            m = matrix.mT if transpose else matrix
            image = torch.movedim(torch.movedim(image, axis - d, -1) @ m.mT, -1, axis - d)
    return image
