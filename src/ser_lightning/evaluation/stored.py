"""Features that are kept on disk while a stage trains on them, and the steps of that training."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import Dataset

from ser_lightning.data import BatchKey
from ser_lightning.data.loaders import BatchLoader, LazyLoader, step_loader
from ser_lightning.data.plan import Plan, per_device
from ser_lightning.evaluation.features import Extractor, Features, write_features


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


def step_size(trainer: L.Trainer, num_rows: int, batch_size: int) -> int:
    """Rows per optimizer step, a multiple of its parts: fewer than asked where there are no more.

    Raises:
        ValueError: it does not divide by devices and accumulation steps.
    """
    parts = trainer.world_size * trainer.accumulate_grad_batches
    size = min(batch_size, num_rows // parts * parts)
    per_device(size, trainer.world_size, trainer.accumulate_grad_batches)
    return size


def step_plan(trainer: L.Trainer, num_rows: int, batch_size: int, seed: int) -> Plan:
    """Which rows a step takes, of a size as `step_size` says."""
    accumulate = trainer.accumulate_grad_batches
    size = step_size(trainer, num_rows, batch_size)
    rank, world_size = trainer.global_rank, trainer.world_size
    return Plan(num_rows, size // accumulate, 0, seed, rank, world_size, accumulate)


def rows_loader(rows: Any, trainer: L.Trainer) -> LazyLoader:
    """Loads a data set of steps, in the training process, from the first step of an epoch."""
    assert isinstance(rows, Dataset)
    return step_loader(rows, len(rows), lambda: BatchKey(trainer.current_epoch, 0), 0)  # type: ignore[arg-type]
