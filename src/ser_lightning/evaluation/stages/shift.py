"""The shift stage: a trained linear head on ImageNet-V2, ImageNet-R and ImageNet-Sketch.

Source: SER Tables 1 and 2.
"""

from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.data.benchmarks import ConditionBatch, ShiftDataModule
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.benchmark_stage import BenchmarkStage
from ser_lightning.evaluation.metrics.accuracy import top_hits
from ser_lightning.evaluation.stage import StageResult


class ShiftStage(BenchmarkStage):
    """Accuracy of a head trained on ImageNet on its classes in other images.

    A set with fewer classes than the head has two accuracies: `top1` among the set's classes, as
    is the custom, and `top1_1000way` among all, which is what the paper seems to report.
    """

    name = "shift"
    folders = (
        ("imagenet-v2", "data.imagenet_v2"),
        ("imagenet-r", "data.imagenet_r"),
        ("imagenet-sketch", "data.imagenet_sketch"),
    )
    data_class = ShiftDataModule
    num_sums = 5

    @override
    def summands(self, logits: Tensor, label: Tensor, batch: ConditionBatch) -> Tensor:
        # 1, right among the set's classes (best, five best), right among all classes (same)
        num_logits = logits.shape[1]
        places = self.logit_ids.where(self.logit_ids >= 0, num_logits)
        is_other = torch.ones(len(places), num_logits + 1, dtype=torch.bool, device=logits.device)
        is_other.scatter_(1, places, False)
        restricted = logits.masked_fill(is_other[batch.condition, :num_logits], -torch.inf)
        ones = torch.ones_like(label)[:, None]
        return torch.cat([ones, top_hits(restricted, label), top_hits(logits, label)], dim=1)

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        sets = self.own(data)
        sums = self.measure(trainer, sets, folder)
        num_logits = len(self.classifier.class_names)
        results = []
        for condition, row in zip(sets.conditions, sums.tolist(), strict=True):
            num_samples, *hits = (round(value) for value in row)
            names = ["top1", "top5", f"top1_{num_logits}way", f"top5_{num_logits}way"]
            if condition.images.num_classes == num_logits:
                names = names[:2]
            counts = dict(zip(names, hits, strict=False))
            results.append(
                self.tested(
                    sets,
                    {name: 100 * number / num_samples for name, number in counts.items()},
                    num_samples,
                    counts={f"hits/{name}": number for name, number in counts.items()},
                    protocol={"num_classes": condition.images.num_classes},
                    dataset=condition.name,
                    conditions=[condition],
                )
            )
        return results
