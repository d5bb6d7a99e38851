"""One picture of runs side by side: their token maps, their numbers, and what they saw."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec
from torch import Tensor

from ser_lightning.batch import ViewRecord
from ser_lightning.files import atomic_path
from ser_lightning.groups import Frame, GroupElement
from ser_lightning.reporting.overlap_marks import Marks, draw_marks, overlap_marks
from ser_lightning.reporting.side_by_side import FAMILIES, RunCurve
from ser_lightning.reporting.token_maps import (
    TokenComparison,
    TokenMaps,
    colour_maps,
    describe_draws,
    describe_element,
)

_STYLES = (("#d55e00", "s", "--"), ("#0072b2", "o", "-"))  # told apart in grey too
_AGREEMENT = (-0.2, 1.0)  # the range of the colours of agreement
_WIDTH, _GALLERY = 15.0, 3.05  # inches: of a page, and how high its images and views are
_CAPTION, _SIGNS = 20, 12.4  # signs in a line below a view, and of a note per inch


class ViewGallery(NamedTuple):
    """Images and the views that both pipelines made of them; all pixels in [0, 1].

    Attributes:
        originals: (N, 3, H, W).
        crop: two crop views, each (N, 3, H', W').
        invertible: two invertible views, each (N, 3, H', W') of its own size; none without them.
        elements: the group elements of the invertible views.
        records: what else was drawn of each view, crops first.
        crop_frames: where the crops lie, if what they have in common is to be marked.
        invertible_frames: the same of the invertible views.
    """

    originals: Tensor
    crop: tuple[Tensor, ...]
    invertible: tuple[Tensor, ...]
    elements: tuple[GroupElement, ...]
    records: tuple[ViewRecord[Tensor], ...]
    crop_frames: tuple[Frame, Frame] | None = None
    invertible_frames: tuple[Frame, Frame] | None = None

    @property
    def is_marked(self) -> bool:
        """Whether what two views have in common is drawn upon them."""
        return self.crop_frames is not None or self.invertible_frames is not None

    def words(self, row: int) -> list[str]:
        """What was drawn of each view of an image, crops first, in lines."""
        drawn = [textwrap.fill(describe_draws(record, row), _CAPTION) for record in self.records]
        elements = [describe_element(element, row) for element in self.elements]
        grids = ["\n".join(text.rsplit(", ", 1)) for text in elements]
        grids = [""] * len(self.crop) + grids
        return ["\n".join(filter(None, pair)) for pair in zip(grids, drawn, strict=True)]

    def marks(self, row: int) -> list[Marks | None]:
        """What is drawn upon each view of an image, crops first; None for nothing."""
        found: list[Marks | None] = []
        for views, frames in (
            (self.crop, self.crop_frames),
            (self.invertible, self.invertible_frames),
        ):
            found += [None] * len(views) if frames is None else overlap_marks(*frames, row)
        return found


def demo_figure(
    path: str | os.PathLike[str],
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
        path: of the PNG; its folder is made if need be.
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
    heights = [
        0.65 + 0.27 * (words.count("\n") + 1),
        1.55 * len(comparisons) + 1.55,
        3.5,
        _GALLERY,
    ]
    figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=100, facecolor="white")
    grid = figure.add_gridspec(4, 1, height_ratios=heights, top=1, bottom=0, left=0, right=1)
    parts = [figure.add_subfigure(grid[i]) for i in range(4)]
    parts[0].text(0.02, 1 - 0.2 / heights[0], title, fontsize=16, fontweight="bold", va="top")
    parts[0].text(0.02, 1 - 0.58 / heights[0], words, fontsize=13, va="top", linespacing=1.35)
    _draw_comparisons(parts[1], comparisons, layer, heights[1])
    _draw_curves(parts[2], runs, num_classes, heights[2])
    _draw_gallery(parts[3], gallery, heights[3])
    save_picture(figure, Path(path))


def view_figure(path: Path, gallery: ViewGallery) -> None:
    """Draws images and their views alone; errors and files as `demo_figure`."""
    height = _GALLERY + 0.15 * gallery.is_marked
    figure = Figure(figsize=(_WIDTH, height), dpi=100, facecolor="white")
    _draw_gallery(figure.add_subfigure(figure.add_gridspec(1, 1)[0]), gallery, height)
    save_picture(figure, path)


def token_map_figure(path: Path, comparisons: Sequence[TokenComparison], layer: int) -> None:
    """Draws token maps alone; errors and files as `demo_figure`."""
    comparisons = comparisons[:3]
    height = 1.55 * len(comparisons) + 1.55
    width = _WIDTH * (2 + 3.1 * len(comparisons[0].maps)) / 11.3
    figure = Figure(figsize=(max(width, 8.0), height), dpi=100, facecolor="white")
    part = figure.add_subfigure(figure.add_gridspec(1, 1)[0])
    _draw_comparisons(part, comparisons, layer, height)
    save_picture(figure, path)


def save_picture(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
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


def as_picture(image: Tensor) -> Any:
    """(H, W, 3) numbers in [0, 1] of a (3, H, W) image."""
    return image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()


def _frame(maps: Sequence[Tensor]) -> int:
    """Side of the smallest square that holds each of some (..., h, w) maps."""
    return max(max(x.shape[-2:]) for x in maps)


def _draw_gallery(part: SubFigure, gallery: ViewGallery, height: float) -> None:
    """Draws two images in a row, each with its four views, all at the same scale."""
    whole = (
        " SER takes a few images of each batch whole, flipped, turned and resized (to a grid of "
        "tokens, height x width)."
    )
    marked = (
        "\nOutlined: what the other view sees. Equal numbers: tokens that SER compares; none where "
        "tokens differ too much in size."
    )
    note = "Two random crops of an image are pulled together." + whole * bool(gallery.invertible)
    _heading(part, "What training sees", height, note + marked * gallery.is_marked)
    top = 0.9 + 0.15 * gallery.is_marked
    outer = part.add_gridspec(
        1, 2, left=0.02, right=0.98, top=1 - top / height, bottom=0.72 / height, wspace=0.05
    )
    headings = ("image", "crop 1", "crop 2", "for SER, 1", "for SER, 2")
    num_columns = 1 + len(gallery.crop) + len(gallery.invertible)
    frame = _frame([gallery.originals, *gallery.crop, *gallery.invertible])
    for i in range(min(2, len(gallery.originals))):
        inner = outer[i].subgridspec(1, num_columns, wspace=0.06)
        views = [gallery.originals[i], *(view[i] for view in gallery.crop + gallery.invertible)]
        words = ["", *gallery.words(i)]
        marks = [None, *gallery.marks(i)]
        for column, (view, caption, mark) in enumerate(zip(views, words, marks, strict=True)):
            axes = part.add_subplot(inner[column])
            _show(axes, as_picture(view), frame, caption)
            axes.set_title(headings[column], fontsize=10)
            if mark is not None:
                draw_marks(axes, mark, *view.shape[-2:])


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
    _heading(part, "Does the token map move with the image?", height, words)
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
            frame = _frame((comparison.image, comparison.transformed))
            _show(axes, as_picture(image), frame, comparison.caption if column else "")
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
            _show(axes, pixels, max(pixels.shape), caption)
            axes.xaxis.label.set_fontweight("bold")
            if row == 0:
                words = ("map of the\nmoved image", "moved map of\nthe image", "agreement")
                axes.set_title(words[column], fontsize=9.5)
            if row == 0 and column == 1:
                axes.annotate(
                    encoder,
                    (0.5, 1),
                    (0, 33),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    ha="center",
                    fontsize=11.5,
                    fontweight="bold",
                    annotation_clip=False,
                )


def _draw_curves(
    part: SubFigure, runs: Sequence[RunCurve], num_classes: int, height: float
) -> None:
    """Draws k-NN accuracy and the centred scores of all runs over the steps."""
    _heading(
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
        _finish(axes, title, "needs labelled images")
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


def _finish(axes: Axes, title: str, placeholder: str) -> None:
    """Gives a panel its title, its legend above the plot, or a word on why it is empty."""
    axes.set_title(title, fontsize=11, fontweight="bold", loc="left", pad=24)
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
            bbox_to_anchor=(-0.04, 0.985),
            handlelength=1.6,
            columnspacing=1.2,
        )
    else:
        axes.text(0.5, 0.5, placeholder, transform=axes.transAxes, ha="center", color="0.5")
        axes.set_xticks([])
        axes.set_yticks([])
