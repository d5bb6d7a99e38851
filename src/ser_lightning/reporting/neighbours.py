"""One picture of images and what an encoder finds nearest to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ser_lightning.reporting.panels import as_picture, save_picture

_PITCH, _ROW, _MARGIN = 1.06, 1.24, 0.12  # inches; an image is one wide
_RIGHT = "#0072b2"  # the frame of a neighbour of the query's class; told from none in grey too


class NeighbourRow(NamedTuple):
    """An image and its neighbours, nearest first.

    Attributes:
        query: (3, H, W) in [0, 1].
        neighbours: (K, 3, H, W) in [0, 1].
        cosine: (K,) similarities of the embeddings.
        is_same: of each neighbour whether it has the query's class; empty without labels.
        name: of the query's class; "" without one.
    """

    query: Tensor
    neighbours: Tensor
    cosine: Tensor
    is_same: Sequence[bool] = ()
    name: str = ""


def neighbour_figure(path: Path, rows: Mapping[str, Sequence[NeighbourRow]]) -> None:
    """Draws a block of rows for each named state of a network, side by side.

    All have the same queries; the PNG is written whole or not at all.
    """
    blocks = list(rows.items())
    num_rows, num_columns = len(blocks[0][1]), len(blocks[0][1][0].neighbours)
    first = [_MARGIN + 1.3 + number * (num_columns * _PITCH + 0.3) for number in range(len(blocks))]
    width, height = first[-1] + num_columns * _PITCH + _MARGIN, num_rows * _ROW + 1.1
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))  # in inches; axes of their own would be slow to draw
    axes.axis("off")
    is_framed = any(row.is_same for row in blocks[0][1])
    note = "Cosines of embeddings below." + (" Framed: of the same class." if is_framed else "")
    axes.text(_MARGIN, height - 0.1, "What is nearest to an image?", va="top", weight="bold")
    axes.text(_MARGIN, height - 0.38, note, va="top", color="0.35", size=9.5)
    for place, row in enumerate(blocks[0][1]):
        _draw(axes, row.query, (_MARGIN, height - 1.95 - place * _ROW), row.name)
    for (name, block), left in zip(blocks, first, strict=True):
        axes.text(left, height - 0.7, name, va="top", size=10.5, weight="bold")
        for place, row in enumerate(block):
            for k, image in enumerate(row.neighbours):
                corner = (left + k * _PITCH, height - 1.95 - place * _ROW)
                is_same = bool(row.is_same and row.is_same[k])
                _draw(axes, image, corner, f"{float(row.cosine[k]):.2f}", is_same)
    axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    save_picture(figure, path)


def _draw(
    axes: Axes, image: Tensor, corner: tuple[float, float], caption: str, is_framed: bool = False
) -> None:
    """Shows an image, an inch wide, with its lower left corner in a place."""
    left, bottom = corner
    extent = (left, left + 1, bottom, bottom + 1)
    axes.imshow(as_picture(image), extent=extent, interpolation="nearest")
    at = left + 0.5, bottom - 0.04
    axes.text(*at, caption, size=8.5, ha="center", va="top")
    if is_framed:
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, color=_RIGHT, linewidth=3))
