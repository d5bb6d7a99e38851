"""Optimizers: what they are given, and schedules as pure functions of the step.

Nothing to checkpoint, exact at a restart. Which parameters are not decayed is in `decay_groups`;
the schedule of the momentum is in `objectives/momentum.py`, those of DINO's weight decay and
temperature in `objectives/dino.py`; how long a run is, in `run_length.py`.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

OptimizerFactory = Callable[[Iterable[Any], float], torch.optim.Optimizer]
"""Makes an optimizer from parameters, or groups of them, and the peak learning rate."""


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuses an optimizer that cannot take the steps, or that would fail at the first of them.

    Raises:
        ValueError: names the optimizer, what is wrong with it, and the remedy.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            f"model.init_args.optimizer {name} computes the loss of a step many times, and every "
            "time the momentum branch moves on; use AdamW, SGD or timm.optim.Lars"
        )
    for argument, parameter in inspect.signature(type(optimizer)).parameters.items():
        default = parameter.default
        value = optimizer.defaults.get(argument, default)
        may_be_none = value is None and type(None) in get_args(parameter.annotation)
        if isinstance(default, Real) and not (isinstance(value, Real | Tensor) or may_be_none):
            raise ValueError(
                f"model.init_args.optimizer {name}: {argument} {value} is no number; the default "
                f"is {default}"
            )


def decay_groups(
    parameters: Iterable[nn.Parameter], decay_biases: bool = True
) -> list[dict[str, Any]]:
    """One group of parameters, or without `decay_biases` two: the second is not decayed.

    It has the vectors and scalars, as biases and norms, with a `weight_decay` of 0.
    """
    everything = list(parameters)
    if decay_biases:
        return [{"params": everything}]
    return [
        {"params": [p for p in everything if p.ndim >= 2]},
        {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0},
    ]


def clip_each_(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Shortens, in place, the gradient of every parameter whose own norm exceeds `max_norm`.

    Source: DINO's public code. Unlike clipping by the norm of all gradients together, it changes
    their direction as a whole.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    norms = torch._foreach_norm(gradients)
    factors = [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
    torch._foreach_mul_(gradients, factors)


Scaling = Literal["linear", "sqrt"]
REFERENCE_BATCH_SIZE = 256


def cosine(step: float, num_steps: float, start: float, end: float) -> float:
    """Moves from `start` at step 0 to `end` at `num_steps` along half a cosine, then stays."""
    progress = min(step / num_steps, 1.0) if num_steps > 0 else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(
    step: float, num_steps: float, warmup_steps: float, floor: float = 0.0, start: float = 0.0
) -> float:
    """Rises linearly from `start` to 1 during warm-up, then falls to `floor` by half a cosine."""
    if step < warmup_steps:
        return start + (1 - start) * step / warmup_steps
    return cosine(step - warmup_steps, num_steps - warmup_steps, 1.0, floor)


def scheduled(
    optimizer: torch.optim.Optimizer, *schedules: Callable[[int], float]
) -> OptimizerLRSchedulerConfig:
    """What Lightning takes for an optimizer whose learning rates follow the step.

    Args:
        optimizer: its groups have their peak learning rates.
        schedules: the factor at a step: one function per group, or one for all.
    """
    if len(schedules) == 1:
        schedules *= len(optimizer.param_groups)
    scheduler = StepSchedule(optimizer, schedules)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StepSchedule(LambdaLR):
    """Learning rates that follow functions of the step, and this run's configuration.

    A restart takes the step from the checkpoint. Rates, weight decay and whatever else is no state
    of the optimizer come from the configuration, so that a longer run, or one with other values,
    goes on as it was asked to, from its first step.

    Args:
        optimizer: its groups have their peak learning rates.
        schedules: the factor at a step, one function per group.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedules: Sequence[Callable[[int], float]]
    ) -> None:
        self._configured = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        super().__init__(optimizer, list(schedules))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().state_dict().items() if k != "_configured"}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        peaks = self.base_lrs
        super().load_state_dict(state_dict)
        self.base_lrs = peaks
        groups = zip(
            self.optimizer.param_groups, self._configured, peaks, self.lr_lambdas, strict=True
        )
        for group, configured, peak, schedule in groups:
            group.update(configured, initial_lr=peak, lr=peak * schedule(self.last_epoch))
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def scaled_learning_rate(
    base_learning_rate: float, global_batch_size: int, scaling: Scaling = "linear"
) -> float:
    """The peak learning rate: `base_learning_rate` at a batch of 256, scaled to another batch.

    "linear" in the batch size, as most methods; "sqrt" as SimCLR for its long runs.
    """
    factor = global_batch_size / REFERENCE_BATCH_SIZE
    return base_learning_rate * (math.sqrt(factor) if scaling == "sqrt" else factor)
