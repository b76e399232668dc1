"""Small NIfTI files for tests."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.openers import Opener
from numpy.typing import NDArray

THICK = np.diag([1.0, 0.9, 5.0, 1.0])
"""A plain RAS affine (x, y, z) with thick slices along k."""


def samples(shape: tuple[int, ...] = (6, 7, 9), seed: int = 0) -> NDArray[np.int16]:
    """Integers from 0 to 999 (i, j, k)."""
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def write_nifti(
    path: Path,
    array: NDArray[np.generic] | None = None,
    affine: NDArray[np.float64] | None = THICK,
    *,
    codes: tuple[int, int] = (1, 1),
    scaling: tuple[float, float] | None = None,
    units: str | None = "mm",
    version: int = 1,
    **fields: object,
) -> Path:
    """Write an array (i, j, k) as stored. codes: sform, qform; fields: further header fields by their NIfTI name."""
    array = samples() if array is None else array
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    header = kind(endianness=">" if array.dtype.byteorder == ">" else "<")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_qform(affine, codes[1])
    header.set_sform(affine, codes[0])
    header["magic"], header["vox_offset"] = (b"n+1", 352) if version == 1 else (b"n+2", 544)
    if units is not None:
        header.set_xyzt_units(units)
    if scaling is not None:
        header.set_slope_inter(*scaling)
    for name, value in fields.items():
        header[name] = value
    with Opener(str(path), "wb") as file:  # not nibabel's image: it resets codes and rescales
        file.write(header.binaryblock + b"\0\0\0\0" + array.tobytes(order="F"))
    return path


def edit_header(path: Path, **fields: object) -> Path:
    """Change raw fields of a `.nii`, against all rules if need be."""
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path
