"""The turned stage: a linear head that was trained on upright images, on turned ones."""

from pathlib import Path

import lightning as L
from typing_extensions import override

from ser_lightning.data.benchmarks import TurnedDataModule
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.benchmark_stage import BenchmarkStage
from ser_lightning.evaluation.stage import StageResult


class TurnedStage(BenchmarkStage):
    """Accuracy of a trained linear head on the test images, upright and in three quarter turns.

    `top1/turn90` and so on by counter-clockwise degrees, and `top1/avg` of the three turns.
    """

    name = "turned"
    data_class = TurnedDataModule

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        images = self.own(data)
        sums = self.measure(trainer, images, folder)
        num_samples = round(sums[0, 0].item())
        names = [condition.name for condition in images.conditions]
        hits = dict(zip(names, map(round, sums[:, 1].tolist()), strict=True))
        accuracy = {f"top1/{name}": 100 * number / num_samples for name, number in hits.items()}
        turned = list(accuracy.values())[1:]
        return [
            self.tested(
                images,
                {"top1/avg": sum(turned) / len(turned), **accuracy},
                num_samples,
                dataset=images.benchmark_name,
                counts={f"hits/{name}": number for name, number in hits.items()},
            )
        ]
