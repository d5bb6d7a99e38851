"""Numbers of a training step, logged so that its device is never waited for."""

from typing import Any

import lightning as L
import torch
from torch import Tensor


def log_loss(module: L.LightningModule, name: str, loss: Tensor, **options: Any) -> None:
    """Logs a loss, and hands it to the progress bar, which looks at it when it draws.

    For a bar that is not this project's, Lightning waits for the loss of every step.
    """
    bar = module.trainer.progress_bar_callback
    shown = getattr(bar, "losses", None)
    if shown is not None:
        shown[name] = loss.detach()
    module.log(name, loss.detach(), prog_bar=bar is not None and shown is None, **options)


def log_setting(module: L.LightningModule, name: str, value: float) -> None:
    """Logs a number that the host knows; as a float, Lightning would copy it and wait."""
    module.log(name, torch.tensor(value), batch_size=1)
