"""Top-k accuracy, counted over all processes."""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy


class Accuracy(NamedTuple):
    """Accuracy over samples, in percent and counted; top-5 is over min(5, classes)."""

    top1: float
    top5: float
    num_hits: int
    num_samples: int

    def metrics(self) -> dict[str, float]:
        """As a result's metrics."""
        return {"top1": self.top1, "top5": self.top5}


class AccuracyCounter(nn.Module):
    """Counts hits over batches and ranks, each sample once (micro average).

    Args:
        num_classes: of the logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        options: dict[str, Any] = {"num_classes": num_classes, "average": "micro"}
        self.top1 = MulticlassAccuracy(top_k=1, **options)
        self.top5 = MulticlassAccuracy(top_k=min(5, num_classes), **options)
        self.total = SumMetric()

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Counts a batch: (B, classes) logits, (B,) labels."""
        self.top1.update(logits, label)
        self.top5.update(logits, label)
        self.total.update(len(label))

    def compute(self) -> Accuracy:
        """The accuracy over all ranks; resets. A collective call."""
        top1, top5, total = (m.compute().item() for m in (self.top1, self.top5, self.total))
        for metric in (self.top1, self.top5, self.total):
            metric.reset()
        return Accuracy(100 * top1, 100 * top5, round(top1 * total), round(total))
