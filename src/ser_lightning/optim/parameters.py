"""What an optimizer is made of: its factory, groups of parameters, clipping of their gradients."""

from collections.abc import Callable, Iterable
from typing import Any

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
