"""What keeps a run going: checkpoints, signals, records, progress, error messages."""

from ser_lightning.runtime.arguments import (
    CHECKPOINT_FOLDER,
    checked_seed,
    content_of,
    default_run_dir,
    options,
    packaged,
    refuse_linked_keys,
    run_folder,
    stored_configuration,
    usable_for,
)
from ser_lightning.runtime.checkpoint import AtomicCheckpointIO, RunCheckpoint
from ser_lightning.runtime.memory import keep_freed_memory
from ser_lightning.runtime.parser import ShortErrorParser
from ser_lightning.runtime.preemption import Preemption
from ser_lightning.runtime.progress import ProgressLines, default_progress
from ser_lightning.runtime.record import RunRecord, differences

__all__ = [
    "CHECKPOINT_FOLDER",
    "AtomicCheckpointIO",
    "Preemption",
    "ProgressLines",
    "RunCheckpoint",
    "RunRecord",
    "ShortErrorParser",
    "checked_seed",
    "content_of",
    "default_progress",
    "default_run_dir",
    "differences",
    "keep_freed_memory",
    "options",
    "packaged",
    "refuse_linked_keys",
    "run_folder",
    "stored_configuration",
    "usable_for",
]
