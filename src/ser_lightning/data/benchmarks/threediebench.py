"""3DIEBench in splits of whole objects, one random view of each an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.datasets import LabelledCrops, balanced_subset
from ser_lightning.data.labelled import LabelledDataModule, check_source, subset
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.reading import Reader
from ser_lightning.randomness import Stream, generator, uniforms
from ser_lightning.sources.base import Part, Source
from ser_lightning.sources.opening import open_source
from ser_lightning.sources.released import BENCH3D_VAL, count_reasons
from ser_lightning.sources.threediebench import NUM_VIEWS, ObjectImages, ThreeDIEBench


def drawn_views(seed: int, epoch: int, objects: np.ndarray) -> np.ndarray:
    """Which of its views shows each of (N,) objects, as (N,) places among all views of all."""
    draws = uniforms(seed, Stream.AUGMENT, epoch, objects, 1, 1)[:, 0]  # crops have view 0
    return objects * NUM_VIEWS + (draws * NUM_VIEWS).astype(np.int64)


class RandomViews(Part):
    """One random view of every object, the same for every seed."""

    def __init__(self, images: ObjectImages) -> None:
        objects = np.arange(len(images.object_labels))
        super().__init__(images, drawn_views(0, 0, objects))


class ViewReader(Reader):
    """Reads views, by places among all views; where one is bad, another one of its object."""

    @override
    def others(self, position: int, seed: int, epoch: int) -> Iterator[int]:
        views = generator(seed, Stream.REPLACEMENT, epoch, position).permutation(NUM_VIEWS)
        yield from (position - position % NUM_VIEWS + views).tolist()
        yield from super().others(position, seed, epoch)  # where none of the object can be read


@dataclass(frozen=True)
class _ViewCrops(LabelledCrops):
    """Makes this rank's crops of the epoch's views; the reader is of all views."""

    @override
    def shown(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        return drawn_views(self.plan.seed, epoch, indices)

    @override
    def __call__(self, key: BatchKey) -> EvaluationBatch:
        batch = super().__call__(key)
        objects, _ = self.plan.indices(key)
        bad = [view for view in sorted(self.reader.bad) if view // NUM_VIEWS in objects]
        unreadable = torch.tensor(bad, dtype=torch.int64)
        return batch._replace(indices=batch.indices // NUM_VIEWS, unreadable=unreadable)


class ThreeDIEBenchDataModule(LabelledDataModule):
    """3DIEBench in three splits of whole objects: train, a hold-out part of it, and test.

    An epoch of training shows one random view of each object, the other two splits all views.
    Where a view cannot be read and bad images are skipped, another one of its object is shown.
    Clean images of the training split are one view of each object, the same for every seed.
    Differs: SIE draws a random view of each object for validation too; here the result does not
    depend on a draw.

    Args:
        source: the lists of objects.
        options: as `LabelledDataModule`; `num_train` counts objects, `num_test` images.
    """

    def __init__(self, source: Source, **options: Any) -> None:
        super().__init__(source, **options)
        check_source(source, ThreeDIEBench, "views of objects")

    @override
    def setup(self, stage: str) -> None:
        if self._splits:
            return
        train, test = open_source(self.source)
        assert isinstance(train, ObjectImages)
        assert test is not None
        train = train.objects(balanced_subset(train.object_labels, self.num_train, 0))
        num_objects = len(train.object_labels)
        num_held_out = round(self.holdout_fraction * num_objects)
        held_out = balanced_subset(train.object_labels, num_held_out, 1)
        rest = np.setdiff1d(np.arange(num_objects), held_out)
        self._splits = {
            "train": RandomViews(train.objects(rest)),
            "holdout": train.objects(held_out),
            "test": subset(test, self.num_test, 2),
        }
        self._marks = count_reasons({"the test split": len(test)}, BENCH3D_VAL)

    @override
    def training_batches(self, plan: Plan) -> _ViewCrops:
        views = self.train_images
        assert isinstance(views, RandomViews)
        reader = ViewReader(views.images, self.on_bad_image, self.max_bad_share)
        return _ViewCrops(reader, plan, self.crop, self.clean)
