"""What two views of an image have in common, to be drawn upon them: a check of the transport."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor

from ser_lightning.groups import Frame, transport
from ser_lightning.groups.frame import MAX_SCALE

_BLUE = "#0072b2"  # the only dark one
# Okabe and Ito's, told apart by all, with white and grey
COLOURS = (
    *("#e69f00", "#56b4e9", "#f0e442", "#009e73", "#ffffff"),
    *("#d55e00", "#cc79a7", _BLUE, "#b0b0b0"),
)
MAX_POINTS = len(COLOURS)
NUMBERS = range(1, MAX_POINTS + 1)


class Marks(NamedTuple):
    """What is drawn upon one view, as (y, x) in [0, 1]^2 of it.

    Attributes:
        outline: (n, 2, 2) edges, each from a place to a place, around the tokens of the view that
            are compared; none where no token is.
        points: (m, 2) tokens that are compared, or their counterparts.
        numbers: of the points, from 1 and at most `MAX_POINTS`; the same in both views.
    """

    outline: Tensor
    points: Tensor
    numbers: tuple[int, ...]


def overlap_marks(
    first: Frame,
    second: Frame,
    row: int,
    max_scale: float = MAX_SCALE,
    numbers: Sequence[int] = NUMBERS,
) -> tuple[Marks, Marks]:
    """Marks of image `row` upon both views: their valid tokens' outline, and some that match.

    Args:
        first: the frames of a view of some images.
        second: those of another view of them.
        row: which of the images.
        max_scale: as `transport`'s.
        numbers: for the points, which are as many at most.
    """
    valid_first, valid_second = (
        _valid(source, target, max_scale)[row].cpu()
        for source, target in ((second, first), (first, second))
    )
    tokens = (valid_second.nonzero().double() + 0.5) / torch.tensor(second.grid)
    here, there = ([part[row].cpu() for part in view[:2]] for view in (first, second))
    source = there[0] + (tokens - 0.5) @ there[1].T
    counterparts = torch.linalg.solve(here[1], (source - here[0]).T).T + 0.5
    rows, columns = (counterparts * torch.tensor(first.grid)).long().unbind(1)
    of_both = valid_first[rows, columns].nonzero()[:, 0]
    last, num = max(len(of_both) - 1, 0), min(len(numbers), len(of_both))
    chosen = of_both[torch.linspace(0, last, num).round().long()]
    taken = tuple(numbers[:num])
    return (
        Marks(outline_of(valid_first), counterparts[chosen], taken),
        Marks(outline_of(valid_second), tokens[chosen], taken),
    )


def outline_of(valid: Tensor) -> Tensor:
    """(n, 2, 2) edges between a token of (h, w) that is valid and a neighbour that is not."""
    padded = F.pad(valid, (1, 1, 1, 1))
    upright = (padded[1:-1, 1:] != padded[1:-1, :-1]).nonzero()  # the upper ends of these edges
    level = (padded[1:, 1:-1] != padded[:-1, 1:-1]).nonzero()  # the left ends
    starts = torch.cat([upright, level])
    ends = torch.cat([upright + torch.tensor([1, 0]), level + torch.tensor([0, 1])])
    return torch.stack([starts, ends], dim=1).double() / torch.tensor(valid.shape)


def _valid(source: Frame, target: Frame, max_scale: float) -> Tensor:
    """(B, h, w) tokens of the target that have a counterpart in the source."""
    maps = source.centre.new_zeros(len(source.centre), 1, *source.grid)
    return transport(maps, source, target, max_scale)[1]


def draw_marks(axes: Axes, marks: Marks, height: int, width: int) -> None:
    """Draws the outline, and the points with their numbers, upon a view of some pixels.

    A number has its own colour, which is the same in every view.
    """
    size = torch.tensor([height, width])
    outline = (marks.outline * size - 0.5).flip(-1).tolist()  # (x, y)
    for colour, line in (("white", 3.0), ("black", 1.2)):
        drawn = LineCollection(
            outline, colors=colour, linewidths=line, capstyle="projecting", clip_on=False, zorder=2
        )
        axes.add_collection(drawn, autolim=False)
    points = (marks.points * size - 0.5).tolist()
    for number, (y, x) in zip(marks.numbers, points, strict=True):
        colour = COLOURS[number - 1]
        axes.text(
            x, y, str(number), fontsize=6.5, ha="center", va="center",
            color="white" if colour == _BLUE else "black",
            bbox={"boxstyle": "circle,pad=0.15", "fc": colour, "ec": "black", "lw": 0.8},
        )  # fmt: skip
