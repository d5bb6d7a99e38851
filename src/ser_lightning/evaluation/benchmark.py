"""What the stages have in common that test a trained linear head on other images."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from ser_lightning.data.benchmarks import BenchmarkDataModule, Condition, ConditionBatch
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.distributed import gather_ragged
from ser_lightning.evaluation.classifier import LinearClassifier
from ser_lightning.evaluation.stage import Stage


class BenchmarkStage(Stage):
    """Sums results over the samples of every condition, each sample once.

    Args:
        checkpoint: file of a pretraining run.
        head: file of the linear head; by default the one that the linear stage of this run wrote
            for the images that the head is for.
        stage: further arguments of every stage.

    Attributes:
        num_sums: numbers per sample, as `summands` returns them.
    """

    # A set may have fewer images than there are processes.
    allow_zero_length_dataloader_with_multiple_devices = True

    num_sums: ClassVar[int]
    logit_ids: Tensor
    classifier: LinearClassifier

    def __init__(self, checkpoint: str, head: str | None = None, **stage: Any) -> None:
        super().__init__(checkpoint, **stage)
        self.head = head
        self.sums = torch.empty(0)

    @abstractmethod
    def summands(self, logits: Tensor, label: Tensor, batch: ConditionBatch) -> Tensor:
        """What is summed over samples.

        Args:
            logits: (B, classes) for images, (B, T, classes) for videos.
            label: (B,) places of the right classes among the logits.
            batch: the samples.

        Returns:
            (B, num_sums).
        """

    def measure(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> Tensor:
        """Tests the head on all conditions.

        Returns:
            (conditions, num_sums) float64 sums over all samples, the same on every rank.

        Raises:
            ValueError: the data module has no conditions, or the head does not fit.
        """
        data = self.benchmark(data)
        data.trainer = trainer
        data.setup("test")
        path = Path(self.head or folder / "results" / f"linear-{data.dataset_name}.safetensors")
        self.classifier = LinearClassifier.load(path)
        table = logit_table(data.conditions, self.classifier.class_names, str(path))
        self.register_buffer("logit_ids", table, persistent=False)
        self.sums = torch.zeros(len(data.conditions), self.num_sums, dtype=torch.float64)
        trainer.test(self, data.test_dataloader(), verbose=False)
        return self.sums

    def benchmark(self, data: LabelledDataModule) -> BenchmarkDataModule:
        """The data module, which must be one with conditions.

        Raises:
            ValueError: it is another one.
        """
        if not isinstance(data, BenchmarkDataModule):
            raise ValueError(
                f"{type(data).__name__} has no conditions to test; set data.class_path as in "
                "configs/eval"
            )
        return data

    def test_step(self, batch: ConditionBatch, batch_idx: int) -> None:
        """Classifies a batch."""
        label = self.logit_ids[batch.condition, batch.label]
        frames = batch.pixels.flatten(0, -4)
        logits = self.classifier(self.backbone, frames).unflatten(0, batch.pixels.shape[:-3])
        values = self.summands(logits, label, batch)
        self.sums.index_add_(0, batch.condition.cpu(), values.cpu().double())

    def on_test_epoch_end(self) -> None:
        """Adds the sums of all ranks."""
        self.sums = gather_ragged(self.sums[None]).sum(0)

    @property
    def feature(self) -> dict[str, Any]:
        """What the head sees, for a result."""
        return {"cls_of_blocks": self.classifier.layers}


def top_hits(logits: Tensor, label: Tensor) -> Tensor:
    """Whether the right class is the best, and among the five best (of fewer, among all).

    Args:
        logits: (B, classes).
        label: (B,) right classes.

    Returns:
        (B, 2) bool.
    """
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]
    return torch.stack([best[:, 0], best.any(1)], dim=1)


def logit_table(
    conditions: Sequence[Condition], class_names: Sequence[str], head: str = "the head"
) -> Tensor:
    """Finds the logit of each class by its name.

    Args:
        conditions: images whose labels are places in their class names; without names labels are
            class ids already.
        class_names: of the logits.
        head: where they are from, for messages.

    Returns:
        (conditions, classes) int64 place among the logits, -1 for classes that have none.

    Raises:
        ValueError: there are images of a class that has no logit.
    """
    places = {name: place for place, name in enumerate(class_names)}
    numbers = [*range(len(class_names))]
    rows = [
        [places.get(name, -1) for name in c.images.class_names] if c.images.class_names else numbers
        for c in conditions
    ]
    width = max(len(row) for row in rows)
    table = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    for condition, row in zip(conditions, table, strict=True):
        present = condition.images.labels.unique()
        known = present[present < width]
        unknown = [*present[present >= width].tolist(), *known[row[known] < 0].tolist()]
        if unknown:
            names = condition.images.class_names or [str(n) for n in range(max(unknown) + 1)]
            raise ValueError(
                f"{condition.name} has images of class {names[unknown[0]]}, for which {head} has "
                f"no logit (it has {', '.join(class_names[:3])}, ...); give a head that was "
                "trained on these classes: --model.head FILE"
            )
    return table
