"""The data of stages that bring images of their own, a file for each by the stage's name.

Sets to measure a trained classifier on: corrupted, perturbed and from other sources; objects, in
boxes for detection and from all sides. Where their files lie is in `sources/` and in `layouts`.
"""

from ser_lightning.data.benchmarks.conditions import BenchmarkDataModule, Condition, ConditionBatch
from ser_lightning.data.benchmarks.imagenet_c import ImageNetCDataModule
from ser_lightning.data.benchmarks.imagenet_p import ImageNetPDataModule
from ser_lightning.data.benchmarks.shift import ShiftDataModule
from ser_lightning.data.benchmarks.turned import TurnedDataModule

__all__ = [
    "BenchmarkDataModule",
    "Condition",
    "ConditionBatch",
    "ImageNetCDataModule",
    "ImageNetPDataModule",
    "ShiftDataModule",
    "TurnedDataModule",
]
