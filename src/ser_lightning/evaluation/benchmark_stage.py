"""What the stages have in common that test a trained linear head on other images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.data.benchmarks import BenchmarkDataModule, Condition, ConditionBatch
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.distributed import gather_ragged
from ser_lightning.evaluation.linear_head import ORIGIN_UNKNOWN, LinearClassifier, head_path
from ser_lightning.evaluation.metrics.accuracy import top_hits
from ser_lightning.evaluation.per_image import test_on_all
from ser_lightning.evaluation.stage import Stage, StageResult, check_finite
from ser_lightning.files import file_sha256
from ser_lightning.sources.base import ImageSet
from ser_lightning.sources.released import CIFAR_CLASSES


class BenchmarkStage(Stage):
    """Sums results over the samples of every condition, each sample once.

    Args:
        checkpoint: file of a pretraining run.
        head: file of the linear head; by default the one that the linear stage of this run wrote,
            with the same seed and branch, for the images that the head is for.
        stage: further arguments of every stage.
    """

    needs_head = True

    num_sums: ClassVar[int] = 3
    """Numbers per sample, as `summands` returns them."""
    logit_ids: Tensor
    classifier: LinearClassifier

    def __init__(self, checkpoint: str, head: str | None = None, **stage: Any) -> None:
        super().__init__(checkpoint, **stage)
        self.head = head
        self.sums = torch.empty(0)
        self._conditions: tuple[Condition, ...] = ()

    def summands(self, logits: Tensor, label: Tensor, batch: ConditionBatch) -> Tensor:
        """What is summed over samples, (B, num_sums): by default 1, a hit, and a hit among five.

        Of logits (B, classes) for images, (B, T, classes) for videos; labels (B,) are places among
        the logits.
        """
        return torch.cat([torch.ones_like(label)[:, None], top_hits(logits, label)], dim=1)

    def measure(self, trainer: L.Trainer, data: BenchmarkDataModule, folder: Path) -> Tensor:
        """Tests the head: (conditions, num_sums) float64 sums over all samples, equal on all ranks.

        Raises:
            ValueError: the head does not fit, or was trained on other weights.
        """
        data.setup("test")
        default = head_path(folder, data.dataset_name, self.variant)
        self.head_file = Path(self.head) if self.head else default
        self.classifier = LinearClassifier.load(self.head_file)
        origin = self.classifier.origin
        if origin is not None and origin.checkpoint != self.checkpoint_hash:
            raise ValueError(
                f"{self.head_file} was trained on the weights {origin.checkpoint}, not on "
                f"{self.checkpoint_hash} of {self.checkpoint}; run the linear stage on this "
                "checkpoint (make linear-eval)"
            )
        read, given = self.classifier.linear.in_features, self.backbone.width
        if read != len(self.classifier.layers) * given:
            raise ValueError(
                f"{self.head_file} reads {read} channels, [CLS] of {len(self.classifier.layers)} "
                f"blocks of width {given} has others; give a head of this backbone: --model.head"
            )
        check_finite(self.classifier, f"weights of {self.head_file}", "train the head again")
        table = logit_table(data.conditions, self.classifier.class_names, str(self.head_file))
        self._conditions = tuple(data.conditions)
        self.register_buffer("logit_ids", table, persistent=False)
        self.sums = torch.zeros(len(data.conditions), self.num_sums, dtype=torch.float64)
        test_on_all(trainer, self, data.test_dataloader())
        return self.sums

    @override
    def test_step(self, batch: ConditionBatch, batch_idx: int) -> None:
        label = self.logit_ids[batch.condition, batch.label]
        frames = batch.pixels.flatten(0, -4)
        logits = self.classifier(self.backbone, frames).unflatten(0, batch.pixels.shape[:-3])
        values = self.summands(logits, label, batch)
        self.sums.index_add_(0, batch.condition.cpu(), values.cpu().double())

    @override
    def on_test_epoch_end(self) -> None:
        self.sums = gather_ragged(self.sums[None]).sum(0)

    def tested(
        self,
        data: BenchmarkDataModule,
        metrics: dict[str, float],
        num_samples: int,
        *,
        conditions: Sequence[Condition] | None = None,
        protocol: dict[str, Any] | None = None,
        reasons: Sequence[str] = (),
        **others: Any,
    ) -> StageResult:
        """A result of some conditions, by default all, that says which head was tested.

        How the head was trained is part of the protocol. Which one it is, and what was chosen for
        it, differs from run to run, so it is `selected`. A head whose numbers may not be compared
        makes the result unofficial. See `Stage.result`.
        """
        origin = self.classifier.origin
        conditions = self._conditions if conditions is None else conditions
        found = [*(reason for c in conditions for reason in c.reasons), *reasons]
        if origin is None:
            found.append(ORIGIN_UNKNOWN)
        else:
            found += [f"head: {reason}" for reason in origin.unofficial_reasons]
        chosen = {} if origin is None else {**origin.selected, "head_seed": origin.seed}
        return self.result(
            data,
            metrics,
            num_samples,
            feature={"cls_of_blocks": self.classifier.layers},
            protocol={**(protocol or {}), "head": None if origin is None else origin.protocol},
            selected={
                "head": str(self.head or self.head_file.name),  # the latter lies beside the record
                "head_sha256": file_sha256(self.head_file),
                **chosen,
            },
            reasons=found,
            **others,
        )

    @override
    def measured_sets(self, data: LabelledDataModule, dataset: str | None) -> list[ImageSet]:
        return [condition.images for condition, _ in self._rows_of(dataset)]

    @override
    def class_names(self, data: LabelledDataModule, dataset: str) -> dict[str, int]:
        places: dict[str, int] = {}
        for condition, row in self._rows_of(dataset):
            names = condition.images.class_names or range(len(self.classifier.class_names))
            pairs = zip(map(str, names), row.tolist(), strict=False)
            places |= {name: place for name, place in pairs if place >= 0}
        return places

    def _rows_of(self, dataset: str | None) -> list[tuple[Condition, Tensor]]:
        """The conditions of a result with the logits of their classes: one of its name, or all."""
        rows = list(zip(self._conditions, self.logit_ids, strict=True))
        return [row for row in rows if row[0].name == dataset] or rows


def logit_table(
    conditions: Sequence[Condition], class_names: Sequence[str], head: str = "the head"
) -> Tensor:
    """The logit of each class by its name: (conditions, classes) int64, -1 where there is none.

    Labels are places in the class names of a condition. They mean the logits of the same places
    where the head has the same names in the same order, of which one may be there twice; the
    classes' ids where there are no names, or CIFAR's for a head of ids; else the names.
    A head of ids, whose classes are called "0", "1", "2" or "00", "01", ..., has them in any
    order.
    `head` is where the logits' names are from, for messages.

    Raises:
        ValueError: there are images without a class, or of a class that has no logit; or labels
            without names meet a head of other numbers, such as "1" to "12".
    """
    places = {name: place for place, name in enumerate(class_names)}
    in_order = [*range(len(class_names))]
    numbers = {int(name): place for name, place in places.items() if name.isdecimal()}
    is_of_ids = numbers.keys() == {*in_order}
    ids = [numbers[number] for number in in_order] if is_of_ids else in_order

    def row_of(names: tuple[str, ...]) -> list[int]:
        if names == tuple(class_names):
            return in_order
        if not names and len(numbers) == len(class_names) and not is_of_ids:
            raise ValueError(
                f"labels without names may be places or numbers of {head}'s classes, which are "
                f"{', '.join(class_names[:3])}, ...; give images in folders of these names"
            )
        is_cifar = names == CIFAR_CLASSES.get(len(class_names))
        return ids if not names or (is_cifar and is_of_ids) else [places.get(n, -1) for n in names]

    rows = [row_of(condition.images.class_names) for condition in conditions]
    width = max(len(row) for row in rows)
    table = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    for condition, row in zip(conditions, table, strict=True):
        present = condition.images.labels.unique()
        if len(present) and int(present[0]) < 0:
            raise ValueError(
                f"{condition.name} has images with the label {int(present[0])}, which is no class; "
                "put them into one folder per class, or give images with labels"
            )
        known = present[present < width]
        unknown = [*present[present >= width].tolist(), *known[row[known] < 0].tolist()]
        if unknown:
            names = condition.images.class_names or tuple(map(str, range(max(unknown) + 1)))
            raise ValueError(
                f"{condition.name} has images of class {names[unknown[0]]}, for which {head} has "
                f"no logit (it has {', '.join(class_names[:3])}, ...); give a head that was "
                "trained on these classes: --model.head FILE"
            )
    return table
