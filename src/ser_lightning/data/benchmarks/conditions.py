"""What the benchmarks have in common: named conditions, each with its images, in one loader."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ser_lightning.data.datasets import EvaluationBatches, balanced_subset, evaluation_loader
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
    """

    pixels: Tensor
    label: Tensor
    condition: Tensor


class ConditionBatches(Dataset):
    """The batches of all conditions, one condition after the other.

    Args:
        parts: the batches of each condition.
    """

    def __init__(self, parts: Sequence[EvaluationBatches]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts]).tolist()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, item: int) -> ConditionBatch:
        number = bisect_right(self.ends, item)
        first = self.ends[number] - len(self.parts[number])
        batch = self.parts[number][item - first]
        return ConditionBatch(batch.pixels, batch.label, torch.full_like(batch.label, number))


class RenderedBatches(Dataset):
    """Batches of images that each come in all conditions at once.

    Args:
        batches: its pixels are (B, conditions, 3, H, W).
    """

    def __init__(self, batches: EvaluationBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> ConditionBatch:
        batch = self.batches[item]
        num_images, num_conditions = batch.pixels.shape[:2]
        return ConditionBatch(
            batch.pixels.flatten(0, 1),
            batch.label.repeat_interleave(num_conditions),
            torch.arange(num_conditions).repeat(num_images),
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
    def class_names(self) -> tuple[str, ...]:
        """Names of the images' classes, or their ids where they have none; after `setup`."""
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes of the images; available after `setup`."""
        return len(self._class_names)

    def setup(self, stage: str) -> None:
        """Opens what is to be measured, once."""
        if not self.conditions:
            self.conditions = self.open()

    def test_dataloader(self) -> DataLoader:
        """Loads the images of all conditions, this rank's share, each exactly once."""
        parts = [self.batches(c.images, c.crop_fraction) for c in self.conditions]
        return evaluation_loader(
            ConditionBatches(parts), self.num_workers, torch.cuda.is_available()
        )

    def batches(
        self, images: ImageSet, crop_fraction: float, num_frames: int = 1
    ) -> EvaluationBatches:
        """Batches of this rank's share of a set, fewer at a time if an image has many frames."""
        return EvaluationBatches(
            images,
            None,
            max(1, self.evaluation_batch_size // num_frames),
            self.image_size,
            crop_fraction,
            self.mean,
            self.std,
            self.trainer.global_rank if self.trainer else 0,
            self.trainer.world_size if self.trainer else 1,
            self.on_bad_image,
        )

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
