"""The vocabulary the rooms share: what flows between data, backbone, regularizer and objective.

Named tuples with nothing but tensors inside: they move to a device, pin and convert as they are.

Order of views: the first NUM_GLOBAL_VIEWS are global views, any others are local views, which are
smaller and which a momentum branch does not see. View i has the same role in both sub-batches.
"""

from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import NamedTuple  # generic before Python 3.11 too

from ser_lightning.groups.element import GroupElement

NUM_GLOBAL_VIEWS = 2
NO_IMAGES = torch.zeros(0, dtype=torch.int64)
Array = TypeVar("Array", bound=Tensor | np.ndarray)


class ViewRecord(NamedTuple, Generic[Array]):
    """What was drawn for one view of every image; row i is image i's.

    Arrays where views are made, on the host; float32 tensors beside the pixels of a `View`.
    Flags are 0 or 1. The factors of the four colour operations are those drawn; they were applied
    where `jitter` is 1. A view's parameters apply in this order: crop, flip, colour operations in
    their order, grayscale, blur, solarize, then the group element, which is not part of it.

    Attributes:
        source_size: (B, 2) height and width of the source image, pixels.
        box: (B, 4) top, left, height and width of the crop, pixels of the source image.
        flip: (B,) flag, mirrored left to right after the crop.
        jitter: (B,) flag, whether the four colour operations were applied.
        order: (B, 4) which of brightness 0, contrast 1, saturation 2, hue 3 comes when.
        brightness: (B,) factor, 1 for no change.
        contrast: (B,) factor, 1 for no change.
        saturation: (B,) factor, 1 for no change.
        hue: (B,) shift, turns of the colour circle, 0 for no change.
        gray: (B,) flag.
        blur_sigma: (B,) standard deviation, pixels of the view; 0 for no blur.
        solarize: (B,) flag.
    """

    source_size: Array
    box: Array
    flip: Array
    jitter: Array
    order: Array
    brightness: Array
    contrast: Array
    saturation: Array
    hue: Array
    gray: Array
    blur_sigma: Array
    solarize: Array

    def take(self, rows: Any) -> "ViewRecord[Array]":
        """The record of some images: a slice, or their numbers."""
        fields: Any = self
        return ViewRecord(*(field[rows] for field in fields))


class View(NamedTuple):
    """One view of every image of a sub-batch.

    Attributes:
        pixels: (B, 3, H, W) normalised float images.
        element: the group element that made the view; None for a crop, which has no inverse.
        record: what was drawn for the view; None where a batch does not come from the data room.
    """

    pixels: Tensor
    element: GroupElement | None = None
    record: ViewRecord[Tensor] | None = None


class ViewNeeds(NamedTuple):
    """What an add-on asks of a run: the views of a batch follow from it.

    Attributes:
        invertible: an invertible sub-batch, pairs of views with group elements.
        plain: one further view of each image of the crop sub-batch, unchanged: as evaluation
            resizes it and takes its centre.
        rotated: four further views of each, a small crop turned by 0, 1, 2 and 3 quarter turns.
        paired: images 2i and 2i + 1 of the crop sub-batch share all draws of a view.
        cls: [CLS] where the token map is taken, so it must have joined before.
    """

    invertible: bool = False
    plain: bool = False
    rotated: bool = False
    paired: bool = False
    cls: bool = False


class PartitionedBatch(NamedTuple):
    """One rank's part of a global batch, split into a crop and an invertible sub-batch.

    Attributes:
        crop: the views of the crop sub-batch, each of the same images: two global views, then n
            local views.
        invertible: the views of the invertible sub-batch, each of the same images and with its
            group element: the global pair (views 0 and 1), then n / 2 local pairs (views 2k and
            2k + 1). The views of a pair differ in colours and element only. Empty when the run
            has no partition.
        extra: further views of the crop sub-batch's images, which an add-on asked for: the plain
            view, or the four rotated ones in the order of their quarter turns, with elements.
            The invariance objective does not see them.
        indices: (B,) positions in the data set, crop sub-batch first.
        label: (B,) class labels, -1 where the source has none. For monitoring only.
        num_unreadable: () how many images of this batch could not be read and were replaced.
    """

    crop: tuple[View, ...]
    invertible: tuple[View, ...]
    indices: Tensor
    label: Tensor
    num_unreadable: Tensor
    extra: tuple[View, ...] = ()


class EvaluationBatch(NamedTuple):
    """Clean images to measure a backbone on.

    Attributes:
        pixels: (B, 3, H, W) normalised float images.
        label: (B,) class labels, -1 where the source has none.
        indices: (B,) which of all evaluated images these are, each of them once.
        unreadable: (n,) images that could not be read: places of those left out of an evaluation,
            or of those that others stand in for in training.
    """

    pixels: Tensor
    label: Tensor
    indices: Tensor
    unreadable: Tensor = NO_IMAGES


class Tap(NamedTuple):
    """A place in the backbone where an add-on reads.

    Attributes:
        layer: number of blocks before it.
        has_cls: whether [CLS] has joined by then.
        is_final: whether it lies behind the last block and the final norm.
    """

    layer: int
    has_cls: bool
    is_final: bool


class TapFeatures(NamedTuple):
    """What a backbone computed for one view at one tap.

    Attributes:
        tokens: (B, C, h, w) map of the patch tokens.
        cls: (B, C) the [CLS] token beside them; None where it joins later.
    """

    tokens: Tensor
    cls: Tensor | None


class ViewFeatures(NamedTuple):
    """What a backbone computed for one view.

    Attributes:
        taps: one entry per layer of the backbone's `layer`, shallowest first; usually one.
        embedding: (B, C) the [CLS] embedding.
    """

    taps: tuple[TapFeatures, ...]
    embedding: Tensor


class BranchFeatures(NamedTuple):
    """Features of a batch's views by one branch, in the batch's order.

    The online branch has all views, a momentum branch the global ones only.

    Attributes:
        crop: features of the crop sub-batch's views.
        invertible: features of the invertible sub-batch's views.
        extra: taps of the extra views, for which no embedding is computed.
    """

    crop: tuple[ViewFeatures, ...]
    invertible: tuple[ViewFeatures, ...]
    extra: tuple[tuple[TapFeatures, ...], ...] = ()


class LossOutput(NamedTuple):
    """A scalar loss with its gradient, and detached scalars worth logging, by name."""

    loss: Tensor
    logs: dict[str, Tensor]
