"""The ImageNet-C stage: a trained linear head on ImageNet-C, CIFAR-10-C or generated corruptions.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261; SER Tables 12 and 15. mCE and relative mCE
are divided when a report is made.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
from typing_extensions import override

from ser_lightning.corruptions import CORRUPTIONS
from ser_lightning.data.benchmarks import ImageNetCDataModule
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.benchmark_stage import BenchmarkStage
from ser_lightning.evaluation.stage import StageResult
from ser_lightning.results.ratios import accuracy_percent, mean_over

_WITHOUT_FROST = tuple(name for name in CORRUPTIONS if name != "frost")


class ImageNetCStage(BenchmarkStage):
    """Accuracy of a trained linear head on corrupted images.

    Averages over severities, then over corruptions, as the paper does.
    """

    name = "imagenet-c"
    folders = (("imagenet-c", "data.root"),)
    further_folders = (("imagenet", "data.source.root"),)  # clean, for relative mCE
    can_generate = True
    data_class = ImageNetCDataModule

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        images = self.own(data)
        sums = self.measure(trainer, images, folder)
        counts: dict[str, int] = {}
        errors: tuple[dict[str, list[float]], ...] = ({}, {})
        for condition, row in zip(images.conditions, sums.tolist(), strict=True):
            for what, value in zip(("samples", "hits", "hits5"), row, strict=True):
                counts[f"{what}/{condition.title}"] = round(value)
            for by_name, hits in zip(errors, row[1:], strict=True):
                by_name.setdefault(condition.name, []).append(1 - hits / row[0])
        has_photographs = images.frost_dir or not images.generated
        return [
            self.tested(
                images,
                accuracy_metrics(*errors),
                int(sums[:, 0].sum()),
                dataset=images.benchmark_name,
                counts=counts,
                protocol={"frost": "photographs" if has_photographs else "procedural"},
            )
        ]


def accuracy_metrics(
    top1: Mapping[str, Sequence[float]], top5: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """Accuracy in percent by corruption, `top1/<corruption>` and so on, and the average of all 15.

    Where frost is not the official one, the average leaves it out and says so by its name:
    `avg_without_frost` is not comparable with an average over 15.

    Args:
        top1: error rates at each severity, by corruption; clean images if they are known.
        top5: the same of the five best classes.
    """
    metrics: dict[str, float] = {}
    for name, errors in (("top1", top1), ("top5", top5)):
        accuracy = accuracy_percent(errors)
        metrics |= {f"{name}/{corruption}": value for corruption, value in accuracy.items()}
        if set(CORRUPTIONS) <= set(accuracy):
            metrics[f"{name}/avg"] = mean_over(accuracy, CORRUPTIONS)
        elif set(_WITHOUT_FROST) <= set(accuracy):
            metrics[f"{name}/avg_without_frost"] = mean_over(accuracy, _WITHOUT_FROST)
    return metrics
