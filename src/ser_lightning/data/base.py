"""What the data modules have in common: a source, a plan of steps, and clean images in order."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import Dataset
from typing_extensions import override

from ser_lightning.data.clean import Clean
from ser_lightning.data.datasets import Batches, CleanImages, balanced_subset
from ser_lightning.data.loaders import BatchLoader, LazyLoader, SlotKeys, step_loader
from ser_lightning.data.pipelines import CropViews
from ser_lightning.data.plan import BatchKey, Plan, per_device
from ser_lightning.data.reading import MAX_BAD_SHARE, OnBadImage, Reader
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD
from ser_lightning.numbers import (
    CropFraction,
    NonNegativeInt,
    PositiveInt,
    Probability,
    Ratio,
    checked,
)
from ser_lightning.sources.base import ImageSet, Source


@checked
class ImageDataModule(L.LightningDataModule):
    """Training batches as functions of (seed, epoch, step), and clean images in order.

    Args:
        source: where the images come from.
        global_batch_size: images per optimizer step, over all devices and accumulation steps.
        crop: the crop pipeline.
        image_size: side of the images in pixels; taken from the backbone.
        num_workers: worker processes per device that read and crop images.
        on_bad_image: what an unreadable image means: "fail" stops and names the file, "skip" warns
            with its name, trains on an image drawn from all others in its place, and leaves it out
            of an evaluation, whose result says so.
        max_bad_share: share of unreadable images that stops a run all the same.
        mean: channel means for normalisation, of pixels from 0 to 1.
        std: channel standard deviations for normalisation, of pixels from 0 to 1.
        evaluation_batch_size: clean images per device and batch.
        evaluation_crop_fraction: share of the resized side that the central crop keeps in
            evaluation; 0.875 resizes to 256 and crops 224. Use 1 for small, centred images.
        seed: seed of the data path; taken from `seed_everything`.

    Attributes:
        unreadable: by name of a split, which of its images this process could not read.
    """

    def __init__(
        self,
        source: Source,
        global_batch_size: PositiveInt = 2048,
        crop: CropViews | None = None,
        image_size: PositiveInt = 224,
        num_workers: NonNegativeInt = 8,
        on_bad_image: OnBadImage = "fail",
        max_bad_share: Probability = MAX_BAD_SHARE,
        mean: tuple[Probability, Probability, Probability] = IMAGENET_MEAN,
        std: tuple[Ratio, Ratio, Ratio] = IMAGENET_STD,
        evaluation_batch_size: PositiveInt = 256,
        evaluation_crop_fraction: CropFraction = 224 / 256,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.global_batch_size = global_batch_size
        self.crop = crop or CropViews()
        self.image_size = image_size
        self.num_workers = num_workers
        self.on_bad_image: OnBadImage = on_bad_image
        self.max_bad_share = max_bad_share
        self.mean = mean
        self.std = std
        self.evaluation_batch_size = evaluation_batch_size
        self.evaluation_crop_fraction = evaluation_crop_fraction
        self.seed = seed
        self.unreadable: dict[str, set[int]] = {}

    @property
    @abstractmethod
    def train_images(self) -> ImageSet:
        """The images to train on; available after `setup`."""

    @abstractmethod
    def training_batches(self, plan: Plan) -> Callable[[BatchKey], Any]:
        """What makes the batch of a step on a rank."""

    @override
    def prepare_data(self) -> None:
        self.source.prepare()

    @override
    def teardown(self, stage: str) -> None:
        for name, images in self.unreadable.items():
            if images:
                of = f" on rank {self.trainer.global_rank}" if self.trainer else ""
                print(
                    f"data: {len(images)} {name} images could not be read{of} and were skipped",
                    file=sys.stderr,
                )

    def num_invertible(self, world_size: int, accumulate: int) -> int:
        """How many images of a step over all ranks are invertible."""
        return 0

    def plan(self, trainer: L.Trainer | None = None) -> Plan:
        """Which training images a step takes on this rank; by default of the attached trainer.

        Raises:
            ValueError: the batch does not divide by devices, or is larger than the data set.
        """
        trainer = trainer or self.trainer
        rank, world_size, accumulate = 0, 1, 1
        if trainer is not None:
            rank, world_size = trainer.global_rank, trainer.world_size
            accumulate = trainer.accumulate_grad_batches
        per_device(self.global_batch_size, world_size, accumulate)
        return Plan(
            len(self.train_images),
            self.global_batch_size // accumulate,
            self.num_invertible(world_size, accumulate),
            self.seed,
            rank,
            world_size,
            accumulate,
        )

    def train_dataset(self, trainer: L.Trainer | None = None) -> Batches:
        """The data set that maps a `BatchKey` to this rank's batch; see `plan`."""
        plan = self.plan(trainer)
        return Batches(self.training_batches(plan), plan.num_images)

    @override
    def train_dataloader(self) -> LazyLoader:
        return self.train_loader()

    def train_loader(self, trainer: L.Trainer | None = None) -> LazyLoader:
        """Loads the steps that are left, counted by the trainer; see `plan`."""
        return self.key_loader(self.train_dataset(trainer), self.num_workers, trainer)

    def key_loader(
        self, dataset: Dataset, num_workers: int, trainer: L.Trainer | None = None
    ) -> LazyLoader:
        """Loads a data set that maps the keys of `plan` to batches."""
        trainer = trainer or self.trainer
        steps = self.plan(trainer).steps_per_epoch
        position, note = partial(self._position, trainer), partial(self.note_unreadable, "training")
        return step_loader(dataset, steps, position, num_workers, note)

    def _steps_per_epoch(self, trainer: L.Trainer | None) -> int:
        """Batches per epoch, as limited by the trainer."""
        steps = self.plan(trainer).steps_per_epoch
        return int(min(trainer.fit_loop.max_batches, steps)) if trainer else steps

    def _position(self, trainer: L.Trainer | None) -> BatchKey:
        """The next step to train, from the trainer's counters: what makes a resume exact."""
        if trainer is None:
            return BatchKey(0, 0)
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        return BatchKey(*divmod(progress.processed, self._steps_per_epoch(trainer)))

    def note_unreadable(self, name: str, positions: Iterable[int]) -> None:
        """Keeps in mind that images of a split could not be read."""
        self.unreadable.setdefault(name, set()).update(positions)

    @property
    def clean(self) -> Clean:
        """How clean images are prepared."""
        return Clean(self.image_size, self.evaluation_crop_fraction, self.mean, self.std)

    def reader(self, images: ImageSet) -> Reader:
        """What reads the images of a split."""
        return Reader(images, self.on_bad_image, self.max_bad_share)

    def in_order(
        self, make: Callable[[np.ndarray], Any], name: str, *parts: tuple[int, int]
    ) -> BatchLoader:
        """Loads this rank's share of a set in order, each image exactly once over all ranks.

        Args:
            make: makes the batch of some slots.
            name: name of the set, for what is said about unreadable images.
            parts: number of images, and images per batch, of each part; no batch has images of two.
        """
        dataset = Batches(make, sum(num_images for num_images, _ in parts))
        positions = getattr(make, "positions", None)

        def note(slots: list[int]) -> None:
            self.note_unreadable(name, slots if positions is None else positions[slots].tolist())

        return BatchLoader(dataset, SlotKeys(dataset, *parts), self.num_workers, note)

    def clean_images(
        self, images: ImageSet, size: int | None, counter: int, name: str
    ) -> BatchLoader:
        """Loads clean images of a split in order, this rank's share.

        `size` images, the same number of each class, or all for None; `counter` numbers the subset
        that is drawn, the same one for every seed.
        """
        chosen = balanced_subset(images.labels, size, counter)
        make = CleanImages(self.reader(images), self.clean, chosen)
        return self.in_order(make, name, (len(chosen), self.evaluation_batch_size))
