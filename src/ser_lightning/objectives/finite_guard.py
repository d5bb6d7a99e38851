"""Notices a loss or gradient that is not finite before the optimizer steps on it.

The device is never made to wait for the host: values travel to it while the device goes on.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ser_lightning.batch import PartitionedBatch

MAX_SKIPPED = 20
"""Steps in a row that float16's gradient scaler may skip: it starts at 2^16, so is below 1 then."""


class Pass(NamedTuple):
    """A forward pass, and what it takes to run it again."""

    batch: PartitionedBatch
    step: int
    """Optimizer steps taken before."""
    epoch: int
    batch_idx: int
    rank: int
    seed: int
    """Of dropout and stochastic depth."""
    buffers: dict[str, Tensor] = {}  # noqa: RUF012 - never changed
    """As they were before the pass: batch statistics, DINO's centre."""


class NonFinite(NamedTuple):
    """What was found, in words, and the passes that it may come from."""

    values: tuple[str, ...]
    passes: tuple[Pass, ...]


class _Watched(NamedTuple):
    names: tuple[str, ...]
    host: Tensor
    copied: torch.cuda.Event | None
    passes: tuple[Pass, ...]


class FiniteGuard:
    """Copies loss terms and the gradients' norm to the host, and looks where it costs least.

    Losses are looked at just before the optimizer step, when the backward pass has long been
    queued. Gradients are only known after it. On the CPU, and for optimizers without a fused step,
    they are looked at there and then. A fused optimizer on a GPU is told instead to leave out the
    step where the norm is not finite, as float16's gradient scaler does, and the norm is looked at
    in the next step. Where that scaler is at work, it is the one that leaves out steps, which is
    its way to find the scale; `MAX_SKIPPED` of them in a row are not.
    """

    def __init__(self) -> None:
        self._watched: list[_Watched] = []
        self._gradients: list[_Watched] = []
        self._passes: list[Pass] = []
        self._num_skipped = 0

    def begin(self, module: nn.Module, one_pass: Pass, is_first: bool) -> None:
        """Notes the pass that begins, the first of an optimizer step or one more of it."""
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        passes = [] if is_first else self._passes
        self._passes = [*passes, one_pass._replace(buffers=buffers)]

    def watch(self, names: tuple[str, ...], values: Tensor) -> None:
        """Starts copying detached values (len(names),) to the host, once per backward pass."""
        self._watched.append(_copied(names, values, self._passes[-1:]))

    def watch_gradients(
        self, norm: Tensor, optimizer: torch.optim.Optimizer, scaled: bool
    ) -> NonFinite | None:
        """Starts copying the norm () of all gradients, once per optimizer step.

        Args:
            norm: of the gradients that the optimizer is about to take a step on.
            optimizer: told to leave the step out, where it can do so without asking the host.
            scaled: whether a gradient scaler leaves out steps by itself.

        Returns:
            What `gradients` does, unless that would make a device wait.
        """
        self._gradients.append(_copied(("the norm of all gradients",), norm[None], self._passes))
        self._passes = []  # the batches are needed no longer than what was copied
        if not self.can_skip(norm, optimizer):
            return self.gradients(scaled)
        if not scaled:
            optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        return None

    @staticmethod
    def can_skip(norm: Tensor, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step on gradients of this norm can be left out without asking the host."""
        return norm.is_cuda and getattr(optimizer, "_step_supports_amp_scaling", False)

    def losses(self) -> NonFinite | None:
        """What is not finite among the losses watched since the last look; None if all are."""
        watched, self._watched = self._watched, []
        return _non_finite(watched)

    def gradients(self, scaled: bool) -> NonFinite | None:
        """The same for the gradients of the steps since the last look.

        Args:
            scaled: as for `watch_gradients`; only the last of many steps is reported then.
        """
        watched, self._gradients = self._gradients, []
        found = _non_finite(watched)
        if not (scaled and watched):
            return found
        self._num_skipped = 0 if found is None else self._num_skipped + len(found.values)
        return found if self._num_skipped >= MAX_SKIPPED else None


def _copied(names: tuple[str, ...], values: Tensor, passes: Sequence[Pass]) -> _Watched:
    host = values.detach().to("cpu", non_blocking=True)
    copied = None
    if values.is_cuda:
        copied = torch.cuda.Event()
        copied.record()
    return _Watched(names, host, copied, tuple(passes))


def _non_finite(watched: Sequence[_Watched]) -> NonFinite | None:
    values: list[str] = []
    passes: list[Any] = []
    for names, host, copied, where in watched:
        if copied is not None:
            copied.synchronize()
        terms = zip(names, host.tolist(), strict=True)
        bad = [f"{name} is {value}" for name, value in terms if not math.isfinite(value)]
        values += bad
        passes += where if bad else ()
    return NonFinite(tuple(values), tuple(passes)) if values else None
