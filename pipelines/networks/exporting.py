"""Networks for other programs: an ONNX file, or a folder that is a MONAI Bundle and still a bundle of ours."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from pipelines.card import ModelCard
from pipelines.errors import ModelError, UsageError

FORMATS = {
    "onnx": "pipelines.networks.onnx_file:write",
    "monai": "pipelines.networks.monai_bundle:write",
}
"""'module:function' by name; each is called with (card, path), and path is not there yet."""

RESIDUAL = (
    "Makes the residual r of x = Project(cubic(y) + r(y)) from normalised samples, (x - median) / (99th - 1st "
    "percentile): times that percentile range it is added to the cubic B-spline. Interpolation and projection, which "
    "make the product explain its input, are truescale upscale's."
)
"""What an exported network computes, for whoever finds the file."""


def export(card: ModelCard, out: Path, form: str, *, overwrite: bool = False) -> Path:
    """Write the network of a card for another program. Returns the path.

    out: the file (onnx) or the folder (monai). Raises ModelError for a model without a network, UsageError for an
    unknown format or a path that is taken (overwrite: replaced).
    """
    if form not in FORMATS:
        raise UsageError(what=f"there is no export format '{form}'", fix=f"choose one of {', '.join(FORMATS)}")
    if not card.network:
        raise ModelError(what=f"{card.name} has no network to export", fix="choose another: see truescale models")
    if card.guided:
        raise ModelError(
            what=f"{card.id} cannot be exported",
            why="what it sees of its guide is made by truescale upscale",
            fix="use that",
        )
    if out.exists() and not overwrite:
        raise UsageError(what=f"{out.name} exists", why="nothing is replaced unasked", fix="pass --overwrite")
    module, _, function = FORMATS[form].partition(":")
    write = getattr(importlib.import_module(module), function)
    made = out.with_name(f"{out.name}.part")
    _remove(made)  # of an export that was killed
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(card, made)
        if out.is_dir():  # a folder is not replaced by renaming
            _remove(out)
        made.replace(out)
    finally:
        _remove(made)
    return out


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
