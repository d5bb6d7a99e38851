"""Labelled images for the evaluation stages: random crops to train on, clean images to measure."""

from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ser_lightning.batch import EvaluationBatch
from ser_lightning.data import crops
from ser_lightning.data.datasets import (
    EvaluationBatches,
    ImageReader,
    LazyLoader,
    OnBadImage,
    balanced_subset,
    evaluation_loader,
    step_loader,
)
from ser_lightning.data.pipelines import CropViews
from ser_lightning.data.plan import BatchKey, Plan, per_device
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, normalise
from ser_lightning.data.sources import released
from ser_lightning.data.sources.base import ImageSet, Part, Source, open_source
from ser_lightning.randomness import Stream, generator, uniforms

Split = Literal["train", "holdout", "test"]

IMAGENET = "imagenet1k"
PART = "measured on a part of the images"


class LabelledCrops(Dataset):
    """Maps a `BatchKey` to this rank's random crops, one per image, normalised.

    Args:
        images: the images to train on.
        plan: which images a step takes.
        crop: boxes, flips and filter; its colours are not used.
        image_size: side of the crops in pixels.
        mean: channel means.
        std: channel standard deviations.
        on_bad_image: see `ImageReader`.
    """

    def __init__(
        self,
        images: ImageSet,
        plan: Plan,
        crop: CropViews,
        image_size: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        self.images = images
        self.plan = plan
        self.crop = crop
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.on_bad_image = on_bad_image

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, key: BatchKey) -> EvaluationBatch:
        indices, _ = self.plan.indices(key)
        images, positions = ImageReader(self.images, self.on_bad_image).read_all(indices)
        draws = uniforms(
            self.plan.seed, Stream.AUGMENT, key.epoch, indices, 0, crops.NUM_UNIFORMS + 1
        )
        pixels = self.crop.crop(images, draws, self.crop.scale, self.image_size)
        index = torch.from_numpy(positions)
        return EvaluationBatch(
            normalise(pixels / 255, self.mean, self.std), self.images.labels[index], index
        )


class LabelledDataModule(L.LightningDataModule):
    """Images with labels, in three splits: train, a hold-out part of it, and test.

    The test split is the source's evaluation split. Whatever a stage selects, it selects on the
    hold-out part, which it does not train on. Training batches are a function of (seed, epoch,
    step), as in pretraining; clean images come in order, each exactly once over all processes.

    Args:
        source: where the images come from; by default the one that the checkpoint was trained on.
        global_batch_size: images per optimizer step, over all devices.
        holdout_fraction: share of the training split that is held out, the same number of each
            class; 0 holds out nothing.
        crop: random crops for training: scale, ratio, p_flip, interpolation.
        image_size: side of the images in pixels; taken from the backbone.
        num_workers: worker processes per device.
        on_bad_image: what an unreadable image means: "fail" or "skip".
        mean: channel means for normalisation.
        std: channel standard deviations for normalisation.
        evaluation_batch_size: clean images per device and batch.
        evaluation_crop_fraction: share of the resized side that the central crop keeps.
        num_train: training images to use, the same number of each class; null takes all.
        num_test: test images to use, the same number of each class; null takes all.
        seed: seed of the data path; taken from `seed_everything`.
    """

    def __init__(
        self,
        source: Source,
        global_batch_size: int = 1024,
        holdout_fraction: float = 0.01,
        crop: CropViews | None = None,
        image_size: int = 224,
        num_workers: int = 8,
        on_bad_image: OnBadImage = "fail",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        evaluation_batch_size: int = 256,
        evaluation_crop_fraction: float = 224 / 256,
        num_train: int | None = None,
        num_test: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= holdout_fraction < 1:
            raise ValueError(
                f"holdout_fraction {holdout_fraction} is outside [0, 1); 0.01 is the usual one"
            )
        self.source = source
        self.global_batch_size = global_batch_size
        self.holdout_fraction = holdout_fraction
        self.crop = crop or CropViews()
        self.image_size = image_size
        self.num_workers = num_workers
        self.on_bad_image: OnBadImage = on_bad_image
        self.mean = mean
        self.std = std
        self.evaluation_batch_size = evaluation_batch_size
        self.evaluation_crop_fraction = evaluation_crop_fraction
        self.num_train = num_train
        self.num_test = num_test
        self.seed = seed
        self._splits: dict[Split, ImageSet] = {}
        self._marks: tuple[str, ...] = ()

    def prepare_data(self) -> None:
        """Fetches what the source lacks, in one process per node."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Opens the source and divides its training split, once.

        Raises:
            ValueError: the source has no evaluation split, or images without labels.
        """
        if self._splits:
            return
        whole, test = open_source(self.source)
        if test is None:
            raise ValueError(
                f"{type(self.source).__name__} has no evaluation split to test on; add one "
                "(a folder `val` beside `train`)"
            )
        for images in (whole, test):
            if len(images) == 0 or int(images.labels.min()) < 0:
                raise ValueError(
                    "this stage needs labels, but images of the source have none; put them into "
                    "one folder per class"
                )
        train = _subset(whole, self.num_train, 0)
        held_out = balanced_subset(
            train.labels, round(self.holdout_fraction * len(train)), generator(0, Stream.SUBSET, 1)
        )
        rest = np.setdiff1d(np.arange(len(train)), held_out)
        self._splits = {
            "train": Part(train, rest),
            "holdout": Part(train, held_out),
            "test": _subset(test, self.num_test, 2),
        }
        self._marks = released.held_out_reasons(test)
        if not self.source.is_released:
            self._marks += ("measured on a folder of one's own, which is no released set",)
        if self.dataset_name == IMAGENET:
            found = {"the evaluation split": len(test)}
            self._marks += released.count_reasons(found, released.IMAGENET_VAL)

    def images(self, split: Split) -> ImageSet:
        """One split; available after `setup`."""
        assert self._splits, "setup() has not run"
        return self._splits[split]

    @property
    def num_classes(self) -> int:
        """Number of classes of the training split."""
        return self.images("train").num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their ids."""
        return self.images("train").class_names

    @property
    def dataset_name(self) -> str:
        """What results call the data set: "imagenet1k" for ImageNet's classes, else the source."""
        is_imagenet = self.class_names == released.imagenet_synsets()
        return IMAGENET if is_imagenet else self.source.dataset_name

    def is_whole(self) -> bool:
        """Whether nothing was left out of the source: its numbers may be compared."""
        return self.num_train is None and self.num_test is None

    def reasons(self) -> tuple[str, ...]:
        """Why numbers on the test images may not be compared with published ones; after `setup`."""
        return self._marks if self.is_whole() else (*self._marks, PART)

    def plan(self) -> Plan:
        """Which training images a step takes on this rank."""
        trainer = self.trainer
        world_size = trainer.world_size if trainer else 1
        accumulate = trainer.accumulate_grad_batches if trainer else 1
        per_device(self.global_batch_size, world_size, accumulate)
        return Plan(
            len(self.images("train")),
            self.global_batch_size // accumulate,
            0,
            self.seed,
            trainer.global_rank if trainer else 0,
            world_size,
            accumulate,
        )

    def train_dataset(self) -> Dataset:
        """The data set that maps a `BatchKey` to a training batch of this rank."""
        return LabelledCrops(
            self.images("train"),
            self.plan(),
            self.crop,
            self.image_size,
            self.mean,
            self.std,
            self.on_bad_image,
        )

    def train_dataloader(self) -> LazyLoader:
        """Loads the steps that are left, counted by the trainer."""
        return self.key_loader(self.train_dataset(), self.num_workers)

    def key_loader(self, dataset: Dataset, num_workers: int) -> LazyLoader:
        """Loads a data set that maps the keys of `plan` to batches."""
        steps = self.plan().steps_per_epoch
        return step_loader(dataset, steps, self._position, num_workers, torch.cuda.is_available())

    def _position(self) -> BatchKey:
        if self.trainer is None:
            return BatchKey(0, 0)
        steps = int(min(self.trainer.fit_loop.max_batches, self.plan().steps_per_epoch))
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return BatchKey(*divmod(progress.processed, steps))

    def clean_loader(self, split: Split, num_images: int | None = None) -> DataLoader:
        """Loads the clean images of a split, this rank's share, in order.

        Args:
            split: which images.
            num_images: how many of them, the same number of each class; None takes all.
        """
        images = self.images(split)
        size = len(images) if num_images is None else num_images
        dataset = EvaluationBatches(
            images,
            balanced_subset(images.labels, size, generator(0, Stream.SUBSET, 3)),
            self.evaluation_batch_size,
            self.image_size,
            self.evaluation_crop_fraction,
            self.mean,
            self.std,
            self.trainer.global_rank if self.trainer else 0,
            self.trainer.world_size if self.trainer else 1,
            self.on_bad_image,
        )
        return evaluation_loader(dataset, self.num_workers, torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Loads the hold-out images; nothing where there are none."""
        return self.clean_loader("holdout") if len(self.images("holdout")) else []

    def test_dataloader(self) -> DataLoader:
        """Loads the test images."""
        return self.clean_loader("test")

    def describe(self) -> dict[str, Any]:
        """How clean images are prepared, in plain values for a record and for a cache's key."""
        return {
            "image_size": self.image_size,
            "resize": round(self.image_size / self.evaluation_crop_fraction),
            "interpolation": "bicubic",
            "mean": list(self.mean),
            "std": list(self.std),
        }


def _subset(images: ImageSet, size: int | None, counter: int) -> ImageSet:
    if size is None:
        return images
    chosen = balanced_subset(images.labels, size, generator(0, Stream.SUBSET, counter))
    return Part(images, chosen)
