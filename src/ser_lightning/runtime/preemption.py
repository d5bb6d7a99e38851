"""Leaves at a step boundary when the machine is taken away, with everything saved."""

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from ser_lightning.runtime.checkpoint import RunCheckpoint

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preemption(L.Callback):
    """On SIGTERM, SIGINT or SIGUSR1: finish the step, save, exit with 128 + signal number.

    The handler only notes the signal. Ranks agree at the end of each step, over a process group on
    the host and one step behind, so that neither a GPU nor a rank ever waits: they all leave at
    the same step, whichever of them got the signal. A second signal acts at once, as usual. On
    SLURM, SIGUSR1 (`#SBATCH --signal=USR1@120`) also puts the job back into the queue.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self.checkpoint = checkpoint
        self._received = 0
        self._replaced: dict[int, Any] = {}
        self._group: Any = None
        self._votes: tuple[torch.Tensor, Any] | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._replaced = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, signal.SIG_DFL)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        number = self._agreed()
        if number:
            rank_zero_info(
                f"{signal.Signals(number).name} received: saving step {trainer.global_step} to "
                f"{self.checkpoint.path}; continue with the same command and --ckpt_path last"
            )
            self.checkpoint.save_now(trainer)
            if number == signal.SIGUSR1 and trainer.is_global_zero:
                _requeue()
            raise SystemExit(128 + number)

    def _agreed(self) -> int:
        """The highest signal number on any rank as of the previous step; 0 for none."""
        if self._group is None:
            return self._received
        agreed = 0
        if self._votes is not None:
            vote, work = self._votes
            work.wait()
            agreed = int(vote)
        vote = torch.tensor(self._received)
        work = dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._votes = (vote, work)
        return agreed

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}
        if self._votes is not None:
            self._votes[1].wait()
            self._votes = None


def _requeue() -> None:
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    array = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    name = array if job else os.environ.get("SLURM_JOB_ID")
    if name:
        subprocess.run(["scontrol", "requeue", name], check=False)
