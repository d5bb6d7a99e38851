"""Base objectives: one LightningModule per self-supervised method."""

from ser_lightning.objectives.base import Objective
from ser_lightning.objectives.guard import NonFiniteLossError
from ser_lightning.objectives.moco_v3 import MoCoV3

__all__ = ["MoCoV3", "NonFiniteLossError", "Objective"]
