"""3DIEBench: objects rendered from 50 sides each, split by object.

Source: Garrido et al. 2023 (SIE), whose repository has the official lists of objects.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import override

from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.datasets import LabelledCrops, balanced_subset
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.sources.base import Part, Source
from ser_lightning.data.sources.released import BENCH3D_VAL, count_reasons
from ser_lightning.data.sources.threediebench import RandomViews, ThreeDIEBench
from ser_lightning.randomness import Stream, generator


@dataclass(frozen=True)
class _ViewCrops(LabelledCrops):
    """Makes this rank's crops of the epoch's views."""

    def __call__(self, key: BatchKey) -> EvaluationBatch:
        images = self.reader.images
        assert isinstance(images, RandomViews)
        self.reader.images = images.redrawn(self.plan.seed, key.epoch)
        return super().__call__(key)


class ThreeDIEBenchDataModule(LabelledDataModule):
    """3DIEBench in three splits of whole objects: train, a hold-out part of it, and test.

    An epoch of training shows one random view of each object, the other two splits all views.
    Clean images of the training split are one view of each object, the same for every seed.
    Differs: SIE draws a random view of each object for validation too; here the result does not
    depend on a draw.

    Args:
        source: the lists of objects.
        options: as `LabelledDataModule`; `num_train` counts objects, `num_test` images.
    """

    def __init__(self, source: Source, **options: Any) -> None:
        super().__init__(source, **options)
        if not isinstance(source, ThreeDIEBench):
            raise ValueError(
                f"{type(source).__name__} has no views of objects; use --data.source ThreeDIEBench "
                "--data.source.root FOLDER"
            )
        self.objects = source

    @override
    def setup(self, stage: str) -> None:
        if self._splits:
            return
        train, test = self.objects.train(), self.objects.evaluation()
        if self.num_train is not None:
            train = train.objects(
                balanced_subset(train.object_labels, self.num_train, generator(0, Stream.SUBSET, 0))
            )
        num_objects = len(train.object_labels)
        held_out = balanced_subset(
            train.object_labels,
            round(self.holdout_fraction * num_objects),
            generator(0, Stream.SUBSET, 1),
        )
        rest = np.setdiff1d(np.arange(num_objects), held_out)
        self._splits = {
            "train": RandomViews(train.objects(rest)),
            "holdout": train.objects(held_out),
            "test": test,
        }
        self._marks = count_reasons({"the test split": len(test)}, BENCH3D_VAL)
        if self.num_test is not None:
            chosen = balanced_subset(test.labels, self.num_test, generator(0, Stream.SUBSET, 2))
            self._splits["test"] = Part(test, chosen)

    @property
    @override
    def dataset_name(self) -> str:
        return "3diebench"

    @override
    def training_batches(self, plan: Plan) -> _ViewCrops:
        return _ViewCrops(self.reader(self.train_images), plan, self.crop, self.clean)
