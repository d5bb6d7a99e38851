"""The vocabulary the rooms share: what flows between data, backbone, regularizer and objective.

Named tuples with nothing but tensors inside: they move to a device, pin and convert as they are.

Order of views: the first NUM_GLOBAL_VIEWS are global views, any others are local views, which are
smaller and which a momentum branch does not see. View i has the same role in both sub-batches.
"""

import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import NamedTuple  # generic before Python 3.11 too

from ser_lightning.groups.element import GroupElement

NUM_GLOBAL_VIEWS = 2
OWN_LOGS = frozenset({"loss", "loss/invariance", "loss/equivariance"})
"""What an objective logs of the sum that is trained, and of its two terms."""
NO_IMAGES = torch.zeros(0, dtype=torch.int64)
Array = TypeVar("Array", bound=Tensor | np.ndarray)


class ViewRecord(NamedTuple, Generic[Array]):
    """What was drawn for one view of every image; row i is image i's.

    Arrays where views are made, on the host; float32 tensors beside the pixels of a `View`.
    Flags are 0 or 1. The factors of the four colour operations are those drawn; they were applied
    where `jitter` is 1. A view's parameters apply in this order: crop, flip, turn, colours in their
    order, grayscale, blur, solarize, then the group element, which is not part of it.
    """

    source_size: Array
    """(B, 2) height and width of the source image, pixels."""
    box: Array
    """(B, 4) top, left, height and width of the crop, pixels of the source image."""
    flip: Array
    """(B,) flag, mirrored left to right after the crop."""
    jitter: Array
    """(B,) flag, whether the four colour operations were applied."""
    order: Array
    """(B, 4) which of brightness 0, contrast 1, saturation 2, hue 3 comes when."""
    brightness: Array
    """(B,) factor, 1 for no change; so are contrast and saturation."""
    contrast: Array
    saturation: Array
    hue: Array
    """(B,) shift, turns of the colour circle, 0 for no change."""
    gray: Array
    """(B,) flag."""
    blur_sigma: Array
    """(B,) standard deviation, pixels of the view; 0 for no blur."""
    solarize: Array
    """(B,) flag."""
    turn: Array
    """(B,) degrees that the view was turned counter-clockwise about its middle, 0 for upright."""

    def take(self, rows: Any) -> "ViewRecord[Array]":
        """The record of some images: a slice, or their numbers."""
        fields: Any = self
        return ViewRecord(*(field[rows] for field in fields))


def spaced_rows(
    num_images: int, ratio: float, world_size: int = 1, device: torch.device | str = "cpu"
) -> Tensor:
    """The rows of a rank's sub-batch that make up a share of all: evenly spaced.

    So ranks with equal numbers choose the same images as one process would, if their shares are
    whole; else each rounds its own. At least one row of each rank and two in all, as far as there
    are so many.
    """
    number = max(round(ratio * num_images), math.ceil(2 / world_size))
    number = min(number, num_images)
    return torch.arange(number, device=device) * num_images // number


class View(NamedTuple):
    """One view of every image of a sub-batch."""

    pixels: Tensor
    """(B, 3, H, W) normalised."""
    element: GroupElement | None = None
    """The group element that made the view; None for a crop, which has no inverse."""
    record: ViewRecord[Tensor] | None = None
    """What was drawn for the view; None where a batch does not come from the data room."""


class ViewNeeds(NamedTuple):
    """What an add-on asks of a run: the views of a batch follow from it."""

    invertible: bool = False
    """An invertible sub-batch, pairs of views with group elements."""
    plain: bool = False
    """One further view of each image of the crop sub-batch, as evaluation resizes and cuts it."""
    rotated: bool = False
    """Four further views of each, a small crop turned by 0, 1, 2 and 3 quarter turns."""
    paired: bool = False
    """Images 2i and 2i + 1 of the crop sub-batch share all draws of a view."""
    cls: bool = False
    """[CLS] where the token map is taken, so it must have joined before."""
    places: bool = False
    """Crops with a record of where they lie in their images, which are compared token by token."""


class PartitionedBatch(NamedTuple):
    """One rank's part of a global batch, split into a crop and an invertible sub-batch."""

    crop: tuple[View, ...]
    """The views of the crop sub-batch, of the same images: two global, then n local ones."""
    invertible: tuple[View, ...]
    """The views of the invertible sub-batch, of the same images and with their group elements: the
    global pair (views 0 and 1), then n / 2 local pairs (views 2k and 2k + 1). The views of a pair
    differ in colours and element only. Empty when the run has no partition."""
    indices: Tensor
    """(B,) positions in the data set, crop sub-batch first."""
    label: Tensor
    """(B,) class labels, -1 where the source has none. For monitoring only."""
    num_unreadable: Tensor
    """() images of this batch that could not be read and were replaced."""
    extra: tuple[View, ...] = ()
    """Further views of the crop sub-batch's images, which an add-on asked for and the invariance
    objective does not see: the plain one, or the four rotated ones in the order of their turns."""


class EvaluationBatch(NamedTuple):
    """Clean images to measure a backbone on."""

    pixels: Tensor
    """(B, 3, H, W) normalised."""
    label: Tensor
    """(B,) class labels, -1 where the source has none."""
    indices: Tensor
    """(B,) which of all evaluated images these are, each of them once."""
    unreadable: Tensor = NO_IMAGES
    """(n,) images that could not be read: places of those left out of an evaluation, or of those
    that others stand in for in training."""


class Tap(NamedTuple):
    """A place in the backbone where an add-on reads."""

    layer: int
    """Number of blocks before it."""
    has_cls: bool
    """Whether [CLS] has joined by then."""
    is_final: bool
    """Whether it lies behind the last block and the final norm."""


class TapFeatures(NamedTuple):
    """What a backbone computed for one view at one tap."""

    tokens: Tensor
    """(B, C, h, w) map of the patch tokens."""
    cls: Tensor | None
    """(B, C) the [CLS] token beside them; None where it joins later."""


class ViewFeatures(NamedTuple):
    """What a backbone computed for one view."""

    taps: tuple[TapFeatures, ...]
    """One entry per layer of the backbone's `layer`, shallowest first; usually one."""
    embedding: Tensor
    """(B, C) the [CLS] embedding."""


class BranchFeatures(NamedTuple):
    """Features of a batch's views, in its order; a momentum branch has the global ones only."""

    crop: tuple[ViewFeatures, ...]
    invertible: tuple[ViewFeatures, ...]
    extra: tuple[tuple[TapFeatures, ...], ...] = ()
    """Taps of the extra views, for which no embedding is computed."""


class LossOutput(NamedTuple):
    """A scalar loss with its gradient, and detached scalars worth logging, by name."""

    loss: Tensor
    logs: dict[str, Tensor]

    @classmethod
    def sum_of(cls, outputs: "Sequence[LossOutput]") -> "LossOutput":
        """Adds losses and their terms (`loss/...`); other logs are averaged."""
        logs = {}
        for name in outputs[0].logs:
            values = torch.stack([output.logs[name] for output in outputs])
            logs[name] = values.sum() if name.startswith("loss/") else values.mean()
        return cls(torch.stack([output.loss for output in outputs]).sum(), logs)

    @classmethod
    def checked(cls, given: Any, giver: str) -> "LossOutput":
        """What a method of somebody's own gave, if it can be trained.

        Raises:
            ValueError: it is no `LossOutput` of a scalar with a gradient; says who gave it.
        """
        if not isinstance(given, cls) or not isinstance(given.loss, Tensor):
            found = type(given).__name__
        elif not isinstance(given.logs, dict):
            found = f"logs of kind {type(given.logs).__name__}"
        elif wrong := [n for n, log in given.logs.items() if not _is_scalar(log)]:
            found = f"logs {wrong} that are no scalar tensors"
        elif taken := sorted(OWN_LOGS & given.logs.keys()):
            found = f"logs {taken}, names of the run's own losses"
        elif not _is_scalar(given.loss):
            found = f"a loss of shape {tuple(given.loss.shape)}"
        elif torch.is_grad_enabled() and not given.loss.requires_grad:
            found = "a loss without a gradient, which trains nothing"
        else:
            return given
        raise ValueError(
            f"{giver} returned {found}; it must return LossOutput(loss, logs) of a scalar loss "
            "tensor that carries the gradient, and detached scalar tensors to log by name"
        )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0
