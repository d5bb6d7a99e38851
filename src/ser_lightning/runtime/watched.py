"""Callbacks that watch a number which nobody logs: said after the first steps, not an epoch."""

import difflib
from collections.abc import Callable, Collection
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from ser_lightning.run_length import is_trial, run_length


class Watched(Callback):
    """Warns of callbacks, such as EarlyStopping, whose `monitor` has no number yet.

    Lightning ends a run for it at the end of an epoch. It is no error before: code of one's own
    may log that number at the first validation. Some numbers are logged every `log_every_n_steps`
    alone, which is waited for.

    Args:
        measured: gives the names that a validation logs, none where they are not known yet.
    """

    def __init__(self, measured: Callable[[], Collection[str]]) -> None:
        self._measured = measured
        self._is_done = False
        self._patience: list[tuple[EarlyStopping, int]] = []

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Notes what was asked for, which a checkpoint's state will replace."""
        stopping = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
        self._patience = [(callback, callback.patience) for callback in stopping]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves a run as it is that an EarlyStopping has ended, unless its patience is longer."""
        for callback, patience in self._patience:
            callback.patience = patience
            if callback.wait_count >= max(1, patience):  # it has waited in vain
                trainer.should_stop = True

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        every: int = getattr(trainer, "log_every_n_steps", 0)
        if self._is_done or trainer.global_step <= every:
            return
        self._is_done = True
        measured = self._measured()
        known = {*_logged(trainer), *measured} if measured else set()
        for callback in trainer.callbacks if known else ():  # type: ignore[attr-defined]
            name = getattr(callback, "monitor", None)
            if isinstance(name, str) and name not in known and getattr(callback, "strict", True):
                close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
                rank_zero_warn(
                    f"{type(callback).__name__} watches {name!r}, which nothing has logged so far, "
                    "and ends the run if nothing has at the end of an epoch; close to it are: "
                    f"{', '.join(close) or ', '.join(sorted(known))}"
                )


def ended_early(trainer: L.Trainer) -> str:
    """What ended a run before its last step, in words; "" where nothing has."""
    if is_trial(trainer) or trainer.interrupted:
        return ""
    length = run_length(trainer)
    if trainer.global_step >= length.num_steps:
        return ""
    why, then = "", "the same command with --ckpt_path last goes on"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            why, then = f" ({callback.stopping_reason_message})", "it stays so at this patience"
        elif isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0:
            why = " (trainer.max_time is over)"
    steps = f"{trainer.global_step} of {length.num_steps}"
    return f"Ended at step {steps}, amid its schedules{why}; {then}"


def _logged(trainer: L.Trainer) -> set[str]:
    """What steps have logged, and what becomes of it at the end of an epoch."""
    results: Any = trainer._results or {}
    of_epochs = [result.meta for result in results.values()]
    forked = [f"{meta.name}_{part}" for meta in of_epochs for part in ("step", "epoch")]
    return {*trainer.callback_metrics, *(meta.name for meta in of_epochs), *forked}
