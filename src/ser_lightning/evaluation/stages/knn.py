"""The k-NN stage: neighbours among all training images, without any training.

The smaller bank used while training is chosen in `data/datamodule.py`, and votes in `online.py`.

Source: DINO eval_knn.py; SER Table 3.
"""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from ser_lightning.data.labelled import LabelledDataModule, Split
from ser_lightning.distributed import gather_ragged, rank, world_size
from ser_lightning.evaluation.features import Features
from ser_lightning.evaluation.metrics.knn import KNNAccuracy, knn_hits
from ser_lightning.evaluation.shared_images import num_shared
from ser_lightning.evaluation.stage import Stage, StageResult
from ser_lightning.numbers import Positive, PositiveInt, checked

_BLOCK = 4096  # test images between two signs of progress


@checked
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
        k: tuple[PositiveInt, ...] = (20,),
        temperature: tuple[Positive, ...] = (0.07,),
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        for option, values in (("k", k), ("temperature", temperature)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{option} {list(values)} must be different, and at least one")
        self.k = tuple(k)
        self.temperature = tuple(temperature)

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        data.setup("test")
        parts: list[Split] = ["train"]  # a linear probe shares them, so they stay apart
        parts += ["holdout"] if len(data.images("holdout")) else []
        for part in parts:
            shared = num_shared(data.images(part), data.images("test"))
            if shared:
                raise ValueError(
                    f"{shared:,} of {len(data.images('test')):,} test images are in the bank too, "
                    "where each is its own nearest neighbour; give test images of their own (a "
                    "folder `val` beside `train`)"
                )
        banks = [self.features(data, part, trainer, folder) for part in parts]
        test = self.features(data, "test", trainer, folder)
        device = trainer.strategy.root_device
        bank = torch.cat([part.embeddings() for part in banks]).to(device)
        bank_labels = torch.cat([part.label for part in banks]).to(device)
        metrics, hits = {}, {}
        for temperature in self.temperature:
            right_by_k = self._hits(bank, bank_labels, test, temperature)
            note = "" if len(self.temperature) == 1 else f"_T{temperature:g}"
            for k, right in right_by_k.items():
                accuracy = KNNAccuracy.of(right)
                metrics[f"top1_k{k}{note}"] = accuracy.top1
                metrics[f"top5_k{k}{note}"] = accuracy.top5
                hits[f"top1_k{k}{note}"] = right[:, 0]
        return [
            self.result(
                data,
                metrics,
                len(test.label),
                feature={"cls_of_blocks": [self.backbone.depth]},
                protocol={"num_bank": len(bank)},
                reasons=data.training_reasons(),
                hits=hits,
                label=test.label,
                slots=torch.from_numpy(test.rows),
            )
        ]

    def _hits(
        self, bank: Tensor, labels: Tensor, test: Features, temperature: float
    ) -> dict[int, Tensor]:
        """`knn_hits` of all test images, of which each rank classifies a share."""
        # of the processes that there are: features that were found need no pass to start them
        queries = test.embeddings().tensor_split(world_size())[rank()]
        truth = test.label.tensor_split(world_size())[rank()]
        found = []
        for start in range(0, len(queries), _BLOCK):
            if start:
                rank_zero_info(f"k-NN: {start} of {len(queries)} test images")
            block = slice(start, start + _BLOCK)
            found.append(knn_hits(bank, labels, queries[block], truth[block], self.k, temperature))
        none = torch.zeros(0, 5, dtype=torch.uint8)  # no collective knows bool everywhere
        return {
            k: gather_ragged(torch.cat([none, *(hits[k].cpu() for hits in found)])).bool()
            for k in self.k
        }
