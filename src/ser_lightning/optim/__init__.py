"""Schedules and what optimizers are made of."""

from ser_lightning.optim.schedules import (
    OptimizerFactory,
    cosine,
    scaled_learning_rate,
    warmup_cosine,
)

__all__ = ["OptimizerFactory", "cosine", "scaled_learning_rate", "warmup_cosine"]
