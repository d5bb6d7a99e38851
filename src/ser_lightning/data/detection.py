"""Batches of images of different sizes with their boxes, as pure functions of their key."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ser_lightning.data.datasets import ImageReader, OnBadImage, balanced_subset, evaluation_loader
from ser_lightning.data.labelled import LabelledDataModule, Split
from ser_lightning.data.plan import AspectPlan, BatchKey, Plan
from ser_lightning.data.sources.base import Source
from ser_lightning.data.sources.coco import CocoDetection, CocoImages
from ser_lightning.data.sources.released import COCO_VAL, count_reasons
from ser_lightning.randomness import Stream, generator, uniforms

SHORT_SIDES = tuple(range(480, 801, 32))


class DetectionBatch(NamedTuple):
    """Resized images and what is in them.

    Attributes:
        pixels: per image (3, h, w) uint8.
        corners: per image (n, 4) float32 boxes in pixels of the resized image: left, top, right,
            bottom. Empty in evaluation.
        labels: per image (n,) int64 category ids. Empty in evaluation.
        scale: (B, 4) float32 resized over original size: width, height, width, height.
        indices: (B,) which images these are.
    """

    pixels: tuple[Tensor, ...]
    corners: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    scale: Tensor
    indices: Tensor


def resized(image: Tensor, short_side: int, long_side: int) -> tuple[Tensor, Tensor]:
    """Brings the shorter side of an image to a length, or its longer one to the limit.

    Args:
        image: (3, H, W) uint8.
        short_side: wanted length of the shorter side in pixels.
        long_side: longest allowed side in pixels.

    Returns:
        (3, h, w) uint8 of the same aspect, bilinear and antialiased, and the (4,) factors of its
        boxes: w/W, h/H, w/W, h/H.
    """
    height, width = image.shape[-2:]
    factor = min(short_side / min(height, width), long_side / max(height, width))
    size = [max(1, round(side * factor)) for side in (height, width)]
    pixels = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)
    return pixels[0], torch.tensor([size[1] / width, size[0] / height] * 2)


class DetectionTraining(Dataset):
    """Maps a `BatchKey` to this rank's images, resized to a random scale and flipped half the time.

    Args:
        images: the training images, each with an object.
        plan: which of them a step takes.
        short_sides: of which one is drawn per image.
        long_side: longest allowed side in pixels.
        on_bad_image: see `ImageReader`.
    """

    def __init__(
        self,
        images: CocoImages,
        plan: Plan,
        short_sides: Sequence[int] = SHORT_SIDES,
        long_side: int = 1333,
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        self.images = images
        self.plan = plan
        self.short_sides = tuple(short_sides)
        self.long_side = long_side
        self.on_bad_image = on_bad_image

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, key: BatchKey) -> DetectionBatch:
        indices, _ = self.plan.indices(key)
        draws = uniforms(self.plan.seed, Stream.AUGMENT, key.epoch, indices, 0, 2)
        items = [self._item(int(i), *draw) for i, draw in zip(indices, draws, strict=True)]
        pixels, corners, labels, scale = zip(*items, strict=True)
        return DetectionBatch(
            pixels, corners, labels, torch.stack(scale), torch.from_numpy(indices)
        )

    def _item(self, index: int, side: float, flip: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels, corners, labels and scale of one image."""
        image, position = ImageReader(self.images, self.on_bad_image).read(index)
        boxes = self.images.boxes(position).objects()
        short = self.short_sides[int(side * len(self.short_sides))]
        pixels, scale = resized(image, short, self.long_side)
        corners = boxes.corners * scale
        if flip < 0.5:
            pixels = pixels.flip(-1)
            left, top, right, bottom = corners.unbind(1)
            width = pixels.shape[-1]
            corners = torch.stack([width - right, top, width - left, bottom], dim=1)
        return pixels, corners, boxes.labels, scale


class DetectionTest(Dataset):
    """Clean images of one rank, in order: item i is its i-th batch, each image exactly once.

    An image that cannot be read is an error: another one in its place would count twice.

    Args:
        images: the images to evaluate, over all ranks; `indices` of a batch count them.
        batch_size: images per batch.
        short_side: wanted length of the shorter side in pixels.
        long_side: longest allowed side in pixels.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        images: CocoImages,
        batch_size: int,
        short_side: int = 800,
        long_side: int = 1333,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images
        self.slots = np.arange(rank, len(images), world_size)
        self.batch_size = batch_size
        self.short_side = short_side
        self.long_side = long_side

    def __len__(self) -> int:
        return math.ceil(len(self.slots) / self.batch_size)

    def __getitem__(self, batch: int) -> DetectionBatch:
        slots = self.slots[batch * self.batch_size : (batch + 1) * self.batch_size]
        images = [self.images.read(int(slot)) for slot in slots]
        items = [resized(image, self.short_side, self.long_side) for image in images]
        pixels, scale = zip(*items, strict=True)
        return DetectionBatch(pixels, (), (), torch.stack(scale), torch.from_numpy(slots))


class DetectionDataModule(LabelledDataModule):
    """COCO for detection: train2017 to train on, val2017 to measure once at the end.

    Nothing is selected, so nothing is held out.

    Args:
        source: `CocoDetection`.
        global_batch_size: images per optimizer step, over all devices.
        short_sides: lengths of the shorter side for training, of which each image gets one.
        test_short_side: length of the shorter side in the test.
        long_side: longest allowed side in pixels.
        evaluation_batch_size: test images per device and batch.
        options: as `LabelledDataModule`.
    """

    def __init__(
        self,
        source: Source,
        global_batch_size: int = 32,
        short_sides: Sequence[int] = SHORT_SIDES,
        test_short_side: int = 800,
        long_side: int = 1333,
        evaluation_batch_size: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(
            source, global_batch_size, evaluation_batch_size=evaluation_batch_size, **options
        )
        if not isinstance(source, CocoDetection):
            raise ValueError(
                f"{type(source).__name__} has no boxes; use --data.source CocoDetection "
                "--data.source.root FOLDER"
            )
        if not short_sides or min(*short_sides, test_short_side, long_side) < 1:
            raise ValueError(
                f"short_sides {short_sides}, test_short_side {test_short_side} and long_side "
                f"{long_side} must be pixels; the usual ones are 480 to 800, 800 and 1333"
            )
        self.coco = source
        self.short_sides = tuple(short_sides)
        self.test_short_side = test_short_side
        self.long_side = long_side

    def setup(self, stage: str) -> None:
        """Opens both splits, once."""
        if self._splits:
            return
        train, test = self.coco.train(), self.coco.evaluation()
        train = train.part(train.with_objects())
        self._splits = {
            "train": _some(train, self.num_train, 0),
            "holdout": train.part(np.arange(0)),
            "test": _some(test, self.num_test, 2),
        }
        self._marks = count_reasons({"val2017": len(test)}, COCO_VAL)

    def images(self, split: Split) -> CocoImages:
        """One split; those to train on have an object each. Nothing is in the hold-out part."""
        images = super().images(split)
        assert isinstance(images, CocoImages)
        return images

    @property
    def num_classes(self) -> int:
        """The category ids from 0, the background, to the largest: 91 for COCO."""
        return max(self.images("train").num_categories, self.images("test").num_categories)

    @property
    def dataset_name(self) -> str:
        """What results call it."""
        return "coco2017"

    def plan(self) -> Plan:
        """Which training images a step takes on this rank."""
        return AspectPlan(**vars(super().plan()), is_wide=self.images("train").is_wide)

    def train_dataset(self) -> Dataset:
        """The data set that maps a `BatchKey` to a training batch of this rank."""
        return DetectionTraining(
            self.images("train"), self.plan(), self.short_sides, self.long_side, self.on_bad_image
        )

    def test_dataloader(self) -> DataLoader:
        """Loads the test images, this rank's share, in order."""
        dataset = DetectionTest(
            self.images("test"),
            self.evaluation_batch_size,
            self.test_short_side,
            self.long_side,
            self.trainer.global_rank if self.trainer else 0,
            self.trainer.world_size if self.trainer else 1,
        )
        return evaluation_loader(dataset, self.num_workers, torch.cuda.is_available())

    def describe(self) -> dict[str, Any]:
        """How test images are prepared."""
        return {
            "short_side": self.test_short_side,
            "long_side": self.long_side,
            "interpolation": "bilinear",
            "mean": list(self.mean),
            "std": list(self.std),
        }


def _some(images: CocoImages, size: int | None, counter: int) -> CocoImages:
    if size is None:
        return images
    chosen = balanced_subset(images.labels, size, generator(0, Stream.SUBSET, counter))
    return images.part(chosen)
