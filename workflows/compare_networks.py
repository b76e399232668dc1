"""Train every small network of configs/training, evaluate all on one protocol, print the tables of docs/networks.md.

Beside the evaluation, in RUNS/compared, curves.png shows what each reached on held-out patches as it went.

python workflows/compare_networks.py [NAME ...] [--runs DIR] [--data DIR]

About five minutes a network on two cores; what is trained and measured already is kept, so the same call goes on after
it was stopped. NAME: configs like edsr-2d; without one all of them.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines.card import ModelCard
from pipelines.evaluation import suite
from pipelines.evaluation.tables import Row, Table
from pipelines.training.fit import train

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "training"

SUITE = "smoke"

UNPROJECTED = " unprojected"

MEMORY = "8GB"
"""Attention in three dimensions needs more than the usual 4 GB for its smallest tile."""


def main() -> None:
    """Train, evaluate, print."""
    known = sorted(path.stem for path in CONFIGS.glob("*-[23]d.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=known)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRUESCALE_DATA", "data")))
    asked = parser.parse_args()
    for name in asked.names:
        if name not in known:
            parser.error(f"there is no config {name}; known are {', '.join(known)}")
    cards = {name: trained(name, asked.data, asked.runs) for name in asked.names}
    paths = [str(card.folder / f"{card.id}.json") for card in cards.values() if card.folder]
    draw(asked.runs, asked.names, asked.runs / "compared" / "curves.png")
    made = suite.evaluate(SUITE, asked.data, paths, told, out=asked.runs / "compared", unprojected=True, memory=MEMORY)
    with (asked.runs / "compared" / "scores.csv").open(encoding="utf-8", newline="") as file:
        scores = list(csv.DictReader(file))
    for table in made.tables:
        lines = list(rows(table, {card.id: card for card in cards.values()}, scores))
        if lines:
            head = [
                f"\n### {table.condition} ({table.counts})\n",
                f"| {' | '.join(COLUMNS)} |",
                "|---" * len(COLUMNS) + "|",
            ]
            sys.stdout.write("\n".join([*head, *lines, ""]))


def trained(name: str, data: Path, runs: Path) -> ModelCard:
    """The bundle of a config: what is there, or trained now, from the last checkpoint if there is one."""
    folder = runs / f"{name}-1.0"
    card = folder / f"{name}-1.0.json"
    if card.is_file():
        return ModelCard.read(card)
    began = time.monotonic()
    made = train(CONFIGS / f"{name}.yaml", data, runs=runs, resume=(folder / "last.ckpt").is_file())
    sys.stderr.write(f"trained  {name}: {made.training['reached']}, {time.monotonic() - began:.0f} s\n")
    return made


def curve(folder: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps, and the values of this name there, of a training's log."""
    log = EventAccumulator(str(folder / "log"))
    log.Reload()
    points = log.Scalars(name)
    return [p.step for p in points], [p.value for p in points]


def draw(runs: Path, names: list[str], path: Path) -> None:
    """A small picture for each network: gain over cubic with the projection and without, 2-D and 3-D."""
    from matplotlib import pyplot as plt

    mpl.use("Agg")
    networks = sorted({name.rpartition("-")[0] for name in names})
    columns = 6
    lines = -(-len(networks) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(13, 2.1 * lines + 0.6), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for place, network in zip(axes.flat, networks, strict=False):
        for suffix, colour in (("2d", "tab:blue"), ("3d", "tab:orange")):
            folder = runs / f"{network}-{suffix}-1.0"
            if f"{network}-{suffix}" not in names:
                continue
            for value, style in (("over_cubic_db", "-"), ("unprojected_over_cubic_db", ":")):
                steps, gains = curve(folder, f"held out/{value}")
                label = f"{suffix.upper()}, {'projected' if style == '-' else 'unprojected'}"
                place.plot([100 * s / steps[-1] for s in steps], gains, style, color=colour, marker=".", label=label)
        place.set_title(network, fontsize=10)
        place.axhline(0, color="0.7", linewidth=0.8)
        place.spines[["top", "right"]].set_visible(False)
    for place in axes.flat[len(networks) :]:
        place.set_axis_off()
    figure.supxlabel("steps [% of the training]", fontsize=10)
    figure.supylabel("over cubic, held-out patches [dB]", fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def told(what: str, done: int, total: int) -> None:
    """Progress of the evaluation, a line for every tenth."""
    if total and done * 10 // total != (done - 1) * 10 // total:
        sys.stderr.write(f"measured {what} {done} of {total}\n")


COLUMNS = (
    *("network", "parameters", "MFLOP a sample", "sees", "seconds", "PSNR", "SSIM"),
    *("projected, over the floor (worst)", "over cubic", "unprojected, over cubic (worst)"),
)


def rows(table: Table, cards: dict[str, ModelCard], scores: list[dict[str, str]]) -> Iterator[str]:
    """A line for cubic, the floor and every network that suits the condition, the best first; none without one."""
    found = {row.model: row for row in table.rows}
    networks = [row for row in table.rows if row.model in cards]
    if not networks:
        return
    of_condition = [s for s in scores if s["condition"] == table.condition and s["subject"] not in table.apart]

    def over(model: str, other: str) -> tuple[float, float]:
        return gain(of_condition, model, other)

    yield f"| cubic | 0 | - | - | {figures(found['cubic'])} | - | - | - |"
    yield f"| floor | 0 | - | - | {figures(found['floor'])} | - | {over('floor', 'cubic')[0]:+.2f} | - |"
    for row in sorted(networks, key=lambda row: over(row.model, "floor"), reverse=True):
        card, name = cards[row.model], row.model
        sees = " x ".join(str(2 * h + 1) for h in card.halo)
        cost = f"{card.training['parameters']} | {2 * card.kmac_per_sample / 1e3:.3g} | {sees} | {figures(row)}"
        (mean_db, worst_db), (bare_db, bare_worst_db) = over(name, "floor"), over(name + UNPROJECTED, "cubic")
        yield (
            f"| `{name}` | {cost} | {mean_db:+.2f} ({worst_db:+.2f}) | {over(name, 'cubic')[0]:+.2f} "
            f"| {bare_db:+.2f} ({bare_worst_db:+.2f}) |"
        )


def figures(row: Row) -> str:
    """Seconds, PSNR, SSIM."""
    return f"{row.values['seconds']:.2g} | {row.values['psnr']:.2f} | {row.values['ssim']:.4f}"


def gain(scores: list[dict[str, str]], model: str, other: str) -> tuple[float, float]:
    """PSNR of one method over another [dB], image by image: mean over subjects or places, and the worst image."""
    psnr = {(s["subject"], s["image"], s["model"]): float(s["psnr"]) for s in scores}
    found: dict[str, list[float]] = {}
    for (subject, image, name), value in psnr.items():
        if name == model:
            found.setdefault(subject, []).append(value - psnr[subject, image, other])
    return mean([mean(values) for values in found.values()]), min(min(values) for values in found.values())


if __name__ == "__main__":
    main()
