"""Print the table of docs/networks.md: every network of the textbook line with its defaults, counted and traced.

python workflows/network_table.py    about a minute
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from pipelines.networks.textbook import REGISTRY, build
from pipelines.networks.textbook.bundle import counted
from pipelines.networks.textbook.field import traced

SCALES = (2, 2), (2, 2, 2)

NARROW: dict[str, int] = {"channels": 2, "growth": 1, "heads": 1, "reduction": 1, "latent": 1}
"""Widths do not change what a network sees, only how long it takes to find out."""


def main() -> None:
    """Print it row by row."""
    for line in table():
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def table() -> Iterator[str]:
    """The lines of it, in Markdown."""
    yield "| network | paper | lattice | parameters 2-D | 3-D | kMAC 2-D | 3-D | sees |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in REGISTRY.items():
        nets = [build(name, scale) for scale in SCALES]
        parameters = [short(sum(p.numel() for p in net.parameters())) for net in nets]
        cost = [f"{counted(net)[0]:,.0f}" for net in nets]
        yield f"| `{name}` | {row.paper} | {row.lattice} | {' | '.join([*parameters, *cost])} | {sees(name)} |"


def short(number: int) -> str:
    """8.1k, 1.38M."""
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}k"


def sees(name: str) -> int:
    """Coarse samples per axis that a fine sample depends on, at 2x."""
    narrow: dict[str, Any] = {}
    for key, value in REGISTRY[name].options.items():
        if key in NARROW:
            narrow[key] = [NARROW[key]] * len(value) if isinstance(value, list) else NARROW[key]
    return 2 * traced(build(name, (2, 1), **narrow)).halo[0] + 1


if __name__ == "__main__":
    main()
