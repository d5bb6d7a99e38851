"""Progress for people: a bar on a terminal, plain lines in a log file."""

import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from datetime import timedelta
from functools import wraps
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from typing_extensions import override

_REFRESH_EVERY = 10  # steps; each refresh waits for the device
_LINE_EVERY = 30.0  # seconds, outside of training
_IN_BAR = {"loss": ".2f", "knn": ".1f", "turns": ".2f"}
_WIDTH = 80  # of a line in a log file, as of the bar


def default_progress() -> Callback:
    """A bar where somebody looks at a terminal, otherwise lines."""
    return Bar() if sys.stderr.isatty() else ProgressLines()


class _Clock:
    """How long the steps of this start took, and what that says of those to come."""

    def __init__(self, trainer: L.Trainer) -> None:
        self._begin, self._first_step = time.monotonic(), trainer.global_step

    def seconds_per_step(self, trainer: L.Trainer) -> float:
        return (time.monotonic() - self._begin) / max(trainer.global_step - self._first_step, 1)

    def left(self, trainer: L.Trainer) -> timedelta:
        steps = trainer.estimated_stepping_batches - trainer.global_step
        return timedelta(seconds=round(self.seconds_per_step(trainer) * steps))


def _epoch(trainer: L.Trainer) -> str:
    """The epoch and how many there will be, counted from 1."""
    last = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
    return f"epoch {trainer.current_epoch + 1}" + (f"/{last}" if last else "")


class Throughput(Callback):
    """Logs images per second over all processes between two log steps, measurements aside."""

    def __init__(self) -> None:
        self._begin: float | None = None
        self._images = 0

    @override
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._begin is None:
            self._begin, self._images = time.monotonic(), 0

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        self._images += len(batch.indices) * trainer.world_size
        is_between = trainer.fit_loop.epoch_loop._should_accumulate()
        every: int = getattr(trainer, "log_every_n_steps", 0)  # 0 logs nothing
        if not every or self._begin is None or is_between or trainer.global_step % every:
            return
        rate = self._images / max(time.monotonic() - self._begin, 1e-9)
        pl_module.log("throughput/images_per_second", rate, batch_size=1)
        self._begin = None

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin = None


def _on_stderr(init: Callable[[TQDMProgressBar], Tqdm]) -> Callable[[TQDMProgressBar], Tqdm]:
    """Makes a bar where `default_progress` found a terminal; Lightning's are on stdout."""

    @wraps(init)
    def made(bar: TQDMProgressBar) -> Tqdm:
        with redirect_stdout(sys.stderr):
            return init(bar)

    return made


class _ShowsLosses(ProgressBar):
    """Reads losses when it shows them, so that a device is not waited for in every step.

    Attributes:
        losses: () of the last step, on its device, by name; whoever logs them puts them here.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.losses: dict[str, Tensor] = {}

    @override
    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        losses = {name: float(loss) for name, loss in self.losses.items()}
        return {**losses, **super().get_metrics(trainer, pl_module)}


class Bar(_ShowsLosses, TQDMProgressBar):
    """A bar of 80 columns: epoch of epochs, time left of the run, loss, k-NN and score of turns."""

    BAR_FORMAT = "{desc} {percentage:3.0f}% |{bar}|{postfix}"

    init_sanity_tqdm = _on_stderr(TQDMProgressBar.init_sanity_tqdm)
    init_train_tqdm = _on_stderr(TQDMProgressBar.init_train_tqdm)
    init_validation_tqdm = _on_stderr(TQDMProgressBar.init_validation_tqdm)
    init_test_tqdm = _on_stderr(TQDMProgressBar.init_test_tqdm)

    def __init__(self) -> None:
        super().__init__(_REFRESH_EVERY)
        self._clock: _Clock | None = None  # from the first step on

    @property
    @override
    def sanity_check_description(self) -> str:
        return "starting weights"

    @property
    @override
    def validation_description(self) -> str:
        return "measuring"

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._clock = _Clock(trainer)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description_str(_epoch(trainer))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.global_step >= trainer.estimated_stepping_batches:
            self.train_progress_bar.close()  # what is printed next begins a line of its own

    @override
    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        shown = {n: f"{metrics[n]:{kind}}" for n, kind in _IN_BAR.items() if n in metrics}
        left = {"left": str(self._clock.left(trainer))} if self._clock else {}
        return {**left, **shown}


class ProgressLines(_ShowsLosses):
    """Prints lines of 80 columns: where training, or a pass over images, is, and how fast.

    In training every `log_every_n_steps` steps: epoch and step as the bar counts them, speed, time
    left; below it losses, k-NN and score of turns. In a test, every so many seconds and at its end:
    name of the pass, batch, speed, time left.

    Args:
        seconds: between two lines of a test.
    """

    def __init__(self, seconds: float = _LINE_EVERY) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._test_start = self._last_line = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether this process prints."""
        return self._enabled

    @override
    def disable(self) -> None:  # on all ranks but the first
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock = _Clock(trainer)
        self._every: int = getattr(trainer, "log_every_n_steps", 0) or 50

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        is_between = trainer.fit_loop.epoch_loop._should_accumulate()
        if not self._enabled or is_between or (step % self._every and step != total):
            return
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        place = f"{_epoch(trainer)}  step {step}/{int(total)}"
        seconds, left = self._clock.seconds_per_step(trainer), self._clock.left(trainer)
        _print(_line(place, seconds, "step", left), *_numbers(metrics))

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
        seconds = (now - self._test_start) / done
        left = timedelta(seconds=round(seconds * (total - done)))
        _print(_line(place, seconds, "batch", left))


def _line(place: str, seconds: float, unit: str, left: timedelta) -> str:
    return f"{place}  {seconds:.3g} s/{unit}  {left} left"


def _numbers(metrics: Mapping[str, Any]) -> Sequence[str]:
    """Lines of numbers, as many as they take; a term of the loss stands by its own name."""
    words = [
        f"{name.removeprefix('loss/')} {value:{_IN_BAR.get(name, '.4g')}}"
        if isinstance(value, float)
        else f"{name} {value}"
        for name, value in metrics.items()
    ]
    indent = " " * 4
    return textwrap.wrap(
        "  ".join(words), _WIDTH, initial_indent=indent, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _print(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)
