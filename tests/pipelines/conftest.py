"""The program in this process, a thick-slice volume and a scene of two bands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines import cli
from tests.pipelines.files import Run, smooth, write_raster


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the program in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["truescale", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def thick(tmp_path: Path) -> Path:
    """Twelve oblique slices of 4 mm, with a sidecar that says 3.5 mm."""
    turn = nib.eulerangles.euler2mat(0.1, -0.2, 0.15)
    affine = nib.affines.from_matvec(turn @ np.diag([-1, 1, 4]), [90, -100, 20])
    path = tmp_path / "t2.nii.gz"
    nib.save(nib.Nifti1Image(smooth((30, 28, 12)), affine), path)
    (tmp_path / "t2.json").write_text(json.dumps({"SliceThickness": 3.5}))
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two bands of reflectance in UTM."""
    data = np.stack([smooth((50, 44)), smooth((50, 44)).T[:44, :50].T]).astype(np.uint16)
    return write_raster(tmp_path / "s2.tif", data)
