"""Callbacks that watch a number which nobody logs: said after the first step, not an epoch."""

import difflib
from collections.abc import Callable, Collection
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override


class Watched(Callback):
    """Warns of callbacks, such as EarlyStopping, whose `monitor` has no number yet.

    Lightning ends a run for it at the end of an epoch. It is no error before: code of one's own
    may log that number at the first validation.

    Args:
        measured: gives the names that a validation logs, none where they are not known yet.
    """

    def __init__(self, measured: Callable[[], Collection[str]]) -> None:
        self._measured = measured
        self._is_done = False

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        measured = self._measured()
        if self._is_done or not measured:
            return
        self._is_done = True
        known = {*trainer.callback_metrics, *measured}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            name = getattr(callback, "monitor", None)
            if isinstance(name, str) and name not in known:
                close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
                rank_zero_warn(
                    f"{type(callback).__name__} watches {name!r}, which nothing has logged so far, "
                    "and ends the run if nothing has at the end of an epoch; close to it are: "
                    f"{', '.join(close) or ', '.join(sorted(known))}"
                )
