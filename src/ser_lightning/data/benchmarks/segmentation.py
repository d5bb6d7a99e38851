"""Images with masks: whole, resized to a square, their masks along with them or as they are."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.batch import NO_IMAGES
from ser_lightning.data.clean import Clean
from ser_lightning.data.labelled import LabelledDataModule, check_source
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.reading import Handful, Reader, made
from ser_lightning.numbers import PositiveInt, Probability, checked
from ser_lightning.randomness import Stream, uniforms
from ser_lightning.sources.base import Source
from ser_lightning.sources.mask_folder import MaskFolder
from ser_lightning.sources.masks import class_counts, mask_of
from ser_lightning.sources.released import ADE20K_VAL, VOC2012_VAL, count_reasons

_VAL = {"voc2012": VOC2012_VAL, "ade20k": ADE20K_VAL}


class SegmentationBatch(NamedTuple):
    """Images and what their pixels are.

    Attributes:
        pixels: (B, 3, side, side) normalised.
        masks: per image (h, w) uint8 classes, `IGNORED` where they do not count; the size of the
            square in training, that of the file in a test.
        indices: (B,) which images these are.
        unreadable: (n,) images that could not be read, as in `EvaluationBatch`.
    """

    pixels: Tensor
    masks: tuple[Tensor, ...]
    indices: Tensor
    unreadable: Tensor = NO_IMAGES


def squared(image: Tensor, side: int) -> Tensor:
    """The whole of a uint8 image (3, H, W) as a square (3, side, side), bicubic, antialiased."""
    sizes = [side, side]
    return F.interpolate(image[None].contiguous(), sizes, mode="bicubic", antialias=True)[0]


def squared_mask(mask: Tensor, side: int) -> Tensor:
    """A uint8 mask (H, W) as a square (side, side), each pixel that of the nearest one."""
    return F.interpolate(mask[None, None], [side, side], mode="nearest-exact")[0, 0]


@dataclass(frozen=True)
class MaskTraining:
    """Makes this rank's images of a step with their masks, flipped with probability `p_flip`."""

    reader: Reader
    plan: Plan
    clean: Clean
    side: int
    p_flip: float

    def __call__(self, key: BatchKey) -> SegmentationBatch:
        """The batch of a step."""
        indices, _ = self.plan.indices(key)
        draws = uniforms(self.plan.seed, Stream.AUGMENT, key.epoch, indices, 0, 1)[:, 0]

        def make(handful: Handful) -> tuple[Tensor, Tensor]:
            pixels, masks = [], []
            rows = zip(handful.images, handful.positions, draws[handful.rows], strict=True)
            for image, position, draw in rows:
                pair = (
                    squared(image, self.side),
                    squared_mask(mask_of(self.reader.images, int(position)), self.side),
                )
                square, mask = (x.flip(-1) for x in pair) if draw < self.p_flip else pair
                pixels.append(square)
                masks.append(mask)
            return torch.stack(pixels), torch.stack(masks)

        replace = self.plan.seed, key.epoch
        (pixels, masks), _, positions = made(self.reader.handfuls(indices, replace), make)
        bad = torch.from_numpy(indices[positions != indices])
        index = torch.from_numpy(positions)
        return SegmentationBatch(self.clean.normalise(pixels), tuple(masks), index, bad)


@dataclass(frozen=True)
class MaskTest:
    """Makes a batch of images and the masks of their files; slots are the reader's positions."""

    reader: Reader
    clean: Clean
    side: int

    def __call__(self, slots: np.ndarray) -> SegmentationBatch:
        """The images of some slots."""

        def make(handful: Handful) -> Tensor:
            return torch.stack([squared(image, self.side) for image in handful.images])

        pixels, rows, positions = made(self.reader.handfuls(slots), make)
        return SegmentationBatch(
            self.clean.normalise(pixels),
            tuple(mask_of(self.reader.images, int(position)) for position in positions),
            torch.from_numpy(slots[rows]),
            torch.from_numpy(np.delete(slots, rows)),
        )


@checked
class SegmentationDataModule(LabelledDataModule):
    """Images with masks to train a segmentation on, and others to measure once at the end.

    Images are shown whole, in a square, whatever their shape. Nothing is selected, so nothing is
    held out. All masks are read once at the start.

    Args:
        source: `MaskFolder`.
        global_batch_size: images per optimizer step, over all devices.
        side: side of the square in pixels, whole patches; null for the size that the backbone was
            trained at.
        p_flip: probability that a training image is mirrored, left to right.
        evaluation_batch_size: test images per device and batch.
        options: as `LabelledDataModule`.

    Attributes:
        train_counts: (classes,) int64 pixels of each class in the training masks, after `setup`.
    """

    train_counts: Tensor

    def __init__(
        self,
        source: Source,
        global_batch_size: PositiveInt = 16,
        side: PositiveInt | None = None,
        p_flip: Probability = 0.5,
        evaluation_batch_size: PositiveInt = 16,
        **options: Any,
    ) -> None:
        super().__init__(
            source, global_batch_size, evaluation_batch_size=evaluation_batch_size, **options
        )
        check_source(source, MaskFolder, "masks")
        self.holdout_fraction = 0.0
        self.needs_labels = False
        self.side = side or self.image_size
        self.p_flip = p_flip

    @override
    def setup(self, stage: str) -> None:
        if self._splits:
            return
        super().setup(stage)
        self.train_counts = class_counts(self.images("train"))
        class_counts(self.images("test"))  # refuses masks that do not fit
        test = self.source.evaluation()
        layout = self.source.dataset_name.partition("_")[0]
        if layout in _VAL and test is not None:
            self._marks += count_reasons({"the validation split": len(test)}, _VAL[layout])

    @override
    def training_batches(self, plan: Plan) -> MaskTraining:
        reader = self.reader(self.images("train"))
        return MaskTraining(reader, plan, self.clean, self.side, self.p_flip)

    @override
    def test_dataloader(self) -> DataLoader:
        images = self.images("test")
        make = MaskTest(self.reader(images), self.clean, self.side)
        return self.in_order(make, "test", (len(images), self.evaluation_batch_size))

    @override
    def describe(self) -> dict[str, Any]:
        kind = {"interpolation": "bicubic", "mean": list(self.mean), "std": list(self.std)}
        return {"side": self.side, "whole": True, "masks": "at full size"} | kind
