"""Further views of the crop sub-batch's images, for add-ons that ask for them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ser_lightning.data import crops, photometric, records
from ser_lightning.data.crops import Cut, RotatedCrops
from ser_lightning.data.partition import BatchKey
from ser_lightning.data.photometric import PhotometricRecord
from ser_lightning.data.views import CropViews, HostView
from ser_lightning.groups import GroupElement

_ROTATED_VIEW = 2**32  # the view's number in random draws: beyond those of local crops


class ExtraViews:
    """Makes the plain view, the rotated ones, or both in this order.

    Args:
        plain: whether to show the whole image as evaluation does, with its colours.
        rotated: the crop to show in four turns; None for none. Its aspect, flips and filter are
            those of the other crops.
        crop: the crop pipeline.
        crop_fraction: share of the resized side that the plain view keeps, as in evaluation.
        patch_size: side of a token in pixels.
    """

    def __init__(
        self,
        plain: bool,
        rotated: RotatedCrops | None,
        crop: CropViews,
        crop_fraction: float,
        patch_size: int,
    ) -> None:
        self.plain = plain
        self.rotated = rotated
        self.crop = crop
        self.crop_fraction = crop_fraction
        self.patch_size = patch_size

    def make(
        self,
        images: Sequence[Tensor],
        indices: np.ndarray,
        key: BatchKey,
        seed: int,
        size: int,
        paired: bool = False,
    ) -> tuple[HostView, ...]:
        """Makes the views of every image; the rotated ones are one host view, turned later.

        Args:
            images: uint8 images (3, H, W), of any sizes.
            indices: (B,) their positions in the data set.
            key: epoch and step; views depend on the epoch alone.
            seed: the run's seed.
            size: side of the plain view in pixels.
            paired: as `CropViews.make`.
        """
        views = []
        if self.plain:
            views.append(self._plain(images, size))
        if self.rotated is not None:
            block = records.draws(seed, key, indices, _ROTATED_VIEW)
            views.append(self._rotated(images, block, self.rotated, paired))
        return tuple(views)

    def _plain(self, images: Sequence[Tensor], size: int) -> HostView:
        sizes, fraction = crops.image_sizes(images), self.crop_fraction
        upright = np.zeros(len(images), dtype=bool)
        where = Cut(sizes, crops.central_boxes(sizes, size, fraction), upright)
        pixels = torch.stack([crops.central_crop(image, size, fraction) for image in images])
        record = PhotometricRecord.identity(len(images))
        return HostView(pixels, record, packed=records.pack(where, record))

    def _rotated(
        self,
        images: Sequence[Tensor],
        draws: tuple[np.ndarray, np.ndarray],
        rotated: RotatedCrops,
        paired: bool,
    ) -> HostView:
        where = self.crop.place(images, draws[0], rotated.scale, paired)
        pixels = crops.cut(images, where, rotated.size, self.crop.interpolation)
        record = photometric.draw(rotated.view, draws[1])
        turns = _quarter_turns(len(images), rotated.size // self.patch_size)
        return HostView(pixels, record, packed=records.pack(where, record), elements=turns)


def _quarter_turns(batch_size: int, side: int) -> tuple[GroupElement, ...]:
    """Turns of every image by 0, 1, 2 and 3 quarters, at their size of (side, side) tokens."""
    upright = GroupElement.identity(batch_size, (side, side))
    halves = upright.half_turn, ~upright.half_turn
    return tuple(
        upright._replace(half_turn=half, quarter_turn=turn) for half in halves for turn in (0, 1)
    )
