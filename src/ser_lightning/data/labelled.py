"""Labelled images for the evaluation stages: random crops to train on, clean images to measure."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.data.base import ImageDataModule
from ser_lightning.data.datasets import LabelledCrops, balanced_subset
from ser_lightning.data.loaders import BatchLoader
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.distributed import gather_ragged
from ser_lightning.numbers import BelowOne, PositiveInt, checked
from ser_lightning.sources import released
from ser_lightning.sources.base import ImageSet, Part, Source
from ser_lightning.sources.opening import open_source

Split = Literal["train", "holdout", "test"]

PART = "measured on a part of the images"
LABELS_REMEDY = (
    "put them into one folder per class, or give others, such as the training split of a "
    "torchvision set: --data.source.train_split train"
)
OWN = "measured on a folder of one's own, which is no released set"


@checked
class LabelledDataModule(ImageDataModule):
    """Images with labels, in three splits: train, a hold-out part of it, and test.

    The test split is the source's evaluation split. Whatever a stage selects, it selects on the
    hold-out part, which it does not train on. Training batches are a function of (seed, epoch,
    step), as in pretraining; clean images come in order, each exactly once over all processes.

    Args:
        source: where the images come from; by default the one that the checkpoint was trained on.
        global_batch_size: images per optimizer step, over all devices.
        holdout_fraction: share of the training split that is held out, the same number of each
            class; 0 holds out nothing.
        num_train: training images to use, the same number of each class; null takes all.
        num_test: test images to use, the same number of each class; null takes all.
        images: further arguments of ImageDataModule; of the crops, colours are not used.

    Raises:
        ValueError: `crop` asks for local or turned crops, of which there are none.
    """

    def __init__(
        self,
        source: Source,
        global_batch_size: PositiveInt = 1024,
        holdout_fraction: BelowOne = 0.01,
        num_train: PositiveInt | None = None,
        num_test: PositiveInt | None = None,
        **images: Any,
    ) -> None:
        super().__init__(source, global_batch_size, **images)
        for name in ("local", "turned"):
            if getattr(self.crop, name) is not None:
                raise ValueError(
                    f"`data.crop.{name}` {getattr(self.crop, name)} has no effect here, where an "
                    "image has one crop; set it to null"
                )
        self.holdout_fraction = holdout_fraction
        self.num_train = num_train
        self.num_test = num_test
        self.needs_labels = True  # of the stage; the others measure photographs without classes
        self._splits: dict[Split, ImageSet] = {}
        self._marks: tuple[str, ...] = ()

    @override
    def setup(self, stage: str) -> None:
        if self._splits:
            return
        whole, test = open_source(self.source)
        if test is None:
            raise ValueError(
                f"{type(self.source).__name__} has no evaluation split to test on; add one "
                "(a folder `val` beside `train`)"
            )
        for images in (whole, test):
            if len(images) == 0 or (self.needs_labels and int(images.labels.min()) < 0):
                raise ValueError(
                    f"this stage needs labels, but images of the source have none; {LABELS_REMEDY}"
                )
        train = subset(whole, self.num_train, 0)
        held_out = balanced_subset(train.labels, round(self.holdout_fraction * len(train)), 1)
        rest = np.setdiff1d(np.arange(len(train)), held_out)
        if not len(rest):
            raise ValueError(
                f"holdout_fraction {self.holdout_fraction} of {len(train)} images holds out all of "
                "them; use a smaller one"
            )
        self._splits = {
            "train": Part(train, rest),
            "holdout": Part(train, held_out),
            "test": subset(test, self.num_test, 2),
        }
        self._marks = released.held_out_reasons(test)
        if not self.source.is_released:
            self._marks += (OWN,)
        if self.is_imagenet:
            found = {"the evaluation split": len(test)}
            self._marks += released.count_reasons(found, released.IMAGENET_VAL)

    def training_reasons(self) -> tuple[str, ...]:
        """Why numbers of what learns from the training images may not be compared."""
        if not self.is_imagenet:
            return ()
        found = {"the training split": sum(len(self._splits[s]) for s in ("train", "holdout"))}
        return released.count_reasons(found, released.IMAGENET_TRAIN)

    def images(self, split: Split) -> ImageSet:
        """One split; available after `setup`."""
        assert self._splits, "setup() has not run"
        return self._splits[split]

    @property
    def num_classes(self) -> int:
        """Number of classes of the training split."""
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their ids."""
        return self.images("train").class_names

    @property
    def is_imagenet(self) -> bool:
        """Whether the classes are those of ImageNet-1k."""
        return self.class_names == released.imagenet_synsets()

    @property
    def dataset_name(self) -> str:
        """What results call the data set: "imagenet1k" for ImageNet's classes, else the source."""
        source = self.source
        return released.imagenet_name(source) if self.is_imagenet else source.dataset_name

    def is_whole(self) -> bool:
        """Whether nothing was left out of the source: its numbers may be compared."""
        return self.num_train is None and self.num_test is None

    def reasons(self) -> tuple[str, ...]:
        """Why numbers on the test images may not be compared with published ones; after `setup`.

        Every rank must call it: unreadable images of all of them are counted.
        """
        return (*self._marks, *([] if self.is_whole() else [PART]), *self.unreadable_reasons())

    def unreadable_reasons(self) -> tuple[str, ...]:
        """A reason for each split of which some images could not be read; a collective call."""
        reasons = []
        for name in ("training", *get_args(Split)):
            own = torch.tensor(sorted(self.unreadable.get(name, ())), dtype=torch.int64)
            count = len(gather_ragged(own).unique())
            if count:
                reasons.append(f"{count} {name} images could not be read and were skipped")
        return tuple(reasons)

    @property
    @override
    def train_images(self) -> ImageSet:
        return self.images("train")

    @override
    def training_batches(self, plan: Plan) -> Callable[[BatchKey], Any]:
        return LabelledCrops(self.reader(self.train_images), plan, self.crop, self.clean)

    def clean_loader(self, split: Split, num_images: int | None = None) -> BatchLoader:
        """Loads the clean images of a split, this rank's share, in order.

        `num_images` of them, the same number of each class, or all.
        """
        return self.clean_images(self.images(split), num_images, 3, split)

    @override
    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self.clean_loader("holdout") if len(self.images("holdout")) else []

    @override
    def test_dataloader(self) -> DataLoader:
        return self.clean_loader("test")

    def describe(self) -> dict[str, Any]:
        """How clean images are prepared, in plain values for a record and for a cache's key."""
        images = self._splits.get("test")
        is_reduced = images is not None and images.describe().get("reduced", False)
        return {
            "image_size": self.image_size,
            "resize": self.clean.resized,
            "interpolation": "bicubic",
            "mean": list(self.mean),
            "std": list(self.std),
            **({"reduced_to": self.clean.needed_side} if is_reduced else {}),
        }


def check_source(source: Source, kind: type[Source], has: str) -> None:
    """Refuses, by ValueError, a source of another kind, which does not have what is needed."""
    if not isinstance(source, kind):
        raise ValueError(
            f"{type(source).__name__} has no {has}; use --data.source {kind.__name__} "
            "--data.source.root FOLDER"
        )


def subset(images: ImageSet, size: int | None, counter: int) -> ImageSet:
    """A balanced subset of a split; `size` and `counter` as in `balanced_subset`."""
    return images if size is None else Part(images, balanced_subset(images.labels, size, counter))
