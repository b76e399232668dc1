"""Networks for other programs: the same values by onnxruntime and by monai.bundle, for both families."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.bundle import load as monai_load

from pipelines import upscale
from pipelines.card import BUILT_IN, ModelCard, find
from pipelines.errors import ModelError, UsageError
from pipelines.grid import Box
from pipelines.networks import Condition, load
from pipelines.networks.exporting import export
from pipelines.networks.portable import LatticePhases
from pipelines.networks.textbook.bundle import read_bundle
from tests.pipelines.files import Run
from tests.pipelines.networks.test_textbook import SMALL
from tests.pipelines.networks.test_textbook_bundle import bundle, placement

TOLD = Condition((1.0,), (0.0,))

monai_warns = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
"""monai.bundle warns that a config is code, and of readers that are not installed."""


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


class ByOnnx(torch.nn.Module):
    """In the place of a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = session(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, {"samples": x.numpy()})[0])


@pytest.mark.parametrize("name", [n for n in SMALL if n != "rcan of the whole image"])
def test_onnx_makes_the_same_of_any_number_and_size_of_images(tmp_path: Path, name: str) -> None:
    """In 2-D and 3-D by turns: an export takes seconds."""
    network, options = SMALL[name]
    scale = ((2, 2, 2), (2, 2), (4, 1, 1), (3, 3))[[*SMALL].index(name) % 4]
    card = bundle(tmp_path, network, scale, **options)
    net = read_bundle(card)
    by_onnx = ByOnnx(export(card, tmp_path / "net.onnx", "onnx"))
    for images, more in ((1, 0), (3, 2)):
        shape = [m * (math.ceil(4 / m) + more + axis) for axis, m in enumerate(net.multiple_of)]
        x = torch.randn(images, 1, *shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = net(x)
        assert expected.abs().max() > 1e-3
        assert (by_onnx(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_tile_by_onnx_is_that_of_the_engine(tmp_path: Path) -> None:
    card = bundle(tmp_path, "edsr", (2, 2), channels=6, blocks=2)
    samples = np.random.default_rng(0).normal(size=(1, 30, 30)).astype(np.float32)
    asked = (samples, Box((0, 0), (30, 30)), Box((24, 24), (32, 32)), (placement(30, 2),) * 2, TOLD)
    engine = load(card)
    expected = engine.residual(*asked)
    engine._net = ByOnnx(export(card, tmp_path / "net.onnx", "onnx"))  # type: ignore[attr-defined]
    assert np.abs(engine.residual(*asked) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_lattice_network_by_onnx_makes_every_phase_of_any_scale(tmp_path: Path) -> None:
    """The engine's residual of an image at 3x, phase by phase."""
    card = find("lattice-geo")
    net = session(export(card, tmp_path / "geo.onnx", "onnx"))
    assert [i.name for i in net.get_inputs()] == ["samples", "phases", "condition"]
    assert json.loads(net.get_modelmeta().custom_metadata_map["truescale.card"])["name"] == "lattice-geo"
    assert "cubic" in net.get_modelmeta().description
    samples = np.random.default_rng(0).normal(size=(1, 40, 44)).astype(np.float32)
    halo, (rows, columns) = card.halo[0], (40 - 2 * card.halo[0], 44 - 2 * card.halo[1])
    write = Box((3 * halo, 3 * halo), (3 * (halo + rows), 3 * (halo + columns)))
    places = (placement(40, 3), placement(44, 3))
    expected = load(card).residual(samples, Box((0, 0), (40, 44)), write, places, TOLD)[0]
    module = LatticePhases(scale=3, blur_fwhm_coarse=1.0, **card.options)
    given = {
        "samples": samples[None],
        "phases": module.get_buffer("phases").numpy(),
        "condition": module.get_buffer("condition").numpy(),
    }
    made = net.run(None, given)[0]  # (1, 9, rows, columns)
    found = made.reshape(3, 3, rows, columns).transpose(2, 0, 3, 1).reshape(3 * rows, 3 * columns)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_file_that_makes_other_values_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = bundle(tmp_path, "edsr", (2, 2), channels=4, blocks=1)
    monkeypatch.setattr("pipelines.networks.onnx_file.SAME", -1.0)
    with pytest.raises(ModelError, match="makes other values than the network"):
        export(card, tmp_path / "net.onnx", "onnx")
    assert not list(tmp_path.glob("net.onnx*"))


@monai_warns
@pytest.mark.parametrize(
    "made",
    [
        lambda folder: bundle(folder, "unet", (2, 2), channels=[4, 6], units=0),
        lambda folder: bundle(folder, "rdn", (2, 1, 1), channels=4, growth=3, layers=2, blocks=2),
        lambda _: find("lattice-geo"),
        lambda _: find("lattice-mri"),
    ],
    ids=["unet", "rdn", "lattice-geo", "lattice-mri"],
)
def test_monai_loads_the_network_and_runs_it_to_the_same_values(
    tmp_path: Path, made: Callable[[Path], ModelCard]
) -> None:
    from pipelines.networks.portable import portable

    card = made(tmp_path / "bundle")
    folder = export(card, tmp_path / "monai", "monai")
    own = portable(card)
    x = own.inputs[0].drawn(3)[:1]
    if isinstance(own.module, LatticePhases):  # its scale and blur are the config's
        config = json.loads((folder / "configs" / "inference.json").read_text())["network_def"]
        own_net: torch.nn.Module = LatticePhases(**{k: v for k, v in config.items() if k != "_target_"})
        own_net.load_state_dict(own.module.state_dict())
    else:
        own_net = own.module
    with torch.inference_mode():
        expected = own_net.eval()(x)
        loaded = monai_load("monai", bundle_dir=tmp_path, workflow_type="inference", device="cpu")
        assert torch.equal(loaded.eval()(x), expected)
    np.save(tmp_path / "x.npy", x[0].numpy())
    told: dict[str, Any] = {"bundle_root": str(folder), "dataset_dir": str(tmp_path), "device": "$torch.device('cpu')"}
    workflow = ConfigWorkflow(
        folder / "configs" / "inference.json", workflow_type="inference", run_id="evaluate", **told
    )
    workflow.initialize()
    assert not workflow.check_properties()
    workflow.run()
    assert torch.equal(workflow.evaluator.state.output[0]["pred"].as_tensor(), expected[0])


def test_the_folder_of_monai_is_a_bundle_still(tmp_path: Path) -> None:
    card = bundle(tmp_path / "bundle", "espcn", (2, 2), channels=[3, 3])
    folder = export(card, tmp_path / "monai", "monai")
    again = find(folder / f"{card.id}.json")
    assert again == card
    again.verify()
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == ["*", "*"]
    assert (folder / "LICENSE").read_text().strip().endswith("Apache-2.0")


@pytest.mark.slow
def test_monai_on_the_command_line_makes_the_products_of_upscale(tmp_path: Path) -> None:
    """The command of the folder's README as it stands."""
    card = bundle(tmp_path / "bundle", "espcn", (4, 1, 1), channels=[3, 3])
    folder = export(card, tmp_path / "monai", "monai")
    (tmp_path / "in").mkdir()
    data = np.random.default_rng(0).normal(size=(24, 22, 8)).cumsum(0).cumsum(1).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([1, 1, 4, 1])), tmp_path / "in" / "t2.nii")
    command = (folder / "docs" / "README.md").read_text().split("python -m ")[1].split("\n")[0]
    subprocess.run(
        [sys.executable, "-m", *command.replace("INPUTS", str(tmp_path / "in")).split()],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    upscale(tmp_path / "in" / "t2.nii", tmp_path / "own.nii", model=str(folder / f"{card.id}.json"))
    theirs, own = (nib.load(p) for p in (folder / "products" / "t2.nii", tmp_path / "own.nii"))
    assert own.shape == (24, 22, 32)
    assert np.array_equal(np.asarray(theirs.dataobj), np.asarray(own.dataobj))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken.onnx"
    taken.write_text("mine")
    with pytest.raises(ModelError, match="floor has no network"):
        export(BUILT_IN["floor"], tmp_path / "f.onnx", "onnx")
    with pytest.raises(UsageError, match="no export format 'tf'"):
        export(find("lattice-geo"), tmp_path / "f", "tf")
    with pytest.raises(UsageError, match=r"taken\.onnx exists"):
        export(find("lattice-geo"), taken, "onnx")
    assert taken.read_text() == "mine"


def test_export_on_the_command_line(run: Run, tmp_path: Path) -> None:
    card = bundle(tmp_path, "espcn", (2, 2), channels=[3, 3])
    path = str(tmp_path / f"{card.id}.json")
    code, out, _ = run("models", "export", path, tmp_path / "net.onnx")
    assert (code, out) == (0, f"{tmp_path / 'net.onnx'}\n")
    assert run("models", "export", path, tmp_path / "net.onnx")[0] == 2
    code, out, _ = run("models", "export", path, tmp_path / "folder", "--format", "monai")
    assert code == 0
    assert (tmp_path / "folder" / "models" / "model.pt").is_file()
    assert run("models", "export", path, tmp_path / "folder", "--format", "monai", "--overwrite")[0] == 0
    assert json.loads(run("models", path)[1])["parameters"] == sum(p.numel() for p in read_bundle(card).parameters())
