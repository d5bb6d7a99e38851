"""Image sets to measure a trained classifier on: corrupted, perturbed and from other sources."""

from ser_lightning.data.benchmarks.conditions import BenchmarkDataModule, Condition, ConditionBatch
from ser_lightning.data.benchmarks.corrupted import CorruptedDataModule
from ser_lightning.data.benchmarks.perturbed import PerturbedDataModule
from ser_lightning.data.benchmarks.shifted import ShiftedDataModule

__all__ = [
    "BenchmarkDataModule",
    "Condition",
    "ConditionBatch",
    "CorruptedDataModule",
    "PerturbedDataModule",
    "ShiftedDataModule",
]
