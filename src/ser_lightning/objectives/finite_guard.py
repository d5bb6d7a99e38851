"""Stops a run before it steps on a loss that is not finite, without stalling the device."""

import math

import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """A loss term is NaN or infinite; no optimizer step was taken on it."""


class FiniteGuard:
    """Copies loss terms to the host while the backward pass runs, and looks at them after it.

    Reading a value right after the forward pass would leave a GPU without work. The copy is waited
    for just before the optimizer step, when the backward pass has long been queued.
    """

    def __init__(self) -> None:
        self._watched: list[tuple[tuple[str, ...], Tensor, torch.cuda.Event | None]] = []

    def watch(self, names: tuple[str, ...], values: Tensor) -> None:
        """Starts copying detached values (len(names),) to the host, once per backward pass."""
        host = values.detach().to("cpu", non_blocking=True)
        copied = None
        if values.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        self._watched.append((names, host, copied))

    def check(self, step: int) -> None:
        """Raises NonFiniteLossError naming the terms that are not finite at this step.

        Looks at everything watched since the last check: accumulation makes several of them.
        """
        watched, self._watched = self._watched, []
        bad = []
        for names, values, copied in watched:
            if copied is not None:
                copied.synchronize()
            terms = zip(names, values.tolist(), strict=True)
            bad += [f"{name} is {value}" for name, value in terms if not math.isfinite(value)]
        if bad:
            raise NonFiniteLossError(
                f"step {step}: {', '.join(bad)}. The run stopped before the optimizer step, the "
                "last checkpoint is good. Lower the learning rate, lengthen the warm-up, raise "
                "the temperature, or train with `--trainer.precision bf16-mixed` or 32"
            )
