"""Schedules and what optimizers are made of."""

from ser_lightning.optim.parameters import OptimizerFactory, clip_each_, decay_groups
from ser_lightning.optim.schedules import (
    Scaling,
    cosine,
    scaled_learning_rate,
    warmup_cosine,
)

__all__ = [
    "OptimizerFactory",
    "Scaling",
    "clip_each_",
    "cosine",
    "decay_groups",
    "scaled_learning_rate",
    "warmup_cosine",
]
