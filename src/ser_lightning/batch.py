"""The vocabulary the rooms share: what flows between data, backbone, regularizer and objective.

Named tuples with nothing but tensors inside: they move to a device, pin and convert as they are.
"""

from typing import NamedTuple

from torch import Tensor

from ser_lightning.groups.element import GroupElement


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
        crop: the views of the crop sub-batch, each of the same images.
        invertible: the views of the invertible sub-batch, each of the same images and with its
            group element; empty when the run has no partition.
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
    """Features of all views of a batch by one branch (online or momentum), in the batch's order."""

    crop: tuple[ViewFeatures, ...]
    invertible: tuple[ViewFeatures, ...]


class LossOutput(NamedTuple):
    """A scalar loss with its gradient, and detached scalars worth logging, by name."""

    loss: Tensor
    logs: dict[str, Tensor]
