"""Progress for people: a bar on a terminal, plain lines in a log file."""

import sys
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, TQDMProgressBar

_REFRESH_EVERY = 10  # steps; each refresh waits for the device


def default_progress() -> Callback:
    """A bar where somebody looks at a terminal, otherwise `ProgressLines`."""
    return TQDMProgressBar(_REFRESH_EVERY) if sys.stderr.isatty() else ProgressLines()


class ProgressLines(ProgressBar):
    """Prints a line every `log_every_n_steps` steps: epoch, step, losses, speed, time left."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._start = (0.0, 0)

    def disable(self) -> None:
        """Prints nothing; Lightning calls it on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Prints again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._start = (time.monotonic(), trainer.global_step)
        self._every: int = getattr(trainer, "log_every_n_steps", 0) or 50

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        """Prints a line, if it is time for one."""
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        begin, first_step = self._start
        is_between = trainer.fit_loop.epoch_loop._should_accumulate()
        if not self._enabled or is_between or (step % self._every and step != total):
            return
        seconds = (time.monotonic() - begin) / max(step - first_step, 1)
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        values = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in metrics.items()
        )
        left = timedelta(seconds=round(seconds * (total - step)))
        print(
            f"epoch {trainer.current_epoch + 1}  step {step}/{int(total)}  {values}  "
            f"{seconds:.3g} s/step  {left} left",
            file=sys.stderr,
            flush=True,
        )
