"""What two views of an image have in common, to be drawn upon them: a check of the transport."""

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from ser_lightning.groups import Frame, transport
from ser_lightning.groups.frame import between

MAX_POINTS = 9


class Marks(NamedTuple):
    """What is drawn upon one view, as (y, x) in [0, 1]^2 of it.

    Attributes:
        outline: (4, 2) corners of the other view.
        points: (n, 2) tokens that are compared, or their counterparts, in an order common to both
            views.
    """

    outline: Tensor
    points: Tensor


def overlap_marks(first: Frame, second: Frame, row: int) -> tuple[Marks, Marks]:
    """Marks of image `row` upon both views: the other's outline, and some tokens that match."""
    _, valid = transport(first.centre.new_zeros(len(first.centre), 1, *first.grid), first, second)
    places = valid[row].nonzero()
    chosen = torch.linspace(0, max(len(places) - 1, 0), min(MAX_POINTS, len(places))).round().long()
    tokens = (places[chosen] + 0.5) / torch.tensor(second.grid)  # of the second view
    corners = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 0]])

    def seen(view: Frame, other: Frame, points: Tensor) -> Tensor:
        axes, middle = (part[row].cpu() for part in between(view, other))
        return (points.double() - 0.5) @ axes.T + middle

    return (
        Marks(seen(first, second, corners), seen(first, second, tokens)),
        Marks(seen(second, first, corners), tokens.double()),
    )


def draw_marks(axes: Axes, marks: Marks, height: int, width: int) -> None:
    """Draws the outline, and the points with their numbers, upon a view of some pixels."""
    size = torch.tensor([height, width])
    outline = torch.cat([marks.outline, marks.outline[:1]]) * size - 0.5
    view = Rectangle((-0.5, -0.5), width, height, transform=axes.transData)
    for colour, line in (("white", 3.0), ("black", 1.2)):
        (drawn,) = axes.plot(outline[:, 1], outline[:, 0], color=colour, linewidth=line)
        drawn.set_clip_path(view)
    for number, (y, x) in enumerate((marks.points * size - 0.5).tolist(), 1):
        axes.text(
            x, y, str(number), fontsize=6.5, ha="center", va="center",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "lw": 0.5},
        )  # fmt: skip
