"""Tells from outside of a run what it is doing, so that it can be killed there."""

import os
from typing import Any

import lightning as L
from typing_extensions import override

LOG = "SER_MOMENTS"  # environment variable: the file to write to


class Moments(L.Callback):
    """Appends a line to the file that the environment names: start, batch, step N, validation.

    Only the first rank writes. A line is one system call, so that a kill cannot cut it.
    """

    def __init__(self) -> None:
        self._file = -1

    def _say(self, trainer: L.Trainer, moment: str) -> None:
        if not trainer.is_global_zero or LOG not in os.environ:
            return
        if self._file < 0:
            self._file = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(self._file, f"{moment}\n".encode())

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._say(trainer, f"start {trainer.global_step}")

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        self._say(trainer, "batch")

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        self._say(trainer, f"step {trainer.global_step}")

    @override
    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        self._say(trainer, "validation")
