"""SER between crops: the token maps of two crops of an image agree where both of them see it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.batch import (
    NUM_GLOBAL_VIEWS,
    BranchFeatures,
    LossOutput,
    PartitionedBatch,
    View,
    ViewNeeds,
    spaced_rows,
)
from ser_lightning.distributed import world_size
from ser_lightning.groups.frame import MAX_SCALE, Frame, carried, transport_weights
from ser_lightning.numbers import AtLeastOne, NonNegative, Positive, PositiveInt, Ratio, checked
from ser_lightning.regularizers.ser import SERRegularizer, mean_of

_CHANCE = "loss/equivariance_chance"


@checked
class OverlapRegularizer(SERRegularizer):
    """SER's loss between the crops of a share of the crop sub-batch, in their common region.

    No further views and no further passes: the objective has computed the token maps anyway. A map
    is carried to the other crop's frame by where the crops lie in the image
    (`groups/frame.py`); tokens without a counterpart there are neither anchors nor candidates.
    With local crops, each of them is compared with one of the global crops too, in that direction:
    two such directions count as much as the two of the global pair, whose mean is one loss.

    `data.crop.turned` turns these crops, each on its own, so that turns stay in the group.

    Source: the loss is SER's; the paper asks for whole images, and names crops as open. At the last
    block it is the comparison with PixPro, DenseCL and VICRegL.

    Args:
        width: channels C of the token maps; null for the backbone's.
        weight: lambda.
        temperature: tau, as SER's.
        hidden: channels of the projector; null for 512, or twice the width where that is less.
        ratio: share of the crop sub-batch that is compared: evenly spaced images, on each process
            a whole number, at least one and two in all.
        max_scale: tokens are compared where one is at most so many times as long as the other.
    """

    needs: ClassVar[ViewNeeds] = ViewNeeds(places=True)

    def __init__(
        self,
        width: PositiveInt | None = None,
        weight: NonNegative = 1.0,
        temperature: Positive = 0.3,
        hidden: PositiveInt | None = None,
        ratio: Ratio = 0.01,
        max_scale: AtLeastOne = MAX_SCALE,
    ) -> None:
        super().__init__(width, weight, temperature, hidden)
        self.ratio = ratio
        self.max_scale = max_scale

    @override
    def regularize(
        self, online: BranchFeatures, target: BranchFeatures | None, batch: PartitionedBatch
    ) -> LossOutput:
        """The loss of some images of the crop sub-batch; candidates of local crops are global."""
        num_crops = len(batch.crop[:NUM_GLOBAL_VIEWS])
        if num_crops != NUM_GLOBAL_VIEWS:
            raise ValueError(
                f"the batch has {num_crops} global crops, OverlapRegularizer compares two; set "
                "`data.invertible` to null, so that there are crops"
            )
        num_images, device = len(batch.crop[0].pixels), batch.crop[0].pixels.device
        rows = spaced_rows(num_images, self.ratio, world_size(), device)
        maps = _maps(online, rows)
        pair = [(0, 1), (1, 0)]
        inwards = [(view, view % NUM_GLOBAL_VIEWS) for view in range(NUM_GLOBAL_VIEWS, len(maps))]
        directions = [*pair, *inwards]
        frames = _frames(batch.crop[:NUM_GLOBAL_VIEWS], maps[0], rows)
        ways = self._ways(frames, pair, maps[0])
        if inwards:
            frames += _frames(batch.crop[NUM_GLOBAL_VIEWS:], maps[-1], rows)
            ways |= self._ways(frames, inwards, maps[0])

        def carry(other: int, anchor: int, view: Tensor) -> tuple[Tensor, Tensor]:
            weights, valid = ways[anchor, other]
            return carried(view, weights, frames[anchor].grid), valid

        target_maps = None if target is None else _maps(target, rows)
        outputs = self.contrast(maps, target_maps, carry, directions)
        mean, num_pairs = mean_of(outputs), len(directions) / 2
        chance = {_CHANCE: num_pairs * mean.logs[_CHANCE]}
        return LossOutput(num_pairs * mean.loss, mean.logs | chance)

    def _ways(
        self, frames: Sequence[Frame], directions: Sequence[tuple[int, int]], like: Tensor
    ) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Weights and validity of each direction (anchor, other), computed for all at once."""
        anchors, others = (
            Frame.cat([frames[view] for view in views]) for views in zip(*directions, strict=True)
        )
        dtype = torch.promote_types(like.dtype, torch.float32)
        weights, valid = transport_weights(others, anchors, dtype, self.max_scale)
        num = len(frames[0].centre)
        found = zip(weights.split(num), valid.split(num), strict=True)
        return dict(zip(directions, found, strict=True))


def _frames(views: Sequence[View], like: Tensor, rows: Tensor) -> list[Frame]:
    """The frames of some images in views with maps of one size, computed for all at once."""
    records = [view.record for view in views]
    if None in records:
        raise ValueError(
            "the crops have no record of where they lie in their images; OverlapRegularizer needs "
            "batches of the data module, or views with a ViewRecord"
        )
    fields = ("source_size", "box", "flip", "turn")
    joined = {name: torch.cat([getattr(r, name) for r in records]) for name in fields}
    height, width = like.shape[-2:]
    frames = Frame.of_crop(SimpleNamespace(**joined), (height, width))
    return frames.select(len(frames.centre) // len(records), rows)


def _maps(features: BranchFeatures, rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(view.taps[0].tokens[rows] for view in features.crop)
