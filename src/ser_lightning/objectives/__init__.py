"""Base objectives: one LightningModule per self-supervised method.

`base.py` has the training step, the weighted sum of losses and the optimizer, `momentum.py` the
momentum branch and its schedule, `encode.py` the forward passes. A step that is not finite is
noticed in `finite_guard.py`, looked into in `examine.py`, and kept in `replay_file.py`.
"""

import pkgutil
from importlib import import_module

from ser_lightning.objectives.base import Objective
from ser_lightning.objectives.replay_file import NonFiniteError

# Every file is imported, so that a configuration may name an objective by its class alone, and a
# new one needs no entry here.
for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")

__all__ = ["NonFiniteError", "Objective"]
