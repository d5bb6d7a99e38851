"""One picture of a run: what it saw, what its token maps do, and how its numbers moved."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec
from torch import Tensor

from ser_lightning.files import atomic_path
from ser_lightning.groups import GroupElement
from ser_lightning.reporting.token_maps import (
    TokenComparison,
    TokenMaps,
    colour_maps,
    describe_element,
)

_COLOURS = ("#0b6fb8", "#d1570a", "#2a8a4a", "#8a4fb0")
_WIDTH = 15.0  # inches
_FAMILIES = ("rotation", "flip", "scale")


class ViewGallery(NamedTuple):
    """Images and the views that both pipelines made of them; all pixels in [0, 1].

    Attributes:
        originals: (N, 3, H, W).
        crop: two crop views, each (N, 3, H', W').
        invertible: two invertible views, each (N, 3, H', W') of its own size.
        elements: the group elements of the invertible views.
    """

    originals: Tensor
    crop: tuple[Tensor, Tensor]
    invertible: tuple[Tensor, Tensor]
    elements: tuple[GroupElement, GroupElement]


class Curves(NamedTuple):
    """Numbers of a run over its steps.

    Attributes:
        losses: for each name of a loss its (steps, values).
        history: one {"step", "metrics"} per validation, as `OnlineEvaluation` keeps them.
        baseline: metrics of the random initialisation by name; may be empty.
        num_classes: number of labels, for the chance level; 0 where there are none.
    """

    losses: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    history: Sequence[Mapping[str, Any]]
    baseline: Mapping[str, float]
    num_classes: int = 0


def demo_figure(
    path: str | os.PathLike[str],
    gallery: ViewGallery,
    comparisons: Sequence[TokenComparison],
    curves: Curves,
    layer: int,
    title: str = "",
) -> None:
    """Draws a run on one page and writes it as PNG, whole or not at all.

    Args:
        path: the PNG; its folder is made if need be.
        gallery: up to 4 images and their views; further ones are left out.
        comparisons: up to 3 transformations with token maps; further ones are left out.
        curves: numbers over the steps.
        layer: the block whose token maps are shown.
        title: a line at the top.
    """
    num_rows = (min(4, len(gallery.originals)) + 1) // 2
    comparisons = comparisons[:3]
    heights = [0.6 if title else 0.15, 1.85 * num_rows + 1.1, 1.95 * len(comparisons) + 1.3, 3.6]
    figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=100, facecolor="white")
    grid = figure.add_gridspec(4, 1, height_ratios=heights, top=1, bottom=0, left=0, right=1)
    parts = [figure.add_subfigure(grid[i]) for i in range(4)]
    parts[0].text(0.02, 0.3, title, fontsize=16, fontweight="bold", va="center")
    _draw_gallery(parts[1], gallery, num_rows, heights[1])
    _draw_comparisons(parts[2], comparisons, layer, heights[2])
    _draw_curves(parts[3], curves, layer)
    _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as partial, partial.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def _heading(part: SubFigure, text: str, height: float, note: str = "") -> None:
    part.text(0.02, 1 - 0.06 / height, text, fontsize=13, fontweight="bold", va="top")
    part.text(0.02, 1 - 0.31 / height, note, fontsize=10, color="0.35", va="top")


def _show(axes: Axes, pixels: Any, frame: float, caption: str = "") -> None:
    """Shows (h, w, 3) pixels in the middle of a square of `frame` pixels, with a caption."""
    height, width = pixels.shape[:2]
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xlim((width - frame) / 2 - 0.5, (width + frame) / 2 - 0.5)
    axes.set_ylim((height + frame) / 2 - 0.5, (height - frame) / 2 - 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(caption, fontsize=9, labelpad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _pixels(image: Tensor) -> Any:
    return image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()


def _frame(maps: Sequence[Tensor]) -> int:
    """Side of the smallest square that holds each of some (..., h, w) maps."""
    return max(max(x.shape[-2:]) for x in maps)


def _draw_gallery(part: SubFigure, gallery: ViewGallery, num_rows: int, height: float) -> None:
    """Draws two images per row, each with its four views, all at the same scale."""
    _heading(
        part,
        "What training sees",
        height,
        "Invertible views keep the whole image: a flip, a turn and a resize to a grid of tokens "
        "(height x width), each of which the token map can follow.",
    )
    outer = part.add_gridspec(
        1, 2, left=0.02, right=0.98, top=1 - 0.9 / height, bottom=0.42 / height, wspace=0.05
    )
    headings = ("image", "crop view 1", "crop view 2", "invertible view 1", "invertible view 2")
    frame = _frame([gallery.originals, *gallery.crop, *gallery.invertible])
    for i in range(min(2 * num_rows, len(gallery.originals))):
        row, side = divmod(i, 2)
        inner = outer[side].subgridspec(num_rows, 5, wspace=0.06, hspace=0.28)
        views = [gallery.originals[i], *(view[i] for view in gallery.crop + gallery.invertible)]
        elements = [describe_element(element, i) for element in gallery.elements]
        words = ["", "", "", *("\n".join(text.rsplit(", ", 1)) for text in elements)]
        for column, (view, caption) in enumerate(zip(views, words, strict=True)):
            axes = part.add_subplot(inner[row, column])
            _show(axes, _pixels(view), frame, caption)
            if row == 0:
                axes.set_title(headings[column], fontsize=10)


def _draw_comparisons(
    part: SubFigure, comparisons: Sequence[TokenComparison], layer: int, height: float
) -> None:
    """Draws a row per transformation: pixels, then the maps of both encoders."""
    _heading(
        part,
        f"Token maps after block {layer}: does the map of the transformed image, f(g.x), "
        "equal the transformed map, g.f(x)?",
        height,
        "Colours are the first three principal components of all maps of an encoder: "
        "equal colours mean similar tokens. A cosine of 1 is exact equivariance.",
    )
    if not comparisons:
        return
    grid = part.add_gridspec(
        len(comparisons),
        10,
        width_ratios=[1, 1, 0.15, 1, 1, 1, 0.15, 1, 1, 1],
        left=0.02,
        right=0.98,
        top=1 - 1.1 / height,
        bottom=0.3 / height,
        wspace=0.05,
        hspace=0.16,
    )
    frame = _frame([x for c in comparisons for x in (c.image, c.transformed)])
    for row, comparison in enumerate(comparisons):
        for column, image in enumerate((comparison.image, comparison.transformed)):
            axes = part.add_subplot(grid[row, column])
            _show(axes, _pixels(image), frame, comparison.caption if column else "")
            if row == 0:
                axes.set_title(("image x", "g.x")[column], fontsize=10)
    _draw_maps(part, grid, 3, "random init", [c.random_init for c in comparisons])
    _draw_maps(part, grid, 7, "trained", [c.trained for c in comparisons])


def _draw_maps(
    part: SubFigure, grid: GridSpec, first: int, encoder: str, maps: Sequence[TokenMaps]
) -> None:
    """Draws the maps of one encoder in three columns from column `first` on."""
    shown = [x for m in maps for x in (m.original, m.transformed, m.acted)]
    for i, colours in enumerate(colour_maps(shown)):
        row, column = divmod(i, 3)
        axes = part.add_subplot(grid[row, first + column])
        caption = f"cosine to f(g.x): {maps[row].cosine:.3f}" if column == 2 else ""
        _show(axes, colours.numpy(), _frame(shown), caption)
        if row == 0:
            axes.set_title(("f(x)", "f(g.x)", "g.f(x)")[column], fontsize=10)
        if row == 0 and column == 1:
            axes.annotate(
                encoder,
                (0.5, 1),
                (0, 21),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                fontsize=11.5,
                fontweight="bold",
                annotation_clip=False,
            )


def _draw_curves(part: SubFigure, curves: Curves, layer: int) -> None:
    """Draws losses, k-NN accuracy and equivariance over the steps."""
    panels = part.subplots(1, 3)
    part.subplots_adjust(left=0.045, right=0.98, top=0.8, bottom=0.14, wspace=0.18)
    losses, knn, equivariance = panels
    for colour, (name, (steps, values)) in zip(_COLOURS, curves.losses.items(), strict=False):
        losses.plot(steps, values, color=colour, label=name, linewidth=1.6)
    _draw_metric(knn, curves, "knn_top1", "top-1", _COLOURS[0])
    names = {name for entry in curves.history for name in entry["metrics"]} | set(curves.baseline)
    at_block = any(name.endswith(f"_block{layer}") for name in names)
    place = f"block{layer}" if at_block else "final"  # the layer may be the last one
    for colour, family in zip(_COLOURS, _FAMILIES, strict=False):
        _draw_metric(equivariance, curves, f"equivariance/{family}_{place}", family, colour)
    for axes, metric in ((knn, "knn"), (equivariance, "equivariance")):
        if any(name.startswith(metric) for name in curves.baseline):
            axes.plot([], [], color="0.4", linewidth=1.2, linestyle="--", label="random init")
    if curves.num_classes and knn.lines:
        chance = 100 / curves.num_classes
        knn.axhline(chance, color="0.55", linewidth=1.2, linestyle=":", label="chance")
    _finish(losses, "Losses", "no losses recorded")
    _finish(knn, "k-NN accuracy, percent", "needs labelled images")
    _finish(equivariance, f"Equivariance after block {layer}, 1 is exact", "not measured")


def _draw_metric(axes: Axes, curves: Curves, name: str, label: str, colour: str) -> None:
    """Draws a metric over the validations, from its random-init value, a dashed line."""
    points = [(e["step"], e["metrics"][name]) for e in curves.history if name in e["metrics"]]
    if name in curves.baseline:
        axes.axhline(curves.baseline[name], color=colour, linewidth=1.2, linestyle="--")
        points.insert(0, (0, curves.baseline[name]))
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, label=label, linewidth=1.8, marker="o", markersize=4)


def _finish(axes: Axes, title: str, placeholder: str) -> None:
    """Gives a panel its title, its legend above the plot, or a word on why it is empty."""
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left", pad=25)
    axes.set_xlabel("step", fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(color="0.9", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.lines:
        axes.legend(
            fontsize=9.5,
            frameon=False,
            ncol=4,
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.985),
            handlelength=1.6,
            columnspacing=1.2,
        )
    else:
        axes.text(0.5, 0.5, placeholder, transform=axes.transAxes, ha="center", color="0.5")
        axes.set_xticks([])
        axes.set_yticks([])
