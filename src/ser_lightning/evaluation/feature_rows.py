"""Batches of frozen features, in the place of images: to train heads on, and to measure them."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ser_lightning.data.partition import BatchKey, Plan
from ser_lightning.evaluation.features import Features


class FeatureBatch(NamedTuple):
    """Frozen features in the place of images.

    Attributes:
        features: (B, D) [CLS] tokens of some blocks, side by side.
        label: (B,) class labels.
    """

    features: Tensor
    label: Tensor


class TrainingRows(Dataset):
    """Maps a `BatchKey` to this rank's rows of the features.

    Args:
        features: of the training split.
        num_layers: how many of the last blocks are read.
        plan: which rows a step takes.
    """

    def __init__(self, features: Features, num_layers: int, plan: Plan) -> None:
        self.features = features
        self.num_layers = num_layers
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, key: BatchKey) -> FeatureBatch:
        return _rows(self.features, self.num_layers, self.plan.indices(key)[0])


class CleanRows(Dataset):
    """Rows of a split in order: item i is this rank's i-th batch, each row exactly once.

    Args:
        features: of the split.
        num_layers: how many of the last blocks are read.
        batch_size: rows per batch.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        features: Features,
        num_layers: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.features = features
        self.num_layers = num_layers
        self.batch_size = batch_size
        self.slots = np.arange(rank, len(features.label), world_size)

    def __len__(self) -> int:
        return math.ceil(len(self.slots) / self.batch_size)

    def __getitem__(self, batch: int) -> FeatureBatch:
        slots = self.slots[batch * self.batch_size : (batch + 1) * self.batch_size]
        return _rows(self.features, self.num_layers, slots)


def _rows(features: Features, num_layers: int, index: np.ndarray) -> FeatureBatch:
    rows = torch.from_numpy(features.cls[index][:, -num_layers:])
    return FeatureBatch(rows.flatten(1), features.label[torch.from_numpy(index)])
