"""COCO's images of different sizes with their boxes: resized and flipped together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.batch import NO_IMAGES
from ser_lightning.data.datasets import balanced_subset
from ser_lightning.data.labelled import OWN, LabelledDataModule, Split, check_source
from ser_lightning.data.plan import AspectPlan, BatchKey, Plan
from ser_lightning.data.reading import Handful, Reader, made
from ser_lightning.numbers import PositiveInt, checked
from ser_lightning.randomness import Stream, uniforms
from ser_lightning.sources.base import Source
from ser_lightning.sources.coco import CocoDetection, CocoImages
from ser_lightning.sources.opening import open_source
from ser_lightning.sources.released import COCO_VAL, count_reasons

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
        unreadable: (n,) images that could not be read, as in `EvaluationBatch`.
    """

    pixels: tuple[Tensor, ...]
    corners: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    scale: Tensor
    indices: Tensor
    unreadable: Tensor = NO_IMAGES


class _Item(NamedTuple):
    """One image of a batch; without its boxes in evaluation."""

    pixels: Tensor
    scale: Tensor
    corners: Tensor | None = None
    labels: Tensor | None = None


def resized(image: Tensor, short_side: int, long_side: int) -> tuple[Tensor, Tensor]:
    """Brings the shorter side of an image to a length, or its longer one to the limit.

    Returns:
        (3, h, w) uint8 of the same aspect, bilinear and antialiased, and the (4,) factors of its
        boxes: w/W, h/H, w/W, h/H.
    """
    height, width = image.shape[-2:]
    factor = min(short_side / min(height, width), long_side / max(height, width))
    size = [max(1, round(side * factor)) for side in (height, width)]
    pixels = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)
    return pixels[0], torch.tensor([size[1] / width, size[0] / height] * 2)


@dataclass(frozen=True)
class DetectionTraining:
    """Makes this rank's images of a step, of a random scale and flipped half the time.

    Attributes:
        reader: of the training images, each with an object.
        plan: which of them a step takes.
        short_sides: lengths of the shorter side, of which one is drawn per image.
        long_side: longest allowed side in pixels.
    """

    reader: Reader
    plan: Plan
    short_sides: Sequence[int] = SHORT_SIDES
    long_side: int = 1333

    def __call__(self, key: BatchKey) -> DetectionBatch:
        """The batch of a step."""
        indices, _ = self.plan.indices(key)
        draws = uniforms(self.plan.seed, Stream.AUGMENT, key.epoch, indices, 0, 2)

        def make(handful: Handful) -> list[_Item]:
            rows = zip(handful.images, handful.positions, draws[handful.rows], strict=True)
            return [self._item(image, int(position), *row) for image, position, row in rows]

        replace = self.plan.seed, key.epoch
        items, _, positions = made(self.reader.handfuls(indices, replace), make)
        return _batch(items, indices, indices[positions != indices])

    def _item(self, image: Tensor, position: int, side: float, flip: float) -> _Item:
        images = self.reader.images
        assert isinstance(images, CocoImages)
        boxes = images.boxes(position).objects()
        short = self.short_sides[int(side * len(self.short_sides))]
        pixels, scale = resized(image, short, self.long_side)
        corners = boxes.corners * scale
        if flip < 0.5:
            pixels = pixels.flip(-1)
            left, top, right, bottom = corners.unbind(1)
            width = pixels.shape[-1]
            corners = torch.stack([width - right, top, width - left, bottom], dim=1)
        return _Item(pixels, scale, corners, boxes.labels)


@dataclass(frozen=True)
class DetectionTest:
    """Makes a batch of clean images; slots are positions of the reader's images."""

    reader: Reader
    short_side: int = 800
    long_side: int = 1333

    def __call__(self, slots: np.ndarray) -> DetectionBatch:
        """The images of some slots."""

        def make(handful: Handful) -> list[_Item]:
            images = handful.images
            return [_Item(*resized(image, self.short_side, self.long_side)) for image in images]

        items, rows, _ = made(self.reader.handfuls(slots), make)
        return _batch(items, slots[rows], np.delete(slots, rows))


def _batch(items: list[_Item], indices: np.ndarray, unreadable: np.ndarray) -> DetectionBatch:
    return DetectionBatch(
        tuple(item.pixels for item in items),
        tuple(item.corners for item in items if item.corners is not None),
        tuple(item.labels for item in items if item.labels is not None),
        torch.stack([item.scale for item in items]),
        torch.from_numpy(indices),
        torch.from_numpy(unreadable),
    )


@checked
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
        global_batch_size: PositiveInt = 32,
        short_sides: tuple[PositiveInt, ...] = SHORT_SIDES,
        test_short_side: PositiveInt = 800,
        long_side: PositiveInt = 1333,
        evaluation_batch_size: PositiveInt = 4,
        **options: Any,
    ) -> None:
        super().__init__(
            source, global_batch_size, evaluation_batch_size=evaluation_batch_size, **options
        )
        check_source(source, CocoDetection, "boxes")
        if not short_sides:
            raise ValueError("short_sides is empty; the usual ones are 480 to 800")
        self.short_sides = tuple(short_sides)
        self.test_short_side = test_short_side
        self.long_side = long_side

    @override
    def setup(self, stage: str) -> None:
        if self._splits:
            return
        train, test = open_source(self.source)
        assert isinstance(train, CocoImages)
        assert isinstance(test, CocoImages)
        tested = test.part(balanced_subset(test.labels, self.num_test, 2))
        for images in (train, tested):
            if not len(images.with_objects()):
                raise ValueError(
                    f"none of {len(images):,} images of {images.folder} has a box around a single "
                    "object (`iscrowd` 0), of some width and height; annotate some, or use more "
                    "images"
                )
        train = train.part(train.with_objects())
        self._splits = {
            "train": train.part(balanced_subset(train.labels, self.num_train, 0)),
            "holdout": train.part(np.arange(0)),
            "test": tested,
        }
        found = {"val2017": len(test)}
        is_released = self.source.is_released
        self._marks = count_reasons(found, COCO_VAL) if is_released else (OWN,)

    @override
    def images(self, split: Split) -> CocoImages:
        images = super().images(split)
        assert isinstance(images, CocoImages)
        return images

    @property
    @override
    def num_classes(self) -> int:
        # the category ids from 0, the background, to the largest: 91 for COCO
        return max(self.images("train").num_categories, self.images("test").num_categories)

    @override
    def plan(self, trainer: L.Trainer | None = None) -> Plan:
        return AspectPlan(**vars(super().plan(trainer)), is_wide=self.images("train").is_wide)

    @override
    def training_batches(self, plan: Plan) -> DetectionTraining:
        reader = self.reader(self.images("train"))
        return DetectionTraining(reader, plan, self.short_sides, self.long_side)

    @override
    def test_dataloader(self) -> DataLoader:
        images = self.images("test")
        make = DetectionTest(self.reader(images), self.test_short_side, self.long_side)
        return self.in_order(make, "test", (len(images), self.evaluation_batch_size))

    @override
    def describe(self) -> dict[str, Any]:
        sizes = {"short_side": self.test_short_side, "long_side": self.long_side}
        kind = {"interpolation": "bilinear", "mean": list(self.mean), "std": list(self.std)}
        return sizes | kind
