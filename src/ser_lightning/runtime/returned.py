"""Memory that training has freed goes back to the machine, a few times in an hour."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from ser_lightning.memory import return_freed_memory

_EVERY = 100  # steps: what they free is worth more than what it costs to clear it anew


class ReturnsMemory(Callback):
    """Returns freed memory of the host every hundred steps, and after each validation."""

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        if batch_idx % _EVERY == _EVERY - 1:
            return_freed_memory()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        return_freed_memory()
