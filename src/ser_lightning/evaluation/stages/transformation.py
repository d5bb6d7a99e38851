"""The transformation stage: can a probe tell from frozen features how an image was turned?

Source: SER Table 7.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import EvaluationBatch
from ser_lightning.data import BatchKey
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.loader import LazyLoader, step_loader
from ser_lightning.data.partition import Plan
from ser_lightning.evaluation.classifier import Accuracy, AccuracyCounter
from ser_lightning.evaluation.random_init import random_init
from ser_lightning.evaluation.stage import Stage, StageResult
from ser_lightning.evaluation.transformation import (
    FAMILIES,
    NUM_VERSIONS,
    Mode,
    Probe,
    list_probes,
    probe_head,
    probe_input,
    probed_layers,
    version_features,
)


class ProbeBatch(NamedTuple):
    """Features of training images, and their places in the global batch, which give the labels.

    Attributes:
        features: (B, NUM_VERSIONS, places, C) float32.
        slot: (B,) int64 places in the global batch, whose images are in random order.
    """

    features: Tensor
    slot: Tensor


class VersionPass(L.LightningModule):
    """Writes the features of all versions of a clean loader's images into a file.

    Args:
        backbones: frozen.
        layers: after which blocks.
        path: of the `.npy` file, on a disk that all processes see.
        num_images: of the loader, over all processes.
    """

    def __init__(
        self, backbones: Sequence[SplitViT], layers: Sequence[int], path: Path, num_images: int
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.layers = tuple(layers)
        self.path = path
        width = backbones[0].width
        self.shape = (num_images, NUM_VERSIONS, len(backbones) * len(self.layers), width)
        self._rows = np.empty(0)

    def setup(self, stage: str) -> None:
        """Makes the file in one process; the others wait for it."""
        if self.trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(self.path, "w+", np.float32, self.shape).flush()
        self.trainer.strategy.barrier("file allocated")
        self._rows = np.load(self.path, mmap_mode="r+")

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Computes the features of a batch."""
        features = version_features(list(self.backbones), self.layers, batch.pixels)  # type: ignore[arg-type]
        self._rows[batch.indices.cpu().numpy()] = features.cpu().numpy()

    def on_test_end(self) -> None:
        """Writes what is still in memory, and waits for the others."""
        self._rows.flush()  # type: ignore[attr-defined]
        self.trainer.strategy.barrier("file written")


class FeatureRows(Dataset):
    """Maps a `BatchKey` to this rank's rows of a file of features.

    Args:
        path: of the file.
        plan: which rows a step takes.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, key: BatchKey) -> ProbeBatch:
        indices, _ = self.plan.indices(key)
        rows = np.load(self.path, mmap_mode="r")[indices]
        slot = torch.arange(len(indices)) + self.plan.rank * len(indices)
        return ProbeBatch(torch.from_numpy(rows), slot)


class ProbeTraining(L.LightningModule):
    """Trains all probes at once on stored features.

    The heads share nothing: the sum of their losses gives each the gradient of its own loss.

    Args:
        probes: the probes.
        width: channels of a token.
        hidden: channels of the hidden layers.
        learning_rate: of Adam, without weight decay.
        seed: of the heads' weights.

    Attributes:
        heads: one MLP per probe.
    """

    def __init__(
        self, probes: Sequence[Probe], width: int, hidden: int, learning_rate: float, seed: int
    ) -> None:
        super().__init__()
        self.probes = tuple(probes)
        self.learning_rate = learning_rate
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(probe_head(p, width, hidden) for p in probes)

    def training_step(self, batch: ProbeBatch, batch_idx: int) -> Tensor:
        """Gives every label to the same number of images, in an order of its own each epoch."""
        losses = []
        for probe, head in zip(self.probes, self.heads, strict=True):
            label = batch.slot % len(FAMILIES[probe.family])
            logits = head(probe_input(probe, batch.features, label))
            losses.append(F.cross_entropy(logits.float(), label))
        loss = torch.stack(losses).sum()
        self.log("loss", loss.detach() / len(losses), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at a constant learning rate."""
        return torch.optim.Adam(self.heads.parameters(), self.learning_rate)


class ProbeTest(L.LightningModule):
    """Counts how often trained probes are right about test images.

    Args:
        backbones: frozen.
        layers: after which blocks.
        probes: the probes.
        heads: one trained MLP per probe.

    Attributes:
        accuracies: by name of a probe, on every process, after `trainer.test`.
    """

    accuracies: dict[str, Accuracy]

    def __init__(
        self,
        backbones: Sequence[SplitViT],
        layers: Sequence[int],
        probes: Sequence[Probe],
        heads: nn.ModuleList,
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.layers = tuple(layers)
        self.probes = tuple(probes)
        self.heads = heads
        self.counters = nn.ModuleList(AccuracyCounter(len(FAMILIES[p.family])) for p in probes)

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Shows every image under every label of every probe."""
        features = version_features(list(self.backbones), self.layers, batch.pixels)  # type: ignore[arg-type]
        parts = zip(self.probes, self.heads, self.counters, strict=True)
        for probe, head, counter in parts:
            for number in range(len(FAMILIES[probe.family])):
                label = torch.full_like(batch.indices, number)
                counter.update(head(probe_input(probe, features, label)).float(), label)  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        """Unites the processes."""
        parts = zip(self.probes, self.counters, strict=True)
        self.accuracies = {probe.name: counter.compute() for probe, counter in parts}  # type: ignore[operator]


class TransformationStage(Stage):
    """Measures how well rotations (4-way) and flips (2-way) are predicted, layer by layer.

    Metrics, in percent: `rotation_layer3` and `flip_layer3` for probes that see features of the
    image and of the transformed image, with the suffix `_single` for those that see the latter
    alone, and with `random_init/` in front for a backbone with fresh weights. Training images are
    clean, with balanced labels; every test image is shown under all labels. Nothing is selected:
    the heads after the last epoch count.

    Args:
        checkpoint: file of a pretraining run.
        layers: after which blocks; integers beyond the depth mean the depth, floats are fractions
            of it. The depth is after the final norm.
        modes: "pair", "single" or both.
        num_train: training images to use, the same number of each class; null takes all.
        batch_size: images per step, over all devices.
        learning_rate: of Adam.
        hidden: channels of the two hidden layers.
        baseline: whether to probe a randomly initialised backbone as well.
        stage: further arguments of every stage.
    """

    name = "transformation"

    def __init__(
        self,
        checkpoint: str,
        layers: Sequence[int | float] = (1, 3, 6, 9, 12),
        modes: Sequence[Mode] = ("pair", "single"),
        num_train: int | None = 100_000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        hidden: int = 1024,
        baseline: bool = True,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.layers = probed_layers(layers, self.backbone.depth)
        self.modes = tuple(modes)
        self.num_train = num_train
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.hidden = hidden
        self.baseline = baseline

    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        """Stores the training features, trains all probes on them, tests."""
        data.setup("fit")
        backbones = [self.backbone]
        if self.baseline:
            backbones.append(random_init(self.backbone, self.seed))
        probes = list_probes(self.layers, self.modes, self.baseline)
        total = len(data.images("train"))
        num_train = total if self.num_train is None else min(self.num_train, total)
        path = folder / "features" / f"transformation-{self.checkpoint_hash[:16]}.partial.npy"
        width = self.backbone.width
        module = ProbeTraining(probes, width, self.hidden, self.learning_rate, self.seed)
        plan = Plan(
            num_train, self.batch_size, 0, self.seed, trainer.global_rank, trainer.world_size
        )
        try:
            store = VersionPass(backbones, self.layers, path, num_train)
            trainer.test(store, data.clean_loader("train", num_train), verbose=False)
            trainer.fit(module, self._train_loader(trainer, data, FeatureRows(path, plan)))
        finally:
            if trainer.is_global_zero:
                path.unlink(missing_ok=True)
        test = ProbeTest(backbones, self.layers, probes, module.heads)
        trainer.test(test, data.clean_loader("test"), verbose=False)
        num_images = {
            test.accuracies[p.name].num_samples // len(FAMILIES[p.family]) for p in probes
        }
        assert num_images == {len(data.images("test"))}, "every image counts once for every label"
        return [
            self.result(
                data,
                {name: accuracy.top1 for name, accuracy in test.accuracies.items()},
                num_images.pop(),
                counts={f"{n}_hits": a.num_hits for n, a in test.accuracies.items()},
                feature={"layers": self.layers, "pooling": "mean of patch tokens"},
                protocol={
                    "modes": list(self.modes),
                    "num_train": num_train,
                    "epochs": trainer.max_epochs,
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "hidden": self.hidden,
                    "optimizer": "Adam",
                    "labels_per_test_image": "all",
                },
            )
        ]

    def _train_loader(
        self, trainer: L.Trainer, data: LabelledDataModule, dataset: FeatureRows
    ) -> LazyLoader:
        return step_loader(
            dataset,
            len(dataset),
            lambda: BatchKey(trainer.current_epoch, 0),
            data.num_workers,
            torch.cuda.is_available(),
        )
