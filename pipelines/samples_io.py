"""Samples written through the same sinks as products, with their truth beside them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from pipelines import formats
from pipelines.errors import ExportError, UsageError
from pipelines.samples import SAMPLES
from pipelines.store import write_whole
from pipelines.workspace import check_folder, disk_failed


def write_sample(name: str, output: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the input to `output`, its truth to NAME_truth and, for a volume, a BIDS sidecar: the paths written."""
    suffix = formats.ending(output)
    stem = output.name[: -len(suffix)]
    truth = output.with_name(f"{stem}_truth{suffix}")
    sidecar = output.with_name(f"{stem}.json")
    check_folder(output.parent)
    sink = formats.sink_for(output)
    module, _, function = SAMPLES[name].partition(":")
    sample = getattr(import_module(module), function)()
    for path in (output, truth, *([] if sample.sidecar is None else [sidecar])):
        if path.exists() and not overwrite:
            raise UsageError(what=f"the output '{path.name}' exists", fix="give --overwrite to replace it")
    sink.refuse(sample.input.header, output)
    written = []
    try:
        for source, path in ((sample.input, output), (sample.truth, truth)):
            sink.write(source, None, path, {"software": "truescale sample"})
            written.append(path)
        if sample.sidecar is not None:
            write_whole(sidecar, json.dumps(sample.sidecar, indent=1) + "\n")
            written.append(sidecar)
    except ExportError as error:  # there is nothing to resume
        raise ExportError(error.what, error.why, "make room or choose another folder, then run it again") from error
    except OSError as error:
        raise disk_failed(f"'{sidecar.name}'", error) from error
    return written
