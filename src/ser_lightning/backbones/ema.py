"""The momentum encoder: a frozen copy that follows the online encoder."""

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """A deep copy of which no parameter requires a gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_momentum(online: nn.Module, momentum: nn.Module, m: float) -> None:
    """Moves a `momentum_copy` towards its original, theta_m <- m theta_m + (1 - m) theta.

    Parameters that the online encoder does not train are identical in both and are skipped.
    Buffers are left alone: each branch keeps its own batch statistics.
    """
    pairs = [
        (theirs, ours)
        for ours, theirs in zip(online.parameters(), momentum.parameters(), strict=True)
        if ours.requires_grad
    ]
    if pairs:
        targets, sources = zip(*pairs, strict=True)
        torch._foreach_lerp_(targets, sources, 1.0 - m)
