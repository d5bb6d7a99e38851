"""What the benchmarks have in common: named conditions, each with its images, in one loader."""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.batch import NO_IMAGES
from ser_lightning.data.benchmarks.layouts import class_files
from ser_lightning.data.datasets import CleanImages, balanced_subset
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.sources.base import ImageSet, Part, Source, classes
from ser_lightning.sources.decode import EXTENSIONS
from ser_lightning.sources.listing import left_out_line
from ser_lightning.sources.opening import announce
from ser_lightning.sources.released import RELEASED_SIDE


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

    @property
    def title(self) -> str:
        """Name and severity, such as "fog/1"."""
        return f"{self.name}/{self.severity}" if self.severity else self.name


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
    """Makes batches of one condition each; slots count through all conditions."""

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
    """Makes batches of images that each come in all conditions: (B, conditions, 3, H, W)."""

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
        left_out: number of files that are no images of the benchmark, by reason.
    """

    def __init__(self, source: Source, **labelled: Any) -> None:
        super().__init__(source, **labelled)
        self.conditions: tuple[Condition, ...] = ()
        self.left_out: Counter[str] = Counter()
        self._class_names: tuple[str, ...] = ()
        self._notes: tuple[str, ...] = ()

    @abstractmethod
    def open(self) -> tuple[Condition, ...]:
        """Finds the images of all conditions, and which classes they are of."""

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

    @override
    def setup(self, stage: str) -> None:
        if not self.conditions:
            self.conditions = self.open()
            announce(self.summary(), *dict.fromkeys(c.images for c in self.conditions))

    def summary(self) -> str:
        """What was found, in a few lines: classes, images of each condition, what was left out."""
        where = f" in {self.data_root}" if self.data_root else ""
        lines = [f"{self.benchmark_name}{where}, {classes(self.class_names)}"]
        for size, group in groupby(self.conditions, key=lambda c: len(c.images)):
            titles = [c.title for c in group]
            several = f" to {titles[-1]}, {len(titles)} conditions" if len(titles) > 1 else ""
            lines.append(f"{titles[0]}{several}: {size:,} to evaluate on{' each' * bool(several)}")
        lines += [*self._notes, *left_out_line(self.left_out)]
        return "\n".join(f"data: {line}" for line in lines)

    @override
    def test_dataloader(self) -> DataLoader:
        """Loads the images of all conditions, this rank's share, each exactly once."""
        sizes = [max(1, self.evaluation_batch_size // self.num_frames(c)) for c in self.conditions]
        return self.in_order(
            ConditionImages(tuple(self.images_of(c) for c in self.conditions)),
            "test",
            *((len(c.images), size) for c, size in zip(self.conditions, sizes, strict=True)),
        )

    def rendered_loader(self) -> DataLoader:
        """The same, of images that each come in all conditions and are read once."""
        first = self.conditions[0]
        size = max(1, self.evaluation_batch_size // len(self.conditions))
        return self.in_order(
            RenderedImages(self.images_of(first)), "test", (len(first.images), size)
        )

    def num_frames(self, condition: Condition) -> int:
        """Frames of a condition's videos: there are so many fewer in a batch."""
        return 1

    def images_of(self, condition: Condition) -> CleanImages:
        """What makes the batches of one condition."""
        clean = replace(self.clean, crop_fraction=condition.crop_fraction)
        return CleanImages(self.reader(condition.images), clean)

    def class_files(
        self,
        folder: Path,
        class_names: tuple[str, ...],
        layout: str,
        extensions: tuple[str, ...] = EXTENSIONS,
    ) -> np.ndarray:
        """The files of class folders, what else is there being counted; see `layouts`."""
        paths, left_out = class_files(folder, class_names, layout, extensions)
        self.left_out += left_out
        return paths

    def _evaluation(self) -> ImageSet | None:
        """The source's whole evaluation split, if it has one, which is told at the start."""
        images = self.source.evaluation()
        if images is not None:
            self._notes = (f"clean images of {self.source.dataset_name}", *self.source.notes())
        return images

    def source_images(self) -> ImageSet:
        """The source's whole evaluation split, to be changed; its classes are the benchmark's.

        Raises:
            FileNotFoundError: its files are missing.
            ValueError: there is none, or it has no labels.
        """
        images = self._evaluation()
        if images is None or len(images) == 0 or int(images.labels.min()) < 0:
            raise ValueError(
                f"{type(self.source).__name__} has no evaluation split with labels; add one "
                "(a folder `val` beside `train`, one folder per class in both)"
            )
        self._class_names = images.class_names
        return images

    def first_readable(self, images: ImageSet) -> Tensor:
        """The first image, or video, of those that can be read; raises as `Reader.read`."""
        reader = self.reader(images)
        found = (reader.read(position) for position in range(len(images)))
        return next(image for image in found if image is not None)

    def part(self, images: ImageSet, most: int | None = None) -> ImageSet:
        """At most so many images, and `num_test`, the same number of each class; null for all."""
        size = min(n for n in (most, self.num_test, len(images)) if n is not None)
        if size == len(images):
            return images
        return Part(images, balanced_subset(images.labels, size, 2))


class RobustnessDataModule(BenchmarkDataModule):
    """Released images of a robustness benchmark, or ones that are generated from the source's.

    Generated ones are of the source's evaluation split, each at its own size, or at the backbone's
    if it is larger; where the first one is, smaller ones are enlarged to it too. Released ones of
    ImageNet's classes are shown as they are.

    Args:
        source: the images that the classifier was trained on.
        root: folder of the released files.
        generated: makes them of the source's images; not to be compared with released ones.
        labelled: further arguments of LabelledDataModule.
    """

    benchmark: ClassVar[str]
    layout: ClassVar[str]

    def __init__(
        self, source: Source, root: str | None = None, generated: bool = False, **labelled: Any
    ) -> None:
        super().__init__(source, **labelled)
        if (root is None) != generated:
            raise ValueError(
                f"root {root} with generated {generated}; give --data.root DIR for released files, "
                f"\n{self.layout.format(root='DIR')}\nor --data.generated true to make them of the "
                "images of the source"
            )
        self.root = None if root is None else Path(root).expanduser()
        self.generated = generated

    @property
    @override
    def benchmark_name(self) -> str:
        return self.benchmark if self.is_imagenet else self.dataset_name

    @property
    @override
    def data_root(self) -> str:
        return str(getattr(self.source, "root", "") if self.root is None else self.root)

    @override
    def describe(self) -> dict[str, Any]:
        is_resized = self.generated or not self.is_imagenet
        return super().describe() | ({} if is_resized else {"resize": None})

    def kind_reasons(self, images: ImageSet) -> tuple[str, ...]:
        """Reasons where released images, or videos, lack classes, or have another size."""
        found, reasons = len(images.labels.unique()), tuple[str, ...]()
        if found < self.num_classes:
            reasons += (f"{found:,} of {self.num_classes:,} classes only",)
        height, width = self.first_readable(images).shape[-2:]
        size = f"images of {height} x {width} pixels"
        if not height == width == self.image_size:
            reasons += (f"{size} resized to {self.image_size}",)
        elif self.image_size != RELEASED_SIDE:
            reasons += (f"{size}, the released set has {RELEASED_SIDE} x {RELEASED_SIDE}",)
        return reasons
