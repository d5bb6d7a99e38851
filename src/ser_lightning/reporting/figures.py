"""One picture of runs side by side: their token maps, their numbers, and what they saw."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec

from ser_lightning.reporting.gallery import GALLERY_HEIGHT, ViewGallery, draw_gallery
from ser_lightning.reporting.panels import (
    PAGE_WIDTH,
    as_picture,
    frame_of,
    heading,
    plain_axes,
    save_picture,
    show_pixels,
)
from ser_lightning.reporting.side_by_side import FAMILIES
from ser_lightning.reporting.summary import RunCurve
from ser_lightning.reporting.token_maps import TokenComparison, TokenMaps, colour_maps

_STYLES = (("#d55e00", "s", "--"), ("#0072b2", "o", "-"))  # told apart in grey too
_AGREEMENT = (-0.2, 1.0)  # the range of the colours of agreement
_SIGNS = 12.4  # of a note, per inch


def demo_figure(
    path: Path,
    gallery: ViewGallery,
    comparisons: Sequence[TokenComparison],
    runs: Sequence[RunCurve],
    layer: int,
    title: str = "",
    takeaway: str = "",
    num_classes: int = 0,
) -> None:
    """Draws runs that began alike on one page and writes it as PNG, whole or not at all.

    Args:
        path: of the PNG.
        gallery: up to 2 images and their views; further ones are left out.
        comparisons: up to 3 transformations with token maps; further ones are left out.
        runs: numbers over the steps, the last run being the one to look at.
        layer: the block whose token maps are shown.
        title: a line at the top.
        takeaway: what the page shows, below it.
        num_classes: of the labels, for the chance level; 0 where there are none.
    """
    comparisons = comparisons[:3]
    words = textwrap.fill(takeaway, 145)
    above = 0.65 + 0.27 * (words.count("\n") + 1)
    heights = [above, 1.55 * len(comparisons) + 1.55, 3.5, GALLERY_HEIGHT]
    figure = Figure(figsize=(PAGE_WIDTH, sum(heights)), dpi=100, facecolor="white")
    grid = figure.add_gridspec(4, 1, height_ratios=heights, top=1, bottom=0, left=0, right=1)
    parts = [figure.add_subfigure(grid[i]) for i in range(4)]
    parts[0].text(0.02, 1 - 0.2 / heights[0], title, fontsize=16, fontweight="bold", va="top")
    parts[0].text(0.02, 1 - 0.58 / heights[0], words, fontsize=13, va="top", linespacing=1.35)
    _draw_comparisons(parts[1], comparisons, layer, heights[1])
    _draw_curves(parts[2], runs, num_classes, heights[2])
    draw_gallery(parts[3], gallery, heights[3])
    save_picture(figure, path)


def token_map_figure(path: Path, comparisons: Sequence[TokenComparison], layer: int) -> None:
    """Draws token maps alone; errors and files as `demo_figure`."""
    comparisons = comparisons[:3]
    height = 1.55 * len(comparisons) + 1.55
    width = PAGE_WIDTH * (2 + 3.1 * len(comparisons[0].maps)) / 11.3
    figure = Figure(figsize=(max(width, 8.0), height), dpi=100, facecolor="white")
    part = figure.add_subfigure(figure.add_gridspec(1, 1)[0])
    _draw_comparisons(part, comparisons, layer, height)
    save_picture(figure, path)


def _draw_comparisons(
    part: SubFigure, comparisons: Sequence[TokenComparison], layer: int, height: float
) -> None:
    """Draws a row per transformation: pixels, then maps and agreement of every encoder."""
    width = part.figure.get_figwidth()
    note = (
        f"Each patch has a vector, its token (here after block {layer}; similar ones in similar "
        "colours). The map of the moved image should be the moved map of the image; yellow where "
        "they agree."
    )
    words = textwrap.fill(note, round(width * _SIGNS))
    heading(part, "Does the token map move with the image?", height, words)
    if not comparisons:
        return
    encoders = list(comparisons[0].maps)
    grid = part.add_gridspec(
        len(comparisons),
        2 + 4 * len(encoders),
        width_ratios=[1, 1, *[0.12, 1, 1, 1] * len(encoders)],
        left=0.02,
        right=1 - 0.675 / width,
        top=1 - 1.3 / height,
        bottom=0.3 / height,
        wspace=0.05,
        hspace=0.24,
    )
    for row, comparison in enumerate(comparisons):
        for column, image in enumerate((comparison.image, comparison.transformed)):
            axes = part.add_subplot(grid[row, column])
            frame = frame_of((comparison.image, comparison.transformed))
            show_pixels(axes, as_picture(image), frame, comparison.caption if column else "")
            if row == 0:
                axes.set_title(("image", "moved\nimage")[column], fontsize=9.5)
    for number, encoder in enumerate(encoders):
        _draw_maps(part, grid, 3 + 4 * number, encoder, [c.maps[encoder] for c in comparisons])
    bar = part.add_axes((1 - 0.525 / width, 0.3 / height, 0.12 / width, 1 - 1.6 / height))
    colours = ScalarMappable(Normalize(*_AGREEMENT), "cividis")
    part.colorbar(colours, cax=bar, ticks=[0, 0.5, 1]).ax.tick_params(labelsize=8, length=2, pad=2)


def _draw_maps(
    part: SubFigure, grid: GridSpec, first: int, encoder: str, maps: Sequence[TokenMaps]
) -> None:
    """Draws the maps of one encoder and their agreement in three columns from `first` on."""
    cividis, scale = colormaps["cividis"], Normalize(*_AGREEMENT)
    for row, one in enumerate(maps):
        agreement = cividis(scale(one.agreement.numpy()))[..., :3]
        colours = [x.numpy() for x in colour_maps((one.transformed, one.acted))]
        for column, pixels in enumerate((*colours, agreement)):
            axes = part.add_subplot(grid[row, first + column])
            caption = f"score {one.centred:.2f}" if column == 2 else ""
            show_pixels(axes, pixels, max(pixels.shape), caption)
            axes.xaxis.label.set_fontweight("bold")
            if row == 0:
                words = ("map of the\nmoved image", "moved map of\nthe image", "agreement")
                axes.set_title(words[column], fontsize=9.5)
            if row == 0 and column == 1:
                axes.annotate(
                    encoder, (0.5, 1), (0, 33), xycoords="axes fraction",
                    textcoords="offset points", ha="center", fontsize=11.5, fontweight="bold",
                    annotation_clip=False,
                )  # fmt: skip


def _draw_curves(
    part: SubFigure, runs: Sequence[RunCurve], num_classes: int, height: float
) -> None:
    """Draws k-NN accuracy and the centred scores of all runs over the steps."""
    heading(
        part,
        "Over the steps of training",
        height,
        "Before training, the same for all: the tokens of an untrained ViT are little but the "
        "colours of their patches, which move along by themselves.\nScores: cosine of the two "
        "maps, less the mean token, over validation images; 1 is exact.",
    )
    panels = part.subplots(1, 1 + len(FAMILIES))
    part.subplots_adjust(
        left=0.04, right=0.985, top=1 - 1.35 / height, bottom=0.5 / height, wspace=0.2
    )
    names = ["knn_top1", *(f"equivariance/mean_centred/{family}" for family in FAMILIES)]
    titles = ["k-NN accuracy, percent", *(f"Score, {words}" for words in FAMILIES.values())]
    for axes, name, title in zip(panels, names, titles, strict=True):
        for run, (colour, marker, line) in zip(runs, _STYLES, strict=False):
            steps, values = run.points(name)
            if steps:
                axes.plot(steps, values, line, color=colour, marker=marker, label=run.name, lw=2)
        _finish(axes, title)
    if num_classes and panels[0].lines:
        panels[0].axhline(100 / num_classes, color="0.5", linestyle=":", linewidth=1.4)
        panels[0].set_ylim(bottom=0)
        panels[0].annotate(
            "chance", (1, 100 / num_classes), (0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize=9, color="0.4",
        )  # fmt: skip
    scores = [v for run in runs for name in names[1:] for v in run.points(name)[1]]
    for axes in panels[1:]:
        axes.set_ylim(min([*scores, 0.5]) - 0.05, 1.0)


def _finish(axes: Axes, title: str) -> None:
    """Gives a panel its title, its legend above the plot, or a word on why it is empty."""
    axes.set_title(title, fontsize=11, fontweight="bold", loc="left", pad=24)
    axes.set_xlabel("step", fontsize=10)
    plain_axes(axes)
    if axes.lines:
        axes.legend(
            fontsize=9.5, frameon=False, ncol=4, loc="lower left", bbox_to_anchor=(-0.04, 0.985),
            handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip
    else:
        axes.text(
            0.5, 0.5, "needs labelled images", transform=axes.transAxes, ha="center", color="0.5"
        )
        axes.set(xticks=[], yticks=[])
