"""How evaluation sees an image: resized, its middle cut out, normalised."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ser_lightning.batch import ViewRecord
from ser_lightning.data.crops import middle, needed_side, whole
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, HostView, normalise


@dataclass(frozen=True)
class Clean:
    """The preparation of clean images: side of the result, share of the resized side, channels.

    ImageNet's custom keeps 224 of 256; a fraction of 1 keeps the whole height or width.
    """

    size: int
    crop_fraction: float = 224 / 256
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def cut(self, image: Tensor) -> Tensor:
        """Resizes the shorter side of uint8 (..., 3, H, W) and cuts the middle out of it."""
        return middle(image, self.resized, self.size)

    @property
    def resized(self) -> int:
        """Length that the shorter side has before the middle is cut out."""
        return round(self.size / self.crop_fraction)

    @property
    def needed_side(self) -> int:
        """Height and width with which an image looks as in full size."""
        return needed_side(self.resized)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Standardises uint8 images."""
        return normalise(pixels / 255, self.mean, self.std)

    def view(self, images: Sequence[Tensor]) -> HostView:
        """The plain view of images: what evaluation sees, before it is normalised."""
        return HostView(torch.stack([self.cut(image) for image in images]), self.record(images))

    def record(self, images: Sequence[Tensor]) -> ViewRecord[np.ndarray]:
        """Which part of the images it keeps, to a pixel or so, and that nothing is changed."""
        record = whole(images)
        sizes = record.source_size
        side = sizes.min(axis=1, keepdims=True) * self.size / self.resized
        box = np.concatenate([(sizes - side) / 2, np.broadcast_to(side, sizes.shape)], axis=1)
        return record._replace(box=box)
