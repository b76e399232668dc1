"""A bundle's folder as a MONAI Bundle: the same card and weights, and beside them what `monai.bundle` reads.

monai.bundle loads the network from models/model.pt (tensors only) and configs/inference.json, which names its class and
options and so needs truescale installed. `run` makes products of a folder with `upscale`, whose interpolation and
projection a network alone has not; `evaluator` is MONAI's engine for the network alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from pipelines.card import ModelCard
from pipelines.networks.exporting import RESIDUAL
from pipelines.networks.portable import portable

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Of metadata.json. Only monai.bundle.verify_metadata fetches it."""


def write(card: ModelCard, folder: Path) -> None:
    """A new folder with the bundle and what MONAI reads. Raises ModelError."""
    card.verify()
    assert card.weights is not None
    folder.mkdir(parents=True)
    shutil.copyfile(card.weights, folder / card.weights_file)
    card.write(folder / f"{card.id}.json")
    add(ModelCard.read(folder / f"{card.id}.json"))


def add(card: ModelCard) -> None:
    """What MONAI reads, into the folder of a bundle. Raises ModelError."""
    made = portable(card)
    folder = card.folder
    assert folder is not None
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(exist_ok=True)
    torch.save(made.module.state_dict(), folder / "models" / "model.pt")
    _write_json(folder / "configs" / "inference.json", _inference(card))
    _write_json(folder / "configs" / "metadata.json", _metadata(card))
    (folder / "docs" / "README.md").write_text(_readme(card), encoding="utf-8")
    (folder / "LICENSE").write_text(f"SPDX-License-Identifier: {card.licence}\n", encoding="utf-8")


def _inference(card: ModelCard) -> dict[str, Any]:
    """Ids as monai.bundle expects them; every one may be overridden where it is run."""
    whole = "x".join(map(str, card.factors)) if card.axes != "through-plane" and card.factors else None
    return {
        "imports": ["$import glob", "$import os", "$import pipelines", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/inputs'",
        "output_dir": "$@bundle_root + '/products'",
        "scale": whole,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": _network(card),
        "network": "$@network_def.to(@device)",
        "model": f"$@bundle_root + '/{card.id}.json'",
        "inputs": "$sorted(glob.glob(@dataset_dir + '/*'))",
        "products": "$[os.path.join(@output_dir, os.path.basename(p)) for p in @inputs]",
        "run": [
            "$os.makedirs(@output_dir, exist_ok=True)",
            "$[pipelines.upscale(*pair, scale=@scale, model=@model) for pair in zip(@inputs, @products)]",
        ],
        "preprocessing": {"_target_": "LoadImaged", "keys": "image", "reader": "NumpyReader"},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.npy'))]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "val_handlers": "@handlers",
        },
        "evaluate": ["$@evaluator.run()"],
    }


def _network(card: ModelCard) -> dict[str, Any]:
    if card.network == "textbook":
        return {"_target_": "pipelines.networks.textbook.build", **card.options}
    blur = card.blur_fwhm_coarse or (1.0, 1.0)
    return {
        "_target_": "pipelines.networks.portable.LatticePhases",
        "scale": int(max(2, card.scales[0])),
        "blur_fwhm_coarse": sum(blur) / 2,
        **card.options,
    }


def _metadata(card: ModelCard) -> dict[str, Any]:
    samples, *_ = portable(card).inputs
    channels = samples.axes[1].length
    free = ["*" if axis.step == 1 else f"{axis.step}*n" for axis in samples.axes[2:]]

    def image(count: int, shape: list[str]) -> dict[str, Any]:
        return {
            "type": "image",
            "format": "magnitude",
            "modality": card.domain,
            "num_channels": count,
            "spatial_shape": shape,
            "dtype": "float32",
            "value_range": [],
            "is_patch_data": True,
            "channel_def": {str(n): f"channel {n}" for n in range(count)},
        }

    return {
        "schema": SCHEMA,
        "version": card.version,
        "changelog": {card.version: "as trained"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"truescale": _truescale()},
        "name": card.name,
        "task": card.task,
        "description": RESIDUAL,
        "authors": "",
        "copyright": "",
        "data_source": card.trained_on,
        "intended_use": "Research, not for diagnosis",
        "network_data_format": {
            "inputs": {"image": image(channels, free)},
            "outputs": {"pred": image(1, ["*"] * len(free))},
        },
    }


def _truescale() -> str:
    from importlib.metadata import version

    return version("truescale")


def _readme(card: ModelCard) -> str:
    return f"""# {card.id}

{card.task[:1].upper()}{card.task[1:]}, {card.scale}. Trained on {card.trained_on}. Research, not for diagnosis.

{RESIDUAL}

    truescale upscale INPUT OUTPUT --model {card.id}.json
    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir INPUTS

The second makes a product of every file in INPUTS, in `products`. `--run_id evaluate` runs the network alone, by
MONAI's engine, on `.npy` files of normalised samples (channel first).
"""


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
