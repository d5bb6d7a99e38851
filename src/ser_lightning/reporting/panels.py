"""What every picture is made of: a page, headings on it, images in it, a file of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from ser_lightning.files import atomic_path

if TYPE_CHECKING:  # the page of a run needs no torch
    from torch import Tensor

PAGE_WIDTH = 15.0
"""Inches."""


def save_picture(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    plain_text(figure)
    with atomic_path(path) as partial, partial.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def plain_text(figure: Figure) -> None:
    """Makes a "$" of a figure's words, as names of classes and runs may have it, a "$"."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)


def title_at(figure: Figure, text: str, note: str = "", size: float = 10) -> None:
    """Writes a title at the top of a figure, and below it how to read it."""
    height = figure.get_figheight()
    figure.text(0.01, 1 - 0.12 / height, text, fontsize=13, va="top", weight="bold")
    figure.text(0.01, 1 - 0.42 / height, note, fontsize=size, va="top", color="0.35")


def plain_axes(axes: Axes, grid: Literal["both", "x", "y"] = "both", size: float = 9) -> None:
    """Leaves of the frame only what is read, above a faint grid."""
    axes.tick_params(labelsize=size)
    axes.grid(axis=grid, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def heading(part: SubFigure, text: str, height: float, note: str = "") -> None:
    """Writes a heading and a note below it at the top of a part `height` inches high."""
    part.text(0.02, 1 - 0.06 / height, text, fontsize=13, fontweight="bold", va="top")
    part.text(0.02, 1 - 0.31 / height, note, fontsize=10, color="0.35", va="top")


def show_pixels(axes: Axes, pixels: Any, frame: float, caption: str = "") -> None:
    """Shows (h, w, 3) pixels in the middle of a square of `frame` pixels, with a caption."""
    height, width = pixels.shape[:2]
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xlim((width - frame) / 2 - 0.5, (width + frame) / 2 - 0.5)
    axes.set_ylim((height + frame) / 2 - 0.5, (height - frame) / 2 - 0.5)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=9, labelpad=2)
    axes.spines[:].set_visible(False)


def as_picture(image: "Tensor") -> Any:
    """(H, W, 3) numbers in [0, 1] of a (3, H, W) image."""
    return image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()


def frame_of(maps: "Sequence[Tensor]") -> int:
    """Side of the smallest square that holds each of some (..., h, w) maps."""
    return max(max(x.shape[-2:]) for x in maps)
