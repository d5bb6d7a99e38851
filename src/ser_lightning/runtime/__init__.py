"""What keeps a run going: configuration, folder, checkpoints, signals, progress, help.

Here are the classes that a configuration may name; functions are imported from their files.
"""

from typing import TYPE_CHECKING

from ser_lightning.on_demand import on_demand

if TYPE_CHECKING:
    from ser_lightning.runtime.checkpoint import AtomicCheckpointIO, RunCheckpoint
    from ser_lightning.runtime.progress_bar import ProgressLines, Throughput

__all__ = ["AtomicCheckpointIO", "ProgressLines", "RunCheckpoint", "Throughput"]

__getattr__ = on_demand(__name__, __file__)
