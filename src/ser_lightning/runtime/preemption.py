"""Leaves with everything saved when the machine is taken away: at a step, or amid a validation."""

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from ser_lightning.processes import STOPPING, is_launched
from ser_lightning.run_length import restate_validation
from ser_lightning.runtime.checkpoint import RunCheckpoint

_REQUEUE = getattr(signal, "SIGUSR1", None)  # Windows has none


def _take_over(trainer: L.Trainer) -> bool:
    """Puts back what Lightning's handlers replaced; whether they have noted a SIGTERM meanwhile.

    Lightning would end at one with status 0, after a batch. Before every step its ranks ask the
    first one, for whose answer the device is waited for.
    """
    connector = trainer._signal_connector
    connector.teardown()
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _ask_nobody  # type: ignore[method-assign]
    noted, connector.received_sigterm = connector.received_sigterm, False
    return noted


def _ask_nobody() -> None: ...


class EndsAtOnce(L.Callback):
    """Lets SIGTERM end a measurement: Lightning's own handler notes it and goes on."""

    def _act(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _take_over(trainer):
            signal.raise_signal(signal.SIGTERM)

    on_train_start = on_sanity_check_start = on_validation_start = on_test_start = _act


class Preemption(L.Callback):
    """On SIGTERM, SIGINT or SIGUSR1: finish the step, save, exit with 128 + signal number.

    The handler only notes the signal. Ranks agree at the end of each step, over a process group on
    the host and one step behind, so that neither a GPU nor a rank ever waits: they all leave at
    the same step, whichever of them got the signal. A second signal acts at once, as usual. On
    SLURM, SIGUSR1 (`#SBATCH --signal=USR1@120`) also puts the job back into the queue.

    In a validation they agree after each batch. What training has is saved, and the run goes on
    with that validation, from its first batch. Before the first step there is nothing to save.

    Attributes:
        has_stepped: whether a step was trained since the start.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.has_stepped = False
        self._is_training = False
        self._is_leaving = False
        self._received = 0
        self._replaced: dict[int, Any] = {}
        self._group: Any = None
        self._votes: tuple[torch.Tensor, Any] | None = None

    def await_queue(self) -> None:
        """Puts a SLURM job back into the queue that is signalled before its run begins."""
        if (
            _REQUEUE is not None
            and _job()
            and threading.current_thread() is threading.main_thread()
        ):
            signal.signal(_REQUEUE, _requeue_and_exit)

    def _listen(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes over from Lightning's handlers, which start collectives wherever they are."""
        if _take_over(trainer):
            if trainer.state.fn != "fit":
                signal.raise_signal(signal.SIGTERM)
            self._received = signal.SIGTERM
        if trainer.state.fn == "fit" and not self._replaced:
            if trainer.world_size > 1:
                self._group = dist.new_group(backend="gloo")
            if threading.current_thread() is threading.main_thread():
                self._replaced = {number: signal.signal(number, self._note) for number in STOPPING}

    on_sanity_check_start = on_validation_start = on_test_start = _listen

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen(trainer, pl_module)
        self._leave_if_agreed(trainer)
        self._is_training = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, signal.SIG_DFL)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self.has_stepped = True
            self._leave_if_agreed(trainer)

    @override
    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        if trainer.state.fn == "fit":
            self._leave_if_agreed(trainer)

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Waits for ranks with more batches: what follows is done together, or not at all."""
        while trainer.state.fn == "fit" and self._leave_if_agreed(trainer, is_busy=False):
            pass

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and self._group is None:
            self._leave_if_agreed(trainer)

    def _leave_if_agreed(self, trainer: L.Trainer, is_busy: bool = True) -> bool:
        """Leaves, or says whether some rank had more batches in the vote before this one."""
        number, others_are_busy = self._agreed(is_busy)
        if number:
            self._leave(trainer, number)
        return others_are_busy

    def _agreed(self, is_busy: bool) -> tuple[int, bool]:
        """Highest signal number on any rank in the previous vote, 0 for none; was one busy."""
        if self._group is None:
            return self._received, False
        agreed, others_are_busy = 0, True
        if self._votes is not None:
            vote, work = self._votes
            work.wait()
            agreed, others_are_busy = int(vote[0]), bool(vote[1])
        vote = torch.tensor([self._received, int(is_busy)])
        work = dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._votes = (vote, work)
        return agreed, others_are_busy

    def _leave(self, trainer: L.Trainer, number: int) -> None:
        """Saves and exits; a collective call."""
        name, again = signal.Signals(number).name, "continue with the same command and --ckpt_path"
        if self._is_training:
            rank_zero_info(
                f"{name} received: saving step {trainer.global_step} to {self.checkpoint.path}; "
                f"{again} last"
            )
            self._is_leaving = True
            self.checkpoint.save_now(trainer, again=bool(trainer.validating))
        else:
            rank_zero_info(f"{name} received before the first step: there is nothing to save")
        if number == _REQUEUE and trainer.is_global_zero:
            _requeue()
        # A launcher kills the others where a rank that it has started reports a failure.
        raise SystemExit(0 if trainer.local_rank > 0 and is_launched() else 128 + number)

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._is_leaving and trainer.validating and "loops" in checkpoint:
            restate_validation(checkpoint["loops"]["fit_loop"])
            _restate_last_epoch(checkpoint["loops"]["fit_loop"])

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()
        if self._votes is not None:
            self._votes[1].wait()
            self._votes = None

    def _restore(self) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}


def _restate_last_epoch(loops: dict[str, Any]) -> None:
    """Restates, in place, progress taken after the last epoch as that of its last batch."""
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epochs["current"]["processed"] == epochs["current"]["started"]:
        for tracker in (epochs["total"], epochs["current"]):
            tracker["processed"] -= 1
            tracker["completed"] = tracker["processed"]
        for tracker in (batches["total"], batches["current"]):
            tracker["completed"] -= 1


def _job() -> str | None:
    """What SLURM calls the job of this process."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    array = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    return array if job else os.environ.get("SLURM_JOB_ID")


def _requeue() -> None:
    """Puts the job back into the queue."""
    job = _job()
    if not job:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(
            f"job {job} was not put back into the queue ({error}); type: scontrol requeue {job}"
        )


def _requeue_and_exit(number: int, frame: FrameType | None) -> None:
    if os.environ.get("SLURM_PROCID", "0") == "0":
        _requeue()
    raise SystemExit(128 + number)
