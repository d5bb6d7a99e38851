"""The picture of what training saw: images beside the views that both pipelines made of them."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from ser_lightning.batch import ViewRecord
from ser_lightning.groups import Frame, GroupElement
from ser_lightning.groups.frame import MAX_SCALE
from ser_lightning.reporting.overlap_marks import NUMBERS, Marks, draw_marks, overlap_marks
from ser_lightning.reporting.panels import (
    PAGE_WIDTH,
    as_picture,
    frame_of,
    heading,
    save_picture,
    show_pixels,
)
from ser_lightning.reporting.token_maps import describe_draws, describe_element

GALLERY_HEIGHT = 3.05
"""Inches of a page that images and their views take."""
CROPS = ("crop 1", "crop 2", "small crop")
_CAPTION = 20  # signs in a line below a view


class ViewGallery(NamedTuple):
    """Images and the views that both pipelines made of them; all pixels in [0, 1].

    Attributes:
        originals: (N, 3, H, W).
        crop: two crop views, each (N, 3, H', W'), and where local ones are compared, one of these.
        invertible: two invertible views, each (N, 3, H', W') of its own size; none without them.
        elements: the group elements of the invertible views.
        records: what else was drawn of each view, crops first.
        crop_frames: where the crops lie, if what they have in common is to be marked: the first
            with the second, and the local one with the first.
        invertible_frames: the same of the invertible views.
        max_scale: largest ratio of token sizes where tokens of crops are compared.
    """

    originals: Tensor
    crop: tuple[Tensor, ...]
    invertible: tuple[Tensor, ...]
    elements: tuple[GroupElement, ...]
    records: tuple[ViewRecord[Tensor], ...]
    crop_frames: tuple[Frame, ...] | None = None
    invertible_frames: tuple[Frame, ...] | None = None
    max_scale: float = MAX_SCALE

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
        for views, frames, max_scale in (
            (self.crop, self.crop_frames, self.max_scale),
            (self.invertible, self.invertible_frames, MAX_SCALE),
        ):
            if frames is None:
                found += [None] * len(views)
            else:
                found += _marks(frames, row, max_scale)
        return found


def _marks(frames: Sequence[Frame], row: int, max_scale: float) -> list[Marks]:
    """Those of two views, or of these and of a third one that is compared with the first."""
    first, second, *local = frames
    here = NUMBERS[: len(NUMBERS) // 2] if local else NUMBERS
    marks = [*overlap_marks(first, second, row, max_scale, here)]
    for view in local:
        of_first, of_local = overlap_marks(first, view, row, max_scale, NUMBERS[len(here) :])
        points = torch.cat([marks[0].points, of_first.points])
        marks[0] = Marks(marks[0].outline, points, marks[0].numbers + of_first.numbers)
        marks.append(of_local)
    return marks


def view_figure(path: Path, gallery: ViewGallery) -> None:
    """Draws images and their views alone; errors and files as `demo_figure`."""
    height = GALLERY_HEIGHT + 0.15 * gallery.is_marked
    figure = Figure(figsize=(PAGE_WIDTH, height), dpi=100, facecolor="white")
    draw_gallery(figure.add_subfigure(figure.add_gridspec(1, 1)[0]), gallery, height)
    save_picture(figure, path)


def draw_gallery(part: SubFigure, gallery: ViewGallery, height: float) -> None:
    """Draws two images in a row, each with its four views, all at the same scale."""
    whole = (
        " SER takes a few images of each batch whole, flipped, turned and resized (to a grid of "
        "tokens, height x width)."
    )
    marked = (
        "\nOutlined: tokens that SER compares, as the other view sees them too; none where tokens "
        "differ too much in size. Equal colours and numbers: tokens that match."
    )
    note = "Two random crops of an image are pulled together." + whole * bool(gallery.invertible)
    heading(part, "What training sees", height, note + marked * gallery.is_marked)
    top = 0.9 + 0.15 * gallery.is_marked
    outer = part.add_gridspec(
        1, 2, left=0.02, right=0.98, top=1 - top / height, bottom=0.72 / height, wspace=0.05
    )
    headings = ("image", *CROPS[: len(gallery.crop)], "for SER, 1", "for SER, 2")
    num_columns = 1 + len(gallery.crop) + len(gallery.invertible)
    frame = frame_of([gallery.originals, *gallery.crop, *gallery.invertible])
    for i in range(min(2, len(gallery.originals))):
        inner = outer[i].subgridspec(1, num_columns, wspace=0.06)
        views = [gallery.originals[i], *(view[i] for view in gallery.crop + gallery.invertible)]
        words = ["", *gallery.words(i)]
        marks = [None, *gallery.marks(i)]
        for column, (view, caption, mark) in enumerate(zip(views, words, marks, strict=True)):
            axes = part.add_subplot(inner[column])
            show_pixels(axes, as_picture(view), frame, caption)
            axes.set_title(headings[column], fontsize=10)
            if mark is not None:
                draw_marks(axes, mark, *view.shape[-2:])
