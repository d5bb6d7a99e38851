"""Data sets whose items are whole batches, as pure functions of their key."""

import math
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.crops import central_crop
from ser_lightning.data.pipelines import CropViews, ExtraViews, InvertibleViews
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, HostBatch, HostView, normalise
from ser_lightning.data.sources.base import ImageSet, UnreadableImage


class _WholeKeys(DistributedSampler):
    """Base of the samplers here. A rank's keys are already its own.

    Being a DistributedSampler keeps Lightning from wrapping it in another one that would split
    the keys over ranks once more.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)


class StepKeys(_WholeKeys):
    """Yields the keys of the steps left in the current epoch.

    Args:
        dataset: the data set that the keys are for.
        steps_per_epoch: number of steps in an epoch.
        position: returns (epoch, step) of the next step to train; asked when iteration begins.
    """

    def __init__(
        self, dataset: Dataset, steps_per_epoch: int, position: Callable[[], BatchKey]
    ) -> None:
        super().__init__(dataset)
        self.steps_per_epoch = steps_per_epoch
        self.position = position

    def __iter__(self) -> Iterator[BatchKey]:
        epoch, first = self.position()
        return (BatchKey(epoch, step) for step in range(first, self.steps_per_epoch))

    def __len__(self) -> int:
        return self.steps_per_epoch


class LazyLoader(DataLoader):
    """A DataLoader whose workers start at the first `next()`, not at `iter()`.

    Lightning calls `iter()` before it has restored its counters; a generator waits until the
    first batch is wanted, and only then does the sampler ask for the position.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position follows from the trainer's counters."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing: see `state_dict`."""


def step_loader(
    dataset: Dataset,
    steps_per_epoch: int,
    position: Callable[[], BatchKey],
    num_workers: int,
    pin_memory: bool,
) -> LazyLoader:
    """The loader of training batches.

    Args:
        dataset: returns a finished batch for a `BatchKey`.
        steps_per_epoch: number of steps in an epoch.
        position: returns the key of the next step to train.
        num_workers: worker processes; 0 loads in the training process.
        pin_memory: whether to hand over page-locked memory, for a GPU.
    """
    return LazyLoader(
        dataset,
        batch_size=None,
        sampler=StepKeys(dataset, steps_per_epoch, position),
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_signals,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


def evaluation_loader(dataset: Dataset, num_workers: int, pin_memory: bool) -> DataLoader:
    """The loader of evaluation batches, in order, each exactly once and without padding."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=_WholeKeys(dataset),
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_signals,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


def _as_it_is(batch: Any) -> Any:
    """Keeps the records' numpy arrays, which torch's default would turn into tensors."""
    return batch


def _ignore_signals(worker: int) -> None:
    """Leaves signals to the training process, which needs its workers until it has saved.

    Cluster managers and terminals signal whole groups of processes. A worker ends with its parent.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


OnBadImage = Literal["skip", "fail"]


class ImageReader:
    """Reads images by index and decides what an unreadable one means.

    Args:
        images: one split of a source.
        on_bad_image: "fail" raises; "skip" takes the next readable image of the data set in its
            place, and warns once per file with its name.

    Attributes:
        num_unreadable: replacements so far.
    """

    def __init__(self, images: ImageSet, on_bad_image: OnBadImage = "fail") -> None:
        self.images = images
        self.on_bad_image = on_bad_image
        self.num_unreadable = 0

    def read(self, index: int) -> tuple[Tensor, int]:
        """Returns an image, uint8 (3, H, W), and the position it came from.

        Raises:
            UnreadableImage: if it cannot be read and `on_bad_image` is "fail", or if no image of
                the data set can be read.
        """
        for offset in range(len(self.images)):
            position = (index + offset) % len(self.images)
            try:
                return self.images.read(position), position
            except UnreadableImage as error:
                if self.on_bad_image == "fail":
                    raise
                self.num_unreadable += 1
                # Python shows a warning of the same text once per process, so once per file.
                warnings.warn(f"{error}; the next readable image takes its place", stacklevel=2)
        raise UnreadableImage("no image of the data set can be read")

    def read_all(self, indices: np.ndarray) -> tuple[list[Tensor], np.ndarray]:
        """Reads several images; returns them with the (B,) positions they came from."""
        pairs = [self.read(int(index)) for index in indices]
        positions = np.array([position for _, position in pairs], dtype=np.int64)
        return [image for image, _ in pairs], positions


class TrainingBatches(Dataset):
    """Maps a `BatchKey` to this rank's host batch.

    Args:
        images: the training split.
        plan: which images a step takes.
        crop: the crop pipeline; its local crops hold for the invertible pipeline too.
        invertible: the invertible pipeline; None without a partition.
        image_size: side of an upright view in pixels.
        patch_size: side of a token in pixels.
        on_bad_image: see `ImageReader`.
        extra: further views of the crop sub-batch's images; None for none.
        paired: images 2i and 2i + 1 of the crop sub-batch share the draws of image 2i, in every
            view. A box is drawn for the even image and carried to the other one, so that it is the
            same in shares of their sides.
    """

    def __init__(
        self,
        images: ImageSet,
        plan: Plan,
        crop: CropViews,
        invertible: InvertibleViews | None,
        image_size: int,
        patch_size: int,
        on_bad_image: OnBadImage = "fail",
        extra: ExtraViews | None = None,
        paired: bool = False,
    ) -> None:
        self.images = images
        self.plan = plan
        self.crop = crop
        self.invertible = invertible
        self.image_size = image_size
        self.patch_size = patch_size
        self.on_bad_image = on_bad_image
        self.extra = extra
        self.paired = paired

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, key: BatchKey) -> HostBatch:
        reader = ImageReader(self.images, self.on_bad_image)
        crop_indices, invertible_indices = self.plan.indices(key)
        crop, crop_positions = reader.read_all(crop_indices)
        invertible, invertible_positions = reader.read_all(invertible_indices)
        drawn_as = np.repeat(crop_indices[::2], 2) if self.paired else crop_indices
        seed, size = self.plan.seed, self.image_size
        grid = (size // self.patch_size, size // self.patch_size)
        index = torch.from_numpy(np.concatenate([crop_positions, invertible_positions]))
        return HostBatch(
            self.crop.make(crop, drawn_as, key, seed, size, self.paired) if crop else (),
            self.invertible.make(
                invertible,
                invertible_indices,
                key,
                seed,
                size,
                grid,
                self.crop.local,
                self.crop.recipes,
            )
            if self.invertible is not None  # without a partition there are no invertible images
            else (),
            index,
            self.images.labels[index],
            torch.tensor(reader.num_unreadable),
            self.extra.make(crop, drawn_as, key, seed, size, self.paired)
            if self.extra and crop
            else (),
        )


class EvaluationBatches(Dataset):
    """Clean images of one rank, in order: item i is its i-th batch, each image exactly once.

    Args:
        images: the split to read.
        indices: positions to evaluate, over all ranks; None takes all.
        batch_size: images per batch.
        image_size: side of the images in pixels.
        crop_fraction: share of the resized image's side that the central crop keeps. ImageNet's
            custom is 224 of 256; 1 keeps the whole height or width.
        mean: (3,) channel means.
        std: (3,) channel standard deviations.
        rank: this process.
        world_size: number of processes.
        on_bad_image: see `ImageReader`.

    Attributes:
        num_images: images to evaluate over all ranks; the `indices` of a batch count them.
    """

    def __init__(
        self,
        images: ImageSet,
        indices: np.ndarray | None,
        batch_size: int,
        image_size: int,
        crop_fraction: float = 224 / 256,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        rank: int = 0,
        world_size: int = 1,
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        indices = np.arange(len(images)) if indices is None else indices
        self.images = images
        self.indices = indices
        self.num_images = len(indices)
        self.slots = np.arange(rank, len(indices), world_size)
        self.batch_size = batch_size
        self.image_size = image_size
        self.crop_fraction = crop_fraction
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.on_bad_image = on_bad_image

    def __len__(self) -> int:
        return math.ceil(len(self.slots) / self.batch_size)

    def __getitem__(self, batch: int) -> EvaluationBatch:
        slots = self.slots[batch * self.batch_size : (batch + 1) * self.batch_size]
        reader = ImageReader(self.images, self.on_bad_image)
        images, positions = reader.read_all(self.indices[slots])
        size, fraction = self.image_size, self.crop_fraction
        pixels = torch.stack([central_crop(image, size, fraction) for image in images])
        return EvaluationBatch(
            normalise(pixels / 255, self.mean, self.std),
            self.images.labels[torch.from_numpy(positions)],
            torch.from_numpy(slots),
        )


def balanced_subset(labels: Tensor, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a subset in which every class has (almost) the same number of images.

    Args:
        labels: (N,) class labels; equal labels where there are none.
        size: number of images wanted; all N when it is at least N.
        rng: the generator, so that the same subset can be drawn again.

    Returns:
        Sorted positions. Classes smaller than their share give all they have, and the others
        make up for it.
    """
    if size >= len(labels):
        return np.arange(len(labels))
    shuffled = rng.permutation(len(labels))
    ordered = labels.numpy()[shuffled]
    by_class = np.argsort(ordered, kind="stable")
    _, starts, counts = np.unique(ordered[by_class], return_index=True, return_counts=True)
    rank_in_class = np.arange(len(labels)) - np.repeat(starts, counts)
    chosen = by_class[np.argsort(rank_in_class, kind="stable")[:size]]
    return np.sort(shuffled[chosen])


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
                images,
                indices,
                key,
                self.seed,
                self.image_size,
                self.grid,
                colours=self.crop.recipes,
            )
        return HostBatch(
            tuple(crop),
            tuple(invertible),
            torch.from_numpy(slots),
            self.images.labels[torch.from_numpy(positions)],
            torch.tensor(reader.num_unreadable),
        )
