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
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from ser_lightning.checkpoints import last_checkpoint, load_checkpoint, previous_checkpoint
from ser_lightning.files import atomic_path, keep_as, sweep
from ser_lightning.numbers import Minutes, PositiveInt, checked
from ser_lightning.run_length import is_trial
from ser_lightning.runtime.run_folder import run_folder_of


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
        return without_foreign_paths(load_checkpoint(path, map_location=map_location), Path(path))


def without_foreign_paths(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint without the states that name files elsewhere, which Lightning might delete.

    The states of `ModelCheckpoint` say which files it has written, to remove them for better ones.
    That of `Timer` is left out too: `trainer.max_time` is the time of a start, as of a job.
    """
    callbacks = checkpoint.get("callbacks")
    if not isinstance(callbacks, dict):
        return checkpoint
    callbacks = {key: state for key, state in callbacks.items() if key != "Timer"}
    run = run_folder_of(path.resolve())
    foreign = [
        key
        for key, state in callbacks.items()
        if any("://" in file or not _is_below(file, run) for file in _files_of(state))
    ]
    told = [key for key in foreign if not key.startswith(RunCheckpoint.__name__)]  # takes nothing
    if told:
        rank_zero_warn(
            f"{path}: the state of {', '.join(told)} is left out, since it names files outside of "
            f"{run}, which it might delete"
        )
    kept = {key: state for key, state in callbacks.items() if key not in foreign}
    return {**checkpoint, "callbacks": kept}


def _is_below(file: str, folder: Path) -> bool:
    try:
        return Path(file).resolve().is_relative_to(folder)
    except (OSError, ValueError):  # no path at all
        return False


def _files_of(state: Any) -> list[str]:
    """The files that the state of a callback names as its own."""
    if not isinstance(state, dict):
        return []
    named = [state.get(f"{which}_model_path") for which in ("best", "last", "kth_best")]
    return [str(file) for file in [*named, *(state.get("best_k_models") or ())] if file]


@checked
class RunCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, always whole and never behind the end of training, and the one before it.

    Without a period set it is written at the end of every epoch; set at most one.

    Args:
        every_n_train_steps: write after every so many optimizer steps.
        every_n_epochs: write at the end of every so many epochs.
        every_n_minutes: write after every so many minutes.
        keep_previous: keep the one before as `previous.ckpt`, to go on from where the disk or a
            copy has damaged the last; false halves the space that a run takes.
    """

    saves_whole_steps = True
    """Whether it writes nothing between the passes of a step, whose gradients are not saved."""

    def __init__(
        self,
        every_n_train_steps: PositiveInt | None = None,
        every_n_epochs: PositiveInt | None = None,
        every_n_minutes: Minutes | None = None,
        keep_previous: bool = True,
    ) -> None:
        self.keep_previous = keep_previous
        self._is_whole = False  # the file at `path`: written or read by this process
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
        is_alone = not is_trial(trainer)  # a trial has no lock
        if stage == "fit" and trainer.is_global_zero and self.dirpath and is_alone:
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
        if not is_trial(trainer) and (again or self._last_global_step_saved != trainer.global_step):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step  # resumed or started there
        resumed = trainer.ckpt_path
        self._is_whole = resumed is not None and Path(resumed).resolve() == self.path.resolve()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing: where this run's files are, and which to delete, no file says."""

    @override
    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if self.keep_previous and self._is_whole and trainer.is_global_zero:
            keep_as(self.path, previous_checkpoint(self.path.parent))
        super()._save_checkpoint(trainer, filepath)
        self._is_whole = True

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        if not trainer.fit_loop.epoch_loop._should_accumulate():  # gradients are not saved
            super().on_train_batch_end(trainer, pl_module, *batch)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save_now(trainer)
