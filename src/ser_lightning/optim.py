"""Schedules as pure functions of the step: nothing to checkpoint, exact at a restart."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

OptimizerFactory = Callable[[Iterable[Any], float], torch.optim.Optimizer]
"""Makes an optimizer from parameters, or groups of them, and the peak learning rate."""


def decay_groups(
    parameters: Iterable[nn.Parameter], decay_biases: bool = True
) -> list[dict[str, Any]]:
    """Groups parameters by whether the optimizer's weight decay acts on them.

    Args:
        parameters: what is to be trained.
        decay_biases: whether biases, norms and other vectors are decayed as well.

    Returns:
        One group, or two: tensors of two and more dimensions, then vectors and scalars with a
        `weight_decay` of 0.
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


def warmup_cosine(step: float, num_steps: float, warmup_steps: float, floor: float = 0.0) -> float:
    """Rises linearly from 0 to 1 during warm-up, then falls to `floor` along half a cosine.

    Args:
        step: optimizer steps taken so far.
        num_steps: optimizer steps of the whole run.
        warmup_steps: length of the warm-up.
        floor: the value at the end.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return cosine(step - warmup_steps, num_steps - warmup_steps, 1.0, floor)


def scaled_learning_rate(
    base_learning_rate: float, global_batch_size: int, scaling: Scaling = "linear"
) -> float:
    """The peak learning rate: `base_learning_rate` at a batch of 256, scaled to another batch.

    Args:
        base_learning_rate: peak for 256 images.
        global_batch_size: images per optimizer step.
        scaling: "linear" in the batch size, as most methods; "sqrt" as SimCLR for its long runs.
    """
    factor = global_batch_size / REFERENCE_BATCH_SIZE
    return base_learning_rate * (math.sqrt(factor) if scaling == "sqrt" else factor)
