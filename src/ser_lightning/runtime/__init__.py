"""What keeps a run going: configuration, folder, checkpoints, signals, progress, help."""

from typing import TYPE_CHECKING

from ser_lightning.on_demand import on_demand

if TYPE_CHECKING:
    from ser_lightning.runtime.checkpoint import AtomicCheckpointIO, RunCheckpoint
    from ser_lightning.runtime.class_help import chosen_class, find_class, parameters
    from ser_lightning.runtime.configuration import (
        checked_seed,
        content_of,
        options,
        packaged,
        refuse_empty_sections,
        refuse_linked_keys,
        settle,
    )
    from ser_lightning.runtime.cores import (
        refuse_more_processes_than_cores,
        refuse_too_many_workers,
    )
    from ser_lightning.runtime.lock import LOCK, locked
    from ser_lightning.runtime.parser import ShortErrorParser
    from ser_lightning.runtime.preemption import EndsAtOnce, Preemption
    from ser_lightning.runtime.progress_bar import ProgressLines, Throughput, default_progress
    from ser_lightning.runtime.resumable import (
        refuse_another_run,
        require_configuration,
        require_fit,
        resolved_checkpoint,
    )
    from ser_lightning.runtime.returned import ReturnsMemory
    from ser_lightning.runtime.run_folder import (
        ConfigurationSaver,
        default_run_dir,
        differences,
        no_trace_of_failure,
        refuse_other_root,
        run_folder_of,
        stored_configuration,
        usable_for,
    )
    from ser_lightning.runtime.stored import Origin, given_options, plain_sections

__all__ = [
    "LOCK",
    "AtomicCheckpointIO",
    "ConfigurationSaver",
    "EndsAtOnce",
    "Origin",
    "Preemption",
    "ProgressLines",
    "ReturnsMemory",
    "RunCheckpoint",
    "ShortErrorParser",
    "checked_seed",
    "chosen_class",
    "content_of",
    "Throughput",
    "default_progress",
    "default_run_dir",
    "differences",
    "find_class",
    "locked",
    "no_trace_of_failure",
    "given_options",
    "options",
    "packaged",
    "parameters",
    "plain_sections",
    "refuse_empty_sections",
    "refuse_linked_keys",
    "refuse_more_processes_than_cores",
    "refuse_other_root",
    "refuse_too_many_workers",
    "refuse_another_run",
    "require_configuration",
    "require_fit",
    "resolved_checkpoint",
    "run_folder_of",
    "settle",
    "stored_configuration",
    "usable_for",
]

__getattr__ = on_demand(__name__, __file__)
