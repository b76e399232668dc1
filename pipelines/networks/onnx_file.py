"""A network as an ONNX file that onnxruntime runs to the same values, its axes as free as the network's."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.export import Dim

from pipelines.card import ModelCard
from pipelines.errors import ModelError
from pipelines.networks.exporting import RESIDUAL
from pipelines.networks.portable import Input, Portable, portable

SAME = 1e-4
"""Most difference between torch and onnxruntime, over the largest value: sums in another order."""


def write(card: ModelCard, path: Path) -> None:
    """One file that holds the weights and, as metadata `truescale.card`, the card.

    Inputs and axes are those of `portable`; the output is the residual. Raises ModelError if onnxruntime makes other
    values of it than torch.
    """
    made = portable(card)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its progress is not the user's
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the exporter's own use of torch
        example = tuple(each.drawn(n) for n, each in enumerate(made.inputs))
        free = tuple(_free(each) for each in made.inputs)
        program = torch.onnx.export(
            torch.export.export(made.module, example, dynamic_shapes=free, strict=False),
            input_names=[each.name for each in made.inputs],
            output_names=["residual"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["truescale.card"] = json.dumps(card.to_json())
    program.model.doc_string = RESIDUAL
    program.save(str(path))
    _check(card, made, path)


def _free(each: Input) -> dict[int, object]:
    """The axes of an input that may have other lengths."""
    free: dict[int, object] = {}
    for number, axis in enumerate(each.axes):
        if axis.step:
            steps = Dim(axis.name, min=axis.least // axis.step)
            free[number] = steps if axis.step == 1 else axis.step * steps
    return free


def _check(card: ModelCard, made: Portable, path: Path) -> None:
    """Raise ModelError unless both make the same of other samples, on longer axes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = [each.drawn(10 + n, longer=1) for n, each in enumerate(made.inputs)]
    with torch.inference_mode():
        expected = made.module(*given).numpy()
    names = [each.name for each in made.inputs]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})[0]
    if found.shape != expected.shape or np.abs(found - expected).max() > SAME * max(np.abs(expected).max(), 1e-6):
        raise ModelError(
            what=f"the ONNX file of {card.id} makes other values than the network",
            why="the exporter of this version of torch is at fault",
            fix="install the versions of constraints.txt",
        )
