"""Progress for people: a bar on a terminal, plain lines in a log file."""

import sys
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, TQDMProgressBar
from typing_extensions import override

_REFRESH_EVERY = 10  # steps; each refresh waits for the device
_LINE_EVERY = 30.0  # seconds, outside of training


def default_progress() -> Callback:
    """A bar where somebody looks at a terminal, otherwise `ProgressLines`."""
    return TQDMProgressBar(_REFRESH_EVERY) if sys.stderr.isatty() else ProgressLines()


class ProgressLines(ProgressBar):
    """Prints a line every so often: where training, or a pass over images, is, and how fast.

    In training every `log_every_n_steps` steps: epoch, step, losses, speed, time left. In a test,
    every so many seconds and at its end: name of the pass, batch, speed, time left.

    Args:
        seconds: between two lines of a test.
    """

    def __init__(self, seconds: float = _LINE_EVERY) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._start = (0.0, 0)
        self._test_start = self._last_line = 0.0

    @override
    def disable(self) -> None:  # on all ranks but the first
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = (time.monotonic(), trainer.global_step)
        self._every: int = getattr(trainer, "log_every_n_steps", 0) or 50

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
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
        place = f"epoch {trainer.current_epoch + 1}  step {step}/{int(total)}  {values}"
        _line(place, seconds, "step", total - step)

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._test_start = self._last_line = time.monotonic()

    @override
    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        now, done, total = time.monotonic(), batch_idx + 1, trainer.num_test_batches[dataloader_idx]
        if not self._enabled or (now - self._last_line < self.seconds and done != total):
            return
        self._last_line = now
        place = f"{type(pl_module).__name__}  batch {done}/{total}"
        _line(place, (now - self._test_start) / done, "batch", total - done)


def _line(place: str, seconds: float, unit: str, num_left: float) -> None:
    left = timedelta(seconds=round(seconds * num_left))
    line = f"{place}  {seconds:.3g} s/{unit}  {left} left"
    print(line, file=sys.stderr, flush=True)
