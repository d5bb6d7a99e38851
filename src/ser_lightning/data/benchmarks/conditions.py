"""What the benchmarks have in common: named conditions, each with its images, in one loader."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.batch import NO_IMAGES
from ser_lightning.data.datasets import CleanImages, balanced_subset
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.sources.base import ImageSet, Part, Source
from ser_lightning.randomness import Stream, generator


class Condition(NamedTuple):
    """Images, or videos, of one condition.

    Attributes:
        name: such as "fog".
        severity: 1 to 5; 0 where there is only one.
        images: labels are places in its class names; without names they are class ids as they
            are. A video's pixels are (T, 3, H, W).
        crop_fraction: share of the resized side that the central crop keeps; 1 shows images as
            they are, but for their size.
        reasons: why its numbers may not be compared with published ones.
    """

    name: str
    severity: int
    images: ImageSet
    crop_fraction: float
    reasons: tuple[str, ...] = ()


class ConditionBatch(NamedTuple):
    """Images, or videos, and the conditions that they are of.

    Attributes:
        pixels: (B, 3, H, W) normalised images, or (B, T, 3, H, W) videos.
        label: (B,) labels of the condition's images.
        condition: (B,) places in the list of conditions.
        unreadable: (n,) slots of images that could not be read and were left out.
    """

    pixels: Tensor
    label: Tensor
    condition: Tensor
    unreadable: Tensor = NO_IMAGES


@dataclass(frozen=True)
class ConditionImages:
    """Makes batches of one condition each; slots count through all conditions.

    Attributes:
        parts: what makes the batches of each condition.
    """

    parts: tuple[CleanImages, ...]

    def __call__(self, slots: np.ndarray) -> ConditionBatch:
        """The images of some slots of one condition."""
        ends = np.cumsum([len(part.reader.images) for part in self.parts])
        number = int(np.searchsorted(ends, slots[0], side="right"))
        first = ends[number] - len(self.parts[number].reader.images)
        batch = self.parts[number](slots - first)
        condition = torch.full_like(batch.label, number)
        return ConditionBatch(batch.pixels, batch.label, condition, batch.unreadable + first)


@dataclass(frozen=True)
class RenderedImages:
    """Makes batches of images that each come in all conditions at once.

    Attributes:
        batches: what makes batches with pixels (B, conditions, 3, H, W).
    """

    batches: CleanImages

    def __call__(self, slots: np.ndarray) -> ConditionBatch:
        """All conditions of the images of some slots."""
        batch = self.batches(slots)
        num_images, num_conditions = batch.pixels.shape[:2]
        return ConditionBatch(
            batch.pixels.flatten(0, 1),
            batch.label.repeat_interleave(num_conditions),
            torch.arange(num_conditions).repeat(num_images),
            batch.unreadable,
        )


class BenchmarkDataModule(LabelledDataModule, ABC):
    """Images of several conditions, for a classifier that was trained on other images.

    Its evaluation batches are those of the conditions, not of the source.

    Args:
        source: the images that the classifier was trained on.
        labelled: further arguments of LabelledDataModule.

    Attributes:
        conditions: after `setup`.
    """

    def __init__(self, source: Source, **labelled: Any) -> None:
        super().__init__(source, **labelled)
        self.conditions: tuple[Condition, ...] = ()
        self._class_names: tuple[str, ...] = ()

    @abstractmethod
    def open(self) -> tuple[Condition, ...]:
        """Finds the images of all conditions."""

    @property
    @abstractmethod
    def benchmark_name(self) -> str:
        """What results call the images; available after `setup`."""

    @property
    @abstractmethod
    def data_root(self) -> str:
        """Folder of the images."""

    @property
    @override
    def class_names(self) -> tuple[str, ...]:
        return self._class_names  # or their ids where they have none

    @property
    @override
    def num_classes(self) -> int:
        return len(self._class_names)

    @override
    def setup(self, stage: str) -> None:
        if not self.conditions:
            self.conditions = self.open()

    @override
    def test_dataloader(self) -> DataLoader:
        return self.condition_loader()

    def condition_loader(self, num_frames: Sequence[int] | None = None) -> DataLoader:
        """Loads the images of all conditions, this rank's share, each exactly once.

        Args:
            num_frames: of the videos of each condition, where there are so many fewer in a batch.
        """
        frames = num_frames or [1] * len(self.conditions)
        sizes = zip(self.conditions, frames, strict=True)
        return self.in_order(
            ConditionImages(tuple(self.images_of(c) for c in self.conditions)),
            "test",
            *((len(c.images), self.batch_size(number)) for c, number in sizes),
        )

    def images_of(self, condition: Condition) -> CleanImages:
        """What makes the batches of one condition."""
        clean = replace(self.clean, crop_fraction=condition.crop_fraction)
        return CleanImages(self.reader(condition.images), clean)

    def batch_size(self, num_frames: int) -> int:
        """Images in a batch, fewer if each has many frames."""
        return max(1, self.evaluation_batch_size // num_frames)

    def source_images(self) -> ImageSet:
        """The source's whole evaluation split.

        Raises:
            ValueError: there is none, or it has no labels.
        """
        images = self.source.evaluation()
        if images is None or len(images) == 0 or int(images.labels.min()) < 0:
            raise ValueError(
                f"{type(self.source).__name__} has no evaluation split with labels; add one "
                "(a folder `val` beside `train`, one folder per class in both)"
            )
        return images

    def part(self, images: ImageSet, size: int | None = None) -> ImageSet:
        """So many images, or `num_test`, the same number of each class; null takes all."""
        size = self.num_test if size is None else size
        if size is None or size >= len(images):
            return images
        return Part(images, balanced_subset(images.labels, size, generator(0, Stream.SUBSET, 2)))

    def size_reasons(self, images: ImageSet) -> tuple[str, ...]:
        """A reason where finished images, or videos, do not have the backbone's size."""
        height, width = images.read(0).shape[-2:]
        if height == width == self.image_size:
            return ()
        return (f"images of {height} x {width} pixels resized to {self.image_size}",)

    def unofficial_reason(self, conditions: Sequence[Condition]) -> str | None:
        """Why the numbers of conditions may not be compared, in a line; None where they may."""
        reasons = dict.fromkeys(reason for c in conditions for reason in c.reasons)
        return "; ".join(reasons) or None
