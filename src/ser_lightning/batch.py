"""The vocabulary the rooms share: what flows between data, backbone, regularizer and objective.

Named tuples with nothing but tensors inside: they move to a device, pin and convert as they are.

Order of views: the first NUM_GLOBAL_VIEWS are global views, any others are local views, which are
smaller and which a momentum branch does not see. View i has the same role in both sub-batches.
"""

from typing import NamedTuple

from torch import Tensor

from ser_lightning.groups.element import GroupElement

NUM_GLOBAL_VIEWS = 2


class View(NamedTuple):
    """One view of every image of a sub-batch.

    Attributes:
        pixels: (B, 3, H, W) normalised float images.
        element: the group element that made the view; None for a crop, which has no inverse.
    """

    pixels: Tensor
    element: GroupElement | None = None


class PartitionedBatch(NamedTuple):
    """One rank's part of a global batch, split into a crop and an invertible sub-batch.

    Attributes:
        crop: the views of the crop sub-batch, each of the same images: two global views, then n
            local views.
        invertible: the views of the invertible sub-batch, each of the same images and with its
            group element: the global pair (views 0 and 1), then n / 2 local pairs (views 2k and
            2k + 1). The views of a pair differ in colours and element only. Empty when the run
            has no partition.
        indices: (B,) positions in the data set, crop sub-batch first.
        label: (B,) class labels, -1 where the source has none. For monitoring only.
        num_unreadable: () how many images of this batch could not be read and were replaced.
    """

    crop: tuple[View, ...]
    invertible: tuple[View, ...]
    indices: Tensor
    label: Tensor
    num_unreadable: Tensor


class EvaluationBatch(NamedTuple):
    """Clean images to measure a backbone on.

    Attributes:
        pixels: (B, 3, H, W) normalised float images.
        label: (B,) class labels, -1 where the source has none.
        indices: (B,) which of all evaluated images these are, each of them once.
    """

    pixels: Tensor
    label: Tensor
    indices: Tensor


class ViewFeatures(NamedTuple):
    """What a backbone computed for one view.

    Attributes:
        tokens: (B, C, h, w) token map after block `layer`.
        embedding: (B, C) the [CLS] embedding.
    """

    tokens: Tensor
    embedding: Tensor


class BranchFeatures(NamedTuple):
    """Features of a batch's views by one branch, in the batch's order.

    The online branch has all views, a momentum branch the global ones only.
    """

    crop: tuple[ViewFeatures, ...]
    invertible: tuple[ViewFeatures, ...]


class LossOutput(NamedTuple):
    """A scalar loss with its gradient, and detached scalars worth logging, by name."""

    loss: Tensor
    logs: dict[str, Tensor]
