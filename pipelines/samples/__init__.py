"""Inputs made by code together with their truth, so that results can be judged without any download.

Everything follows from a fixed seed: the same call gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.image import ArraySource

SAMPLES: dict[str, str] = {
    "head": "pipelines.samples.head:head",
    "landscape": "pipelines.samples.landscape:landscape",
}
"""name -> 'module:function' that makes it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """input: what a sensor would deliver; truth: what it looked at; sidecar: BIDS facts to lie beside the input."""

    input: ArraySource
    truth: ArraySource
    sidecar: dict[str, str | float] | None = None
