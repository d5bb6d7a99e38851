"""Top-1 and top-5 accuracy."""

import torch
from torch import Tensor


def top_hits(logits: Tensor, label: Tensor) -> Tensor:
    """(B, 2) bool: the right class (B,) is the best of the logits (B, classes), or among five."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]
    return torch.stack([best[:, 0], best.any(1)], dim=1)


def percent(hits: Tensor) -> list[float]:
    """How many of N samples each column of (N, K) hits has, in percent."""
    return (100 * hits.double().sum(0) / len(hits)).tolist()
