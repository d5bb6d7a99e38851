"""The transformation stage: can a probe tell from frozen features how an image was turned?

Source: SER Table 7.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.vit import Layer, block_number
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.features import (
    CleanRows,
    Extractor,
    FeatureBatch,
    TrainingRows,
)
from ser_lightning.evaluation.probe import Heads, deep_heads
from ser_lightning.evaluation.stage import StageResult
from ser_lightning.evaluation.stored import StoredProbeStage, stored_features
from ser_lightning.numbers import PositiveInt, checked

Mode = Literal["pair", "single"]


# Which of the versions below each label of a family means; label 0 is the image as it is.
FAMILIES: Mapping[str, tuple[int, ...]] = {"rotation": (0, 1, 2, 3), "flip": (0, 4)}
NUM_VERSIONS = 5


class Task(NamedTuple):
    """What one probe of a stage tells, and the name of its accuracy.

    Mode "pair" is MLP([f(x), f(g.x)]), "single" is MLP(f(g.x)); it reads one place of the features.
    """

    name: str
    family: str
    mode: Mode
    place: int


def probed_layers(layers: Sequence[Layer], depth: int) -> list[int]:
    """Sorted numbers of blocks, each once; those beyond the depth mean the depth.

    Raises:
        ValueError: if there is none.
    """
    numbers = sorted({min(block_number(layer, depth), depth) for layer in layers})
    if not numbers:
        raise ValueError("layers is empty; name blocks, for instance [3]")
    return numbers


def list_tasks(layers: Sequence[int], modes: Sequence[Mode], baseline: bool) -> list[Task]:
    """All probes of a stage, in the order of their metrics; the baseline's places come last."""
    suffixes = {"pair": "", "single": "_single"}
    return [
        Task(f"{prefix}{family}_layer{layer}{suffixes[mode]}", family, mode, first + i)
        for first, prefix in ((0, ""), (len(layers), "random_init/"))[: 1 + baseline]
        for mode in modes
        for family in FAMILIES
        for i, layer in enumerate(layers)
    ]


def versions(images: Tensor) -> tuple[Tensor, ...]:
    """(B, 3, S, S) images in every way that a family knows, without any interpolation.

    The `NUM_VERSIONS` are 0 to 3 quarter turns, then the horizontal flip.
    """
    return (*(torch.rot90(images, turns, (-2, -1)) for turns in range(4)), images.flip(-1))


def version_features(backbones: Sequence[SplitViT], layers: Sequence[int]) -> Extractor:
    """Averages the patch tokens of every version of every image, the same way at every layer.

    [CLS] is left out: it joins late, and early layers have none. Features are (B, NUM_VERSIONS,
    places, C), places being the layers of the first backbone, then those of the next one.
    """

    def compute(images: Tensor) -> Tensor:
        features = [
            torch.stack([m.float().mean((2, 3)) for m in backbone.token_maps(version, layers)], 1)
            for version in versions(images)
            for backbone in backbones
        ]
        return torch.stack(features, 1).unflatten(1, (NUM_VERSIONS, len(backbones))).flatten(2, 3)

    shape = NUM_VERSIONS, len(backbones) * len(layers), backbones[0].width
    return Extractor(backbones, shape, compute)


def task_input(task: Task, features: Tensor, label: Tensor) -> Tensor:
    """What a probe sees, (B, 2 C) or (B, C), of images transformed as their labels (B,) say.

    The features are (B, NUM_VERSIONS, places, C), as `version_features` makes them.
    """
    here = features[:, :, task.place]
    version = torch.tensor(FAMILIES[task.family], device=label.device)[label]
    moved = here[torch.arange(len(here), device=here.device), version]
    return torch.cat([here[:, 0], moved], 1) if task.mode == "pair" else moved


class VersionHeads(Heads):
    """One MLP per task, on the features of all versions of an image.

    Training gives every label to the same number of images, in an order of its own each epoch:
    the label follows from the place in the whole training. Measuring shows every image under all
    labels. Adam trains them, without weight decay.
    """

    chooses = False

    def __init__(
        self, tasks: Sequence[Task], width: int, hidden: int, learning_rate: float, seed: int
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.num_heads = len(self.tasks)
        self.learning_rate = learning_rate
        sizes = ((width * (1 + (t.mode == "pair")), len(FAMILIES[t.family])) for t in tasks)
        self.heads = nn.ModuleList(deep_heads(sizes, hidden, seed))

    @override
    def losses(self, batch: FeatureBatch) -> Tensor:
        losses = []
        for task, head in zip(self.tasks, self.heads, strict=True):
            label = batch.slot % len(FAMILIES[task.family])
            logits = head(task_input(task, batch.features, label))
            losses.append(F.cross_entropy(logits.float(), label))
        return torch.stack(losses)

    @override
    def hits(self, batch: FeatureBatch) -> Tensor:
        hits = torch.zeros(self.num_heads, dtype=torch.int64, device=batch.slot.device)
        for number, (task, head) in enumerate(zip(self.tasks, self.heads, strict=True)):
            for value in range(len(FAMILIES[task.family])):
                label = torch.full_like(batch.slot, value)
                found = head(task_input(task, batch.features, label)).argmax(1)
                hits[number] += (found == label).sum()
        return hits


@checked
class TransformationStage(StoredProbeStage):
    """Measures how well rotations (4-way) and flips (2-way) are predicted, layer by layer.

    Metrics, in percent: `rotation_layer3` and `flip_layer3` for probes that see features of the
    image and of the transformed image, with the suffix `_single` for those that see the latter
    alone, and with `random_init/` in front for a backbone with fresh weights. Training images are
    clean, with balanced labels; every test image is shown under all labels.

    Args:
        checkpoint: file of a pretraining run.
        layers: after which blocks; integers beyond the depth mean the depth, floats are fractions
            of it. The depth is after the final norm.
        modes: "pair", "single" or both.
        num_train: training images to use, the same number of each class; null takes all.
        probe: further arguments of every stage that trains on stored features.
    """

    name = "transformation"

    def __init__(
        self,
        checkpoint: str,
        layers: Sequence[Layer] = (1, 3, 6, 9, 12),
        modes: Sequence[Mode] = ("pair", "single"),
        num_train: PositiveInt | None = 100_000,
        **probe: Any,
    ) -> None:
        super().__init__(checkpoint, **probe)
        self.layers = probed_layers(layers, self.backbone.depth)
        self.modes = tuple(modes)
        if not modes or len(set(modes)) < len(modes):
            raise ValueError(
                f'model.modes {list(modes)} must name "pair", "single" or both, each once'
            )
        self.num_train = num_train

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        self.check_training(trainer)
        data.setup("fit")
        tasks = list_tasks(self.layers, self.modes, self.baseline)
        heads = VersionHeads(tasks, self.backbone.width, self.hidden, self.learning_rate, self.seed)
        extractor = version_features(self.backbones(), self.layers)
        total = len(data.images("train"))
        wanted = min(self.num_train or total, total)
        self.step_plan(trainer, wanted)  # refused before the pass
        with stored_features(extractor, trainer, folder) as features_of:
            train = features_of(data.clean_loader("train", wanted), wanted)
            num_train = len(train.rows)
            rows = TrainingRows(train, self.step_plan(trainer, num_train))
            probe, reasons = self.fit_heads(trainer, heads, rows, "images")
            num_images = len(data.images("test"))
            tested = features_of(data.clean_loader("test", num_images), num_images)
            size, rank = data.evaluation_batch_size, trainer.global_rank
            accuracies = probe.top1(CleanRows(tested, size, rank, trainer.world_size))
        num_test, metrics, counts = len(tested.rows), {}, {}
        for task, accuracy in zip(tasks, accuracies, strict=True):
            num_labels = len(FAMILIES[task.family])
            metrics[task.name] = accuracy / num_labels
            hits = metrics[task.name] * (num_labels * num_test) / 100
            counts[f"{task.name}_hits"] = round(hits)
        return [
            self.result(
                data,
                metrics,
                num_test,
                counts=counts,
                feature={"layers": self.layers, "pooling": "mean of patch tokens"},
                protocol={"num_train": num_train},
                reasons=reasons,
            )
        ]
