"""Pictures of the demo: before, after, truth and error, in physical proportions and with one grey window or stretch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation import metrics
from pipelines.evaluation.truths import body
from pipelines.formats import open_source
from pipelines.grid import Box, Grid

ACROSS = 0.42
"""Where volumes are cut, as a share of the axis looked along: beside the midline, through the cortex."""

RGB = (("B04", "B03", "B02"), ("B4", "B3", "B2"), ("R", "G", "B"), ("red", "green", "blue"))
"""Names of the bands that look natural."""

ZOOM = {"volume": 0.30, "scene": 0.15}
"""Side of the enlarged part over the shorter side of the picture."""

ZOOM_SAMPLES = 32
"""The enlarged part holds at least so many fine samples."""

PROPORTION = 1.5
"""Taller or flatter planes are cut to this ratio of their sides."""

BAR_INCHES = 1.2
"""Width that the colour bar of the error takes."""


@dataclass(frozen=True)
class Image:
    """samples: (channel, *shape), NaN = invalid; names of the channels."""

    samples: NDArray[np.float32]
    grid: Grid
    names: tuple[str, ...]
    volume: bool


@dataclass(frozen=True)
class View:
    """A plane: pixels (rows, columns) or (rows, columns, 3), and its edges (left, right, bottom, top) in mm or m."""

    pixels: NDArray[np.float32]
    edges: tuple[float, float, float, float]


def read_image(path: Path) -> Image:
    """A whole image; alpha channels are left out."""
    with open_source(path) as source:
        header = source.header
        samples = source.read(Box.whole(header.grid.shape))
    kept = [k for k, c in enumerate(header.channels) if c.kind == "image"]
    names = tuple(header.channels[k].name for k in kept)
    return Image(samples[kept], header.grid, names, header.grid.ndim == 3)


def errors_of(truth: Image, product: Image, scale: float) -> dict[str, float]:
    """The metrics of the evaluation protocol, but consistency (which `upscale` reports) and the shares of detail."""
    x = truth.samples.astype(np.float64)
    peaks = np.array([np.percentile(band, 99.9) for band in x])
    mask = np.stack([body(band / peak) for band, peak in zip(x, peaks, strict=True)]) if truth.volume else x == x
    compared = metrics.Comparison(
        truth=x,
        product=product.samples.astype(np.float64),
        mask=mask,
        peaks=peaks,
        scale=scale,
        residual=np.zeros((len(x), 1)),
    )
    columns = metrics.MEDICAL if truth.volume else metrics.IMAGERY
    return {c: metrics.TABLE[c](compared) for c in columns if c in metrics.TABLE and c != "consistency"}


def all_errors(source: Path, truth: Path, products: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Method -> metric -> value of some products of `source`."""
    fine, coarse = read_image(truth), read_image(source)
    scale = float(np.max(np.divide(fine.grid.shape, coarse.grid.shape)))
    return {name: errors_of(fine, read_image(path), scale) for name, path in products.items()}


def picture_of_files(
    path: Path, title: str, files: tuple[Path, Path, Path | None], errors: dict[str, dict[str, float]]
) -> None:
    """`picture` of (before, after, truth or None)."""
    before, after, truth = (None if f is None else read_image(f) for f in files)
    assert before is not None
    assert after is not None
    picture(path, title, before, after, truth, errors)


def picture(
    path: Path, title: str, before: Image, after: Image, truth: Image | None, errors: dict[str, dict[str, float]]
) -> None:
    """Before, after and, where there is a truth, truth and error: whole above, enlarged below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    images = [before, after] + ([truth] if truth else [])
    cut = _cut(before, after)
    views = [_view(image, cut, before) for image in images]
    window = _window(views[0])
    titles = [f"before\n{_spacing(before)}", f"after\n{_spacing(after)}"]
    if truth:
        ours = list(errors)[-1]
        titles[1] += f", {errors[ours]['psnr']:.2f} dB"
        titles.append(f"truth\n{_spacing(truth)}")
        titles.append("error of after\n" + ", ".join(f"{n} {e['psnr']:.2f} dB" for n, e in list(errors.items())[:-1]))
    zoom = _busiest(views[1], ZOOM["volume" if before.volume else "scene"])
    seen = _seen(views[0].edges, zoom)
    tall = (seen[3] - seen[2]) / (seen[1] - seen[0])
    columns = len(titles)
    width = 4.3
    size = (width * columns + BAR_INCHES * bool(truth), width * (tall + 1) + 1.1)
    figure, axes = plt.subplots(2, columns, figsize=size, height_ratios=(tall, 1), layout="constrained")
    figure.suptitle(title, fontsize=17)
    shades: Any = None
    for k in range(columns):
        for row in (0, 1):
            if k < len(views):
                axes[row, k].imshow(
                    _shown(views[k], window),
                    extent=views[k].edges,
                    cmap="gray",
                    vmin=0,
                    vmax=1,
                    interpolation="nearest",
                )
            else:
                difference, limit = _difference(views[1], views[2], window)
                shades = axes[row, k].imshow(
                    difference, extent=views[1].edges, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
                )
        _frame(axes[:, k], titles[k], zoom, seen)
    if shades is not None:
        bar = figure.colorbar(shades, ax=axes[:, -1], location="right", shrink=0.55, pad=0.02)
        bar.set_label("after - truth, share of the window", fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _seen(edges: tuple[float, ...], zoom: tuple[float, ...]) -> tuple[float, float, float, float]:
    """The part of a plane that is drawn: all of it, or PROPORTION times its shorter side around the enlarged part."""
    sides = (edges[1] - edges[0], edges[3] - edges[2])
    longest = PROPORTION * min(sides)
    result = []
    for k, side in enumerate(sides):
        reach = min(side, longest)
        start = min(max((zoom[2 * k] + zoom[2 * k + 1] - reach) / 2, edges[2 * k]), edges[2 * k] + side - reach)
        result += [start, start + reach]
    return result[0], result[1], result[2], result[3]


def _frame(column: Any, title: str, zoom: tuple[float, float, float, float], edges: tuple[float, ...]) -> None:
    from matplotlib.patches import Rectangle

    whole, part = column
    whole.set_title(title, fontsize=12)
    x0, x1, y0, y1 = zoom
    whole.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="#ffcc00", linewidth=1.4))
    whole.set(xlim=edges[:2], ylim=edges[2:])
    part.set(xlim=(x0, x1), ylim=(y0, y1))
    for axis in column:
        axis.set_aspect("equal")
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)


def _spacing(image: Image) -> str:
    unit = {"m": "m", "mm": "mm"}.get(image.grid.frame.unit, image.grid.frame.unit)
    return " x ".join(f"{s:.3g}" for s in image.grid.spacing) + f" {unit}"


def _cut(before: Image, after: Image) -> tuple[int, int, int]:
    """(vertical axis, horizontal axis, axis looked along) of the plane that shows the thick axis; images: as stored."""
    if not before.volume:
        return 0, 1, -1
    gained = np.divide(after.grid.shape, before.grid.shape)
    thick = int(np.argmax(gained))
    others = [a for a in range(3) if a != thick]
    extent = [before.grid.shape[a] * before.grid.spacing[a] for a in others]
    other = others[int(np.argmax(extent))]
    along = next(a for a in others if a != other)
    heads = [abs(_direction(before.grid, a)[2]) for a in (thick, other)]
    vertical, horizontal = (thick, other) if heads[0] >= heads[1] else (other, thick)
    return vertical, horizontal, along


def _direction(grid: Grid, axis: int) -> NDArray[np.float64]:
    column = grid.affine[:3, axis]
    return np.asarray(column / np.linalg.norm(column))


def _view(image: Image, cut: tuple[int, int, int], reference: Image) -> View:
    """A plane of a volume with the head up, or a picture in natural colours with north up; edges shared by all."""
    vertical, horizontal, along = cut
    spacing = reference.grid.spacing
    shape = reference.grid.shape
    edges = (0.0, shape[horizontal] * spacing[horizontal], 0.0, shape[vertical] * spacing[vertical])
    if not image.volume:
        return View(np.moveaxis(image.samples[_natural(image.names)], 0, -1), edges)
    index = int(ACROSS * image.grid.shape[along])
    plane = np.take(image.samples[0], index, axis=along)
    if horizontal < vertical:
        plane = plane.T
    down, right = _direction(image.grid, vertical), _direction(image.grid, horizontal)
    if down[int(np.argmax(np.abs(down)))] * (-1 if np.argmax(np.abs(down)) == 2 else 1) < 0:
        plane = plane[::-1]
    if right[int(np.argmax(np.abs(right)))] < 0:
        plane = plane[:, ::-1]
    return View(plane, edges)


def _natural(names: tuple[str, ...]) -> list[int]:
    for wanted in RGB:
        if all(w in names for w in wanted):
            return [names.index(w) for w in wanted]
    return [0, 1, 2] if len(names) > 2 else [0, 0, 0]


def _window(view: View) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(low, high) per shown channel: the same for before, after and truth."""
    flat = view.pixels.reshape(-1, view.pixels.shape[2] if view.pixels.ndim == 3 else 1)
    low, high = np.nanpercentile(flat, [0.5, 99.5] if view.pixels.ndim == 2 else [1, 99], axis=0)
    return low, np.maximum(high, low + 1e-6)


def _shown(view: View, window: tuple[NDArray[np.float64], NDArray[np.float64]]) -> NDArray[np.float64]:
    low, high = window
    if view.pixels.ndim == 2:
        return np.asarray((view.pixels - low[0]) / (high[0] - low[0]))
    scaled = np.clip((view.pixels - low) / (high - low), 0, 1) ** 0.85  # a little brighter: vegetation is dark
    return np.asarray(np.where(np.isfinite(scaled), scaled, 1.0))


def _difference(
    after: View, truth: View, window: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], float]:
    """(after - truth over the window, mean over the shown bands; the limit of its colours)."""
    low, high = window
    span = high - low
    difference = (after.pixels - truth.pixels) / (span if after.pixels.ndim == 3 else span[0])
    if difference.ndim == 3:
        difference = difference.mean(axis=-1)
    return np.asarray(difference), float(max(0.05, np.nanpercentile(np.abs(difference), 99.0)))


def _busiest(view: View, share: float) -> tuple[float, float, float, float]:
    """(x0, x1, y0, y1) of a square with much detail, rather in the middle, in the units of the edges."""
    from scipy import ndimage

    grey = np.nan_to_num(view.pixels if view.pixels.ndim == 2 else view.pixels.mean(axis=-1))
    left, right, bottom, top = view.edges
    per_row, per_column = (top - bottom) / grey.shape[0], (right - left) / grey.shape[1]
    shorter = min(right - left, top - bottom)
    side = min(0.85 * shorter, max(share * shorter, ZOOM_SAMPLES * max(per_row, per_column)))
    window = (max(3, int(side / per_row)), max(3, int(side / per_column)))
    detail = ndimage.uniform_filter(np.sqrt(ndimage.gaussian_gradient_magnitude(grey, 1.5)), window)
    margin = tuple(w // 2 + 1 for w in window)
    r, c = (np.linspace(-1, 1, n) for n in grey.shape)
    detail *= np.exp(-(r[:, None] ** 2 + c[None, :] ** 2) / 0.5)  # the skin is the strongest edge and the least wanted
    inner = detail[margin[0] : -margin[0], margin[1] : -margin[1]]
    row, column = np.unravel_index(int(np.argmax(inner)), inner.shape)
    x = left + (column + margin[1] + 0.5) * per_column
    y = top - (row + margin[0] + 0.5) * per_row
    return x - side / 2, x + side / 2, y - side / 2, y + side / 2
