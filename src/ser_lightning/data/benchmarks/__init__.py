"""Image sets to measure a trained classifier on: corrupted, perturbed and from other sources."""

from ser_lightning.data.benchmarks.conditions import BenchmarkDataModule, Condition, ConditionBatch
from ser_lightning.data.benchmarks.imagenet_c import ImageNetCDataModule
from ser_lightning.data.benchmarks.imagenet_p import ImageNetPDataModule
from ser_lightning.data.benchmarks.shift import ShiftDataModule

__all__ = [
    "BenchmarkDataModule",
    "Condition",
    "ConditionBatch",
    "ImageNetCDataModule",
    "ImageNetPDataModule",
    "ShiftDataModule",
]
