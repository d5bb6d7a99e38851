"""Features that are kept on disk while a stage trains on them, and that training."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from ser_lightning.backbones import SplitViT
from ser_lightning.data.loaders import BatchLoader, step_loader
from ser_lightning.data.plan import BatchKey, Plan, per_device
from ser_lightning.evaluation.features import Extractor, Features, TrainingRows, write_features
from ser_lightning.evaluation.probe import Heads, Probe, fit_probe
from ser_lightning.evaluation.stage import Stage, check_finite
from ser_lightning.evaluation.view_pairs import TrainingPairs
from ser_lightning.numbers import Positive, PositiveInt, checked


@contextmanager
def stored_features(
    extractor: Extractor, trainer: L.Trainer, folder: Path
) -> Iterator[Callable[[BatchLoader, int], Features]]:
    """Computes features into files below a folder, which are removed at the end of a `with`.

    Yields:
        What gives the features of a loader's images, over all ranks; takes the loader and the
        number of images over all ranks. Their labels are of no use: -1.
    """
    stores: list[Path] = []

    def features_of(loader: BatchLoader, num_images: int) -> Features:
        path, rows = write_features(extractor, loader, num_images, folder / "features", trainer)
        stores.append(path.parent)
        return Features(np.load(path, mmap_mode="r"), torch.full((len(rows),), -1), rows)

    try:
        yield features_of
    finally:
        for store in stores if trainer.is_global_zero else ():
            shutil.rmtree(store, ignore_errors=True)


@checked
class StoredProbeStage(Stage):
    """Trains heads on features that are computed once; those after the last epoch count.

    Args:
        checkpoint: file of a pretraining run.
        batch_size: images, or pairs of views, per step, over all devices; all of them where there
            are no more. `data.global_batch_size` has no part in it.
        learning_rate: learning rate of Adam.
        hidden: channels of the two hidden layers.
        baseline: whether to measure a randomly initialised backbone as well.
        stage: further arguments of every stage.
    """

    trains = True
    needs_labels = False

    def __init__(
        self,
        checkpoint: str,
        batch_size: PositiveInt = 256,
        learning_rate: Positive = 1e-3,
        hidden: PositiveInt = 1024,
        baseline: bool = True,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.hidden = hidden
        self.baseline = baseline

    def backbones(self) -> list[SplitViT]:
        """The backbone, and what it is compared with."""
        return [self.backbone, *([self.random_backbone()] if self.baseline else [])]

    def step_plan(self, trainer: L.Trainer, num_rows: int) -> Plan:
        """Which rows a step takes: whole parts of it, fewer than asked where there are no more.

        Raises:
            ValueError: the size does not divide by devices and accumulation steps, or there are
                fewer rows than these.
        """
        accumulate, world_size = trainer.accumulate_grad_batches, trainer.world_size
        parts = world_size * accumulate
        size = min(self.batch_size, num_rows // parts * parts)
        if not size:
            raise ValueError(
                f"{num_rows} images for {world_size} devices x {accumulate} accumulation steps, of "
                "which each needs one; use more images (data.num_train), or fewer devices or "
                "trainer.accumulate_grad_batches"
            )
        per_device(size, world_size, accumulate)
        rank = trainer.global_rank
        return Plan(num_rows, size // accumulate, 0, self.seed, rank, world_size, accumulate)

    def fit_heads(
        self, trainer: L.Trainer, heads: Heads, rows: TrainingRows | TrainingPairs, what: str
    ) -> tuple[Probe, list[str]]:
        """Trains in this process, and returns the probe and why its numbers are unofficial.

        Raises:
            ValueError: the training diverged.
        """
        probe = Probe(heads)
        loader = step_loader(rows, len(rows), lambda: BatchKey(trainer.current_epoch, 0), 0)
        fit_probe(trainer, probe, loader, None)
        check_finite(heads, "weights of the heads", "lower model.learning_rate")
        reasons = self.shortened(trainer)
        size = rows.plan.batch_size * rows.plan.accumulate
        if size < self.batch_size:
            reasons.append(f"{size} {what} a step for want of {self.batch_size}")
        return probe.to(trainer.strategy.root_device), reasons
