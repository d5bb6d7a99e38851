"""The k-NN stage: neighbours among all training images, without any training.

Source: DINO eval_knn.py; SER Table 3.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.features import cached_features
from ser_lightning.evaluation.knn import knn_accuracy
from ser_lightning.evaluation.stage import Stage, StageResult


class KNNStage(Stage):
    """Classifies test images by the votes of their neighbours among the training images.

    Args:
        checkpoint: file of a pretraining run.
        k: numbers of neighbours.
        temperature: temperatures of the votes exp(similarity / temperature). The paper reports
            k 20 and temperature 0.07.
        stage: further arguments of every stage.
    """

    name = "knn"

    def __init__(
        self,
        checkpoint: str,
        k: Sequence[int] = (20,),
        temperature: Sequence[float] = (0.07,),
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.k = tuple(k)
        self.temperature = tuple(temperature)

    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        """Reads the cached features; the whole training split is the bank."""
        bank, test = (
            cached_features(self.backbone, self.checkpoint_hash, data, split, trainer, folder)
            for split in ("train", "test")
        )
        metrics = {}
        for temperature in self.temperature:
            accuracies = knn_accuracy(
                bank.embeddings().to(self.device),
                bank.label,
                test.embeddings(),
                test.label,
                self.k,
                temperature,
            )
            note = "" if len(self.temperature) == 1 else f"_T{temperature:g}"
            for k, accuracy in accuracies.items():
                metrics[f"top1_k{k}{note}"] = accuracy.top1
                metrics[f"top5_k{k}{note}"] = accuracy.top5
        return [
            self.result(
                data,
                metrics,
                len(test.label),
                feature={"cls_of_blocks": [self.backbone.depth]},
                protocol={"k": list(self.k), "temperature": list(self.temperature)},
            )
        ]
