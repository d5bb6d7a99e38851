"""Stops a run before it steps on a loss that is not finite, without stalling the device."""

import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """A loss term is NaN or infinite; no optimizer step was taken on it."""


class FiniteGuard:
    """Copies loss terms to the host while the backward pass runs, and looks at them after it.

    Reading a value right after the forward pass would leave a GPU without work. `watch` starts
    the copy, `check` waits for it just before the optimizer step, when the backward pass has long
    been queued.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._values: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def watch(self, names: tuple[str, ...], values: Tensor) -> None:
        """Starts copying detached values (len(names),) to the host."""
        self._names = names
        self._values = values.detach().to("cpu", non_blocking=True)
        self._copied = None
        if values.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def check(self, step: int) -> None:
        """Raises NonFiniteLossError naming the terms that are not finite at this step."""
        if self._values is None:
            return
        if self._copied is not None:
            self._copied.synchronize()
        bad = [
            f"{name} is {value}"
            for name, value in zip(self._names, self._values.tolist(), strict=True)
            if not -float("inf") < value < float("inf")
        ]
        self._values = None
        if bad:
            raise NonFiniteLossError(
                f"step {step}: {', '.join(bad)}. The run stopped before the optimizer step, the "
                "last checkpoint is good. Lower the learning rate, lengthen the warm-up, raise "
                "the temperature, or train with `--trainer.precision bf16-mixed` or 32"
            )
