"""What batches are made of: pure functions of a key, behind one generic data set.

Training batches are named by a `BatchKey`, evaluation batches by the slots of their images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ser_lightning.batch import EvaluationBatch, spaced_rows
from ser_lightning.data import crops
from ser_lightning.data.clean import Clean
from ser_lightning.data.draws import Canvas, Draws
from ser_lightning.data.pipelines import NO_EXTRA_VIEWS, CropViews, ExtraViews, InvertibleViews
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.reading import Handful, NothingReadError, Reader, made
from ser_lightning.data.render import HostBatch, HostView
from ser_lightning.randomness import Stream, generator

Key = TypeVar("Key")
Batch = TypeVar("Batch")


class LeftOut(NamedTuple):
    """The (B,) slots of a batch of which nothing could be read."""

    unreadable: Tensor


class Batches(Dataset, Generic[Key, Batch]):
    """Maps a key to the batch that `make` makes of it, and of nothing else.

    Its length is the number of images in all batches, over all ranks.
    """

    def __init__(self, make: Callable[[Key], Batch], num_images: int) -> None:
        self.make = make
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, key: Key) -> Batch | LeftOut:
        try:
            return self.make(key)
        except NothingReadError:
            if not isinstance(key, np.ndarray):
                raise
            return LeftOut(torch.from_numpy(key))


@dataclass(frozen=True)
class TrainingViews:
    """Makes this rank's host batch of a step.

    Local crops hold for both pipelines; extra views are of the crop sub-batch's images. If paired,
    images 2i and 2i + 1 of that sub-batch share the draws of image 2i, in every view: a box is
    drawn for the even image and carried to the other one.
    """

    reader: Reader
    plan: Plan
    crop: CropViews
    invertible: InvertibleViews | None
    canvas: Canvas
    extra: ExtraViews = NO_EXTRA_VIEWS
    paired: bool = False

    def __call__(self, key: BatchKey) -> HostBatch:
        """The batch of a step."""
        crop, canvas, pipeline = self.crop, self.canvas, self.invertible
        asked = self.plan.indices(key)
        indices, others = asked
        views: tuple[HostView, ...] = ()
        extra: tuple[HostView, ...] = ()
        pairs: tuple[HostView, ...] = ()
        if len(indices):
            needed = max(crop.needed_side(canvas.size), self.extra.needed_side(crop.ratio))
            (views, extra), indices = self._made(
                lambda images, draws: (
                    crop.make(images, draws, canvas),
                    self.extra.make(images, draws, canvas, crop),
                ),
                Draws(self.plan.seed, key, indices, self.paired, self._turned(len(indices))),
                # a box that is carried to an image of another shape may be smaller
                None if self.paired else needed,
            )
        if pipeline is not None:
            needed = pipeline.needed_side(canvas, crop)
            pairs, others = self._made(
                lambda images, draws: pipeline.make(images, draws, canvas, crop),
                Draws(self.plan.seed, key, others),
                needed,
            )
        wanted, found = np.concatenate(asked), np.concatenate([indices, others])
        unreadable, index = torch.from_numpy(wanted[found != wanted]), torch.from_numpy(found)
        return HostBatch(views, pairs, index, self.reader.images.labels[index], extra, unreadable)

    def _made(
        self,
        make: Callable[[list[Tensor], Draws], Any],
        draws: Draws,
        min_side: int | None,
    ) -> tuple[Any, np.ndarray]:
        """What is made of images and their draws, and where the images came from."""
        replace = draws.seed, draws.key.epoch
        views, _, found = made(
            self.reader.handfuls(draws.indices, replace, draws.paired, min_side),
            lambda handful: make(handful.images, draws.take(handful.rows)),
        )
        return views, found

    def _turned(self, num_images: int) -> np.ndarray | None:
        """(B,) flag, which images of the crop sub-batch are turned; None for none."""
        if self.crop.turned is None:
            return None
        turned = np.zeros(num_images, bool)
        turned[spaced_rows(num_images, self.crop.turned.ratio, self.plan.world_size).numpy()] = True
        return turned


@dataclass(frozen=True)
class LabelledCrops:
    """Makes this rank's random crops of a step, one per image, normalised, in their own colours."""

    reader: Reader
    plan: Plan
    crop: CropViews
    clean: Clean

    def __call__(self, key: BatchKey) -> EvaluationBatch:
        """The batch of a step."""
        indices, _ = self.plan.indices(key)
        numbers, _ = Draws(self.plan.seed, key, indices).view(0)
        needed = crops.needed_side(self.clean.size, self.crop.scale, self.crop.ratio)
        wanted = self.shown(key.epoch, indices)
        pixels, _, positions = made(
            self.reader.handfuls(wanted, (self.plan.seed, key.epoch), min_side=needed),
            lambda handful: self.crop.cut(handful.images, numbers[handful.rows], self.clean.size),
        )
        return training_batch(
            self.reader.images.labels, self.clean.normalise(pixels), wanted, positions
        )

    def shown(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """(B,) positions, for the reader, of what shows the plan's images in an epoch."""
        return indices


def training_batch(
    labels: Tensor, pixels: Tensor, indices: np.ndarray, positions: np.ndarray
) -> EvaluationBatch:
    """Puts normalised images (B, 3, H, W) and their labels together.

    `labels` are (N,) of the whole set, `indices` (B,) the positions that were asked for, and
    `positions` (B,) those that the images came from.
    """
    index = torch.from_numpy(positions)
    unreadable = torch.from_numpy(indices[positions != indices])
    return EvaluationBatch(pixels, labels[index], index, unreadable)


@dataclass(frozen=True)
class CleanImages:
    """Makes a batch of clean images; those that cannot be read are left out, or an error.

    `positions` says which image is in a slot; None if they are the same.
    """

    reader: Reader
    clean: Clean
    positions: np.ndarray | None = None

    def __call__(self, slots: np.ndarray) -> EvaluationBatch:
        """The images of some slots."""
        wanted = slots if self.positions is None else self.positions[slots]
        pixels, rows, positions = made(
            self.reader.handfuls(wanted, min_side=self.clean.needed_side),
            lambda handful: torch.stack([self.clean.cut(image) for image in handful.images]),
        )
        return EvaluationBatch(
            self.clean.normalise(pixels),
            self.reader.images.labels[torch.from_numpy(positions)],
            torch.from_numpy(slots[rows]),
            torch.from_numpy(np.delete(slots, rows)),
        )


@dataclass(frozen=True)
class AugmentedImages:
    """Makes a batch of images that each have views of both pipelines, to be rendered.

    Unlike in a training batch, both pipelines show the same images, without local crops. Views
    depend on the seed and on the image, not on its batch; all images share the grids and the
    parities of the turns of an invertible view.

    Raises:
        ValueError: the number of views, per image and pipeline, is odd or below 2.
    """

    reader: Reader
    positions: np.ndarray
    num_views: int
    crop: CropViews
    invertible: InvertibleViews
    canvas: Canvas
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_views < 2 or self.num_views % 2:
            raise ValueError(
                f"num_views {self.num_views} does not form pairs of views; use an even number, "
                f"such as {max(2, self.num_views + 1)}"
            )

    def __call__(self, slots: np.ndarray) -> HostBatch:
        """The views of some slots."""
        alone, pipeline, canvas = self.crop.without_local(), self.invertible, self.canvas

        def make(handful: Handful) -> tuple[tuple[HostView, ...], tuple[HostView, ...]]:
            crop: tuple[HostView, ...] = ()
            invertible: tuple[HostView, ...] = ()
            for pair in range(self.num_views // 2):  # each draws as an epoch of its own
                draws = Draws(self.seed, BatchKey(epoch=pair, step=0), handful.positions)
                crop += alone.make(handful.images, draws, canvas)
                invertible += pipeline.make(handful.images, draws, canvas, alone)
            return crop, invertible

        needed = max(alone.needed_side(canvas.size), pipeline.needed_side(canvas, alone))
        (crop, invertible), rows, positions = made(
            self.reader.handfuls(self.positions[slots], min_side=needed), make
        )
        return HostBatch(
            crop,
            invertible,
            torch.from_numpy(slots[rows]),
            self.reader.images.labels[torch.from_numpy(positions)],
            unreadable=torch.from_numpy(np.delete(slots, rows)),
        )


def balanced_subset(labels: Tensor, size: int | None, counter: int) -> np.ndarray:
    """Sorted positions of a subset in which every class has (almost) the same number of images.

    Classes smaller than their share give all they have, and the others make up for it; all images
    are taken when `size` is None or at least their number. Equal labels stand for none. `counter`
    numbers the subset, which is the same one for every seed.
    """
    if size is None or size >= len(labels):
        return np.arange(len(labels))
    shuffled = generator(0, Stream.SUBSET, counter).permutation(len(labels))
    ordered = labels.numpy()[shuffled]
    by_class = np.argsort(ordered, kind="stable")
    _, starts, counts = np.unique(ordered[by_class], return_index=True, return_counts=True)
    rank_in_class = np.arange(len(labels)) - np.repeat(starts, counts)
    chosen = by_class[np.argsort(rank_in_class, kind="stable")[:size]]
    return np.sort(shuffled[chosen])
