"""Checkpoints that are whole or absent, that load without running foreign code, and are never late.

Lightning writes to the system's temporary folder and moves; across file systems the move is a
copy, and a kill during it leaves a stump in place of the good file. Here the new file is written
beside the old one and renamed.
"""

import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

_PARTIAL = ".partial"


class UnsafeCheckpointError(ValueError):
    """A checkpoint holds more than tensors and plain values; it was not loaded."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, and renames it to `path` on success.

    The file and the folder are flushed to disk. On any error the temporary file is removed and
    an old file at `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(_PARTIAL, f".{path.name}.", path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load_checkpoint(path: str | Path, **options: Any) -> dict[str, Any]:
    """Loads a checkpoint of tensors and plain values; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeCheckpointError: the file would need arbitrary objects to be built, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        return torch.load(path, weights_only=True, **options)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UnsafeCheckpointError(
            f"checkpoint {path} was not loaded: it is damaged, or holds objects other than "
            f"tensors and plain values, which could run foreign code ({_first_line(error)})"
        ) from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames; always loads with weights only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Saves a checkpoint so that `path` is always a whole file."""
        with atomic_path(Path(path)) as partial:
            torch.save(checkpoint, partial)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Loads a checkpoint; see `load_checkpoint` of this module."""
        return load_checkpoint(path, map_location=map_location)


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
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_n_minutes: float | None = None,
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

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Removes what a killed process left half-written."""
        if stage == "fit" and trainer.is_global_zero and self.dirpath:
            for partial in Path(self.dirpath).glob(f".*{_PARTIAL}"):
                partial.unlink()
        with warnings.catch_warnings():
            # The folder is meant to be used again: a run goes on where it stopped.
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)

    @property
    def path(self) -> Path:
        """Where the checkpoint is written."""
        return last_checkpoint(Path(self.dirpath or "."))

    def save_now(self, trainer: L.Trainer) -> None:
        """Writes the checkpoint, unless it holds this step already. A collective call."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the last step, whatever the schedule."""
        self.save_now(trainer)


def last_checkpoint(folder: Path) -> Path:
    """The path of the latest checkpoint in a folder of checkpoints."""
    return folder / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
