"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(28, 26, 10)), 1.5).astype(np.float32)
    nib.save(nib.Nifti1Image(scene / np.ptp(scene) * 1000, np.diag([1, 1, 4, 1])), tmp_path / "t2_axial.nii.gz")
    monkeypatch.chdir(tmp_path)
    my_array = np.asarray(nib.load("t2_axial.nii.gz").dataobj).T
    names = {"my_array": my_array, "my_network_output": np.repeat(my_array, 4, axis=0)}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["fine"].shape == (1, 40, 26, 28)
    model, better = names["model"], names["better"]
    assert np.abs(model.forward(better) - my_array).max() <= 1e-6 * 1000  # type: ignore[attr-defined]
    assert (tmp_path / "t2_iso.nii.gz").exists()


def test_every_command_of_the_readme_exists() -> None:
    from pipelines.cli import truescale

    named = set(re.findall(r"truescale ([a-z]+)", README.read_text()))
    assert "upscale" in named
    assert named <= set(truescale.commands)
