"""Top-k accuracy, counted over all processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from ser_lightning.distributed import gather


class Accuracy(NamedTuple):
    """Accuracy over samples, in percent and counted; top-5 is over min(5, classes)."""

    top1: float
    top5: float
    num_hits: int
    num_samples: int


class AccuracyCounter:
    """Counts hits over batches and ranks, each sample once (micro average)."""

    def __init__(self) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64)

    def update(self, logits: Tensor, label: Tensor) -> Tensor:
        """Counts a batch, (B, classes) logits and (B,) labels; (B,) whether the best is right."""
        hits = top_hits(logits, label)
        self._counts[:2] += hits.sum(0).cpu()
        self._counts[2] += len(label)
        return hits[:, 0]

    def compute(self) -> Accuracy:
        """The accuracy over all ranks; resets. A collective call."""
        top1, top5, total = gather(self._counts[None]).sum(0).tolist()
        self._counts = torch.zeros_like(self._counts)
        return Accuracy(100 * top1 / total, 100 * top5 / total, top1, total)


def top_hits(logits: Tensor, label: Tensor) -> Tensor:
    """(B, 2) bool: the right class (B,) is the best of the logits (B, classes), or among five."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]
    return torch.stack([best[:, 0], best.any(1)], dim=1)
