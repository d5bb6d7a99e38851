"""Checkpoints: written whole or not at all, loaded without running foreign code, and never late.

Lightning writes to the system's temporary folder and moves; across file systems the move is a
copy, and a kill during it leaves a stump in place of the good file. Here the new file is written
beside the old one and renamed.

What they hold: Lightning's state, the configuration (`run_folder.py`), and the `state_dict` of
`data/datamodule.py` and of `evaluation/online.py`.
"""

import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from ser_lightning.files import atomic_path, last_checkpoint, load_checkpoint, sweep
from ser_lightning.numbers import Minutes, PositiveInt, checked


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames; always loads with weights only."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with atomic_path(Path(path)) as partial:
            torch.save(checkpoint, partial)

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return load_checkpoint(path, map_location=map_location)


@checked
class RunCheckpoint(ModelCheckpoint):
    """Keeps one file, `last.ckpt`, always whole and never behind the end of training.

    Without a field set it is written at the end of every epoch; set at most one.

    Args:
        every_n_train_steps: write after every so many optimizer steps.
        every_n_epochs: write at the end of every so many epochs.
        every_n_minutes: write after every so many minutes.
    """

    def __init__(
        self,
        every_n_train_steps: PositiveInt | None = None,
        every_n_epochs: PositiveInt | None = None,
        every_n_minutes: Minutes | None = None,
    ) -> None:
        if every_n_train_steps is None and every_n_minutes is None:
            every_n_epochs = every_n_epochs or 1
        super().__init__(
            filename=self.CHECKPOINT_NAME_LAST,
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=timedelta(minutes=every_n_minutes) if every_n_minutes else None,
        )

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and self.dirpath:
            sweep(Path(self.dirpath))
        with warnings.catch_warnings():
            # The folder is meant to be used again: a run goes on where it stopped.
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)

    @property
    def path(self) -> Path:
        """Where the checkpoint is written."""
        return last_checkpoint(Path(self.dirpath or "."))

    def save_now(self, trainer: L.Trainer, again: bool = False) -> None:
        """Writes the checkpoint, if it holds this step already only `again`. A collective call."""
        is_trial = getattr(trainer, "fast_dev_run", False)
        if not is_trial and (again or self._last_global_step_saved != trainer.global_step):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step  # resumed or started there

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        if not trainer.fit_loop.epoch_loop._should_accumulate():  # gradients are not saved
            super().on_train_batch_end(trainer, pl_module, *batch)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save_now(trainer)
