"""Whether an input is like what a network was trained on: a few numbers of its differences, free of units.

They do not say that a network will do well, only that it meets what nobody has tried it on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.projection import EXPLAINED

EQUAL = 1e-6
"""Neighbours that differ by less than this share of the range are equal."""

SLACK = 1.25
"""A number may be this many times beyond what was met in training."""

SLACK_OF_SHARE = 0.2
"""The same of a share, added."""

FEWEST = 64
"""Differences; fewer say nothing."""

WORDS = {
    "roughness": "second differences over first ones",
    "tails": "root mean square over mean difference",
    "equal": "share of equal neighbours",
}


def statistics(values: NDArray[np.floating], valid: NDArray[np.bool_], scale: float) -> dict[str, float]:
    """Of the differences along the last axis of windows (..., n), where all are valid; {} of too few or none.

    scale: the range of the samples, 1st to 99th percentile.
    """
    v = np.where(valid, values, 0.0).astype(np.float64)
    pairs = valid[..., 1:] & valid[..., :-1]
    first = np.diff(v, axis=-1)
    second = np.diff(first, axis=-1)[pairs[..., 1:] & pairs[..., :-1]]
    first = first[pairs]
    differing = np.abs(first[np.abs(first) > EQUAL * scale])
    if len(differing) < FEWEST or not second.size:
        return {}
    rms = float(np.sqrt(np.mean(first**2)))
    return {
        "roughness": float(np.sqrt(np.mean(second**2))) / rms,
        "tails": rms / float(np.mean(np.abs(first))),
        "equal": 1 - len(differing) / len(first),
    }


def contradicts(before_rms: float, noise_sigma: float, scale: float, most: float) -> bool:
    """Whether an estimate, before the projection, is farther from the input than its noise and than any in training.

    before_rms: of measured - degraded estimate; most: over the scale, that of training (0: unknown).
    """
    return most > 0 and before_rms > max(EXPLAINED * noise_sigma, SLACK * most * scale)


def ranges(found: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Least and largest of each number met in training."""
    return {name: [round(f([s[name] for s in found if s]), 4) for f in (min, max)] for name in WORDS}


def unlike(found: Mapping[str, float], typical: Mapping[str, Sequence[float]]) -> str:
    """What is far from what was met in training, in words; '' if nothing is."""
    for name, value in found.items():
        if name not in typical:
            continue
        low, high = typical[name]
        low, high = (low - SLACK_OF_SHARE, high + SLACK_OF_SHARE) if name == "equal" else (low / SLACK, high * SLACK)
        if not low <= value <= high:
            return f"{WORDS[name]} {value:.2f}, met in training {max(0.0, low):.2f} to {high:.2f}"
    return ""
