"""Several augmented views of the same images, for what is measured across views."""

import math

import numpy as np
import torch
from torch.utils.data import Dataset

from ser_lightning.data.batches import ImageReader, OnBadImage
from ser_lightning.data.partition import BatchKey
from ser_lightning.data.sources import ImageSet
from ser_lightning.data.views import CropViews, HostBatch, HostView, InvertibleViews


class AugmentedBatches(Dataset):
    """Images of one rank in order, each with views of both pipelines; to be rendered on the device.

    Item i is the i-th batch, each image exactly once. Unlike in a training batch, both pipelines
    show the same images. Views depend on the seed and on the image, not on its batch; all images
    share the grids and the parities of the turns of an invertible view.

    Args:
        images: the split to read.
        indices: positions to show, over all ranks.
        batch_size: images per batch.
        num_views: views per image and pipeline, an even number: recipes come in pairs.
        crop: the crop pipeline; its local crops are left out.
        invertible: the invertible pipeline.
        image_size: side of an upright view in pixels.
        patch_size: side of a token in pixels.
        seed: of the views.
        rank: this process.
        world_size: number of processes.
        on_bad_image: see `ImageReader`.

    Raises:
        ValueError: if the number of views is odd or below 2.
    """

    def __init__(
        self,
        images: ImageSet,
        indices: np.ndarray,
        batch_size: int,
        num_views: int,
        crop: CropViews,
        invertible: InvertibleViews,
        image_size: int,
        patch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        if num_views < 2 or num_views % 2:
            raise ValueError(
                f"num_views {num_views} does not form pairs of views; use an even number, such as "
                f"{max(2, num_views + 1)}"
            )
        self.images = images
        self.indices = indices
        self.slots = np.arange(rank, len(indices), world_size)
        self.batch_size = batch_size
        self.num_views = num_views
        self.crop = crop
        self.invertible = invertible
        self.image_size = image_size
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.seed = seed
        self.on_bad_image = on_bad_image

    def __len__(self) -> int:
        return math.ceil(len(self.slots) / self.batch_size)

    def __getitem__(self, batch: int) -> HostBatch:
        slots = self.slots[batch * self.batch_size : (batch + 1) * self.batch_size]
        indices, reader = self.indices[slots], ImageReader(self.images, self.on_bad_image)
        images, positions = reader.read_all(indices)
        crop: list[HostView] = []
        invertible: list[HostView] = []
        for pair in range(self.num_views // 2):
            key = BatchKey(epoch=pair, step=0)  # every pair of views draws as an epoch of its own
            crop += self.crop.make(images, indices, key, self.seed, self.image_size)[:2]
            invertible += self.invertible.make(
                images, indices, key, self.seed, self.image_size, self.grid
            )
        return HostBatch(
            tuple(crop),
            tuple(invertible),
            torch.from_numpy(slots),
            self.images.labels[torch.from_numpy(positions)],
            torch.tensor(reader.num_unreadable),
        )
