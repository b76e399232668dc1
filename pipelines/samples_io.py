"""Samples written through the same sinks as products, with their truth beside them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from pipelines import formats
from pipelines.errors import UsageError
from pipelines.samples import SAMPLES


def write_sample(name: str, output: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the input to `output`, its truth to NAME_truth and, for a volume, a BIDS sidecar: the paths written."""
    suffix = formats.ending(output)
    stem = output.name[: -len(suffix)]
    truth = output.with_name(f"{stem}_truth{suffix}")
    sidecar = output.with_name(f"{stem}.json")
    if not output.parent.is_dir():
        raise UsageError(what=f"the output folder '{output.parent}' does not exist", fix="make it first")
    sink = formats.sink_for(output)
    module, _, function = SAMPLES[name].partition(":")
    sample = getattr(import_module(module), function)()
    for path in (output, truth, *([] if sample.sidecar is None else [sidecar])):
        if path.exists() and not overwrite:
            raise UsageError(what=f"the output '{path.name}' exists", fix="give --overwrite to replace it")
    sink.refuse(sample.input.header, output)
    written = []
    for source, path in ((sample.input, output), (sample.truth, truth)):
        sink.write(source, None, path, {"software": "truescale sample"})
        written.append(path)
    if sample.sidecar is not None:
        sidecar.write_text(json.dumps(sample.sidecar, indent=1) + "\n")
        written.append(sidecar)
    return written
