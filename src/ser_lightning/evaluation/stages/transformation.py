"""The transformation stage: can a probe tell from frozen features how an image was turned?

Source: SER Table 7.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.vit import block_number
from ser_lightning.batch import EvaluationBatch
from ser_lightning.data import BatchKey
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.loaders import LazyLoader, step_loader
from ser_lightning.data.plan import Plan
from ser_lightning.evaluation.metrics.accuracy import Accuracy, AccuracyCounter
from ser_lightning.evaluation.stage import Stage, StageResult, random_init

Mode = Literal["pair", "single"]


# Which of the versions below each label of a family means; label 0 is the image as it is.
FAMILIES: Mapping[str, tuple[int, ...]] = {"rotation": (0, 1, 2, 3), "flip": (0, 4)}
NUM_VERSIONS = 5


class Probe(NamedTuple):
    """One probe of a stage.

    Attributes:
        name: of its accuracy among the metrics.
        family: a key of `FAMILIES`.
        mode: "pair" for MLP([f(x), f(g.x)]), "single" for MLP(f(g.x)).
        place: which of the places of the features it reads.
    """

    name: str
    family: str
    mode: Mode
    place: int


def probed_layers(layers: Sequence[int | float], depth: int) -> list[int]:
    """Turns layers of a configuration into sorted numbers of blocks, each once.

    Args:
        layers: integers beyond the depth mean the depth, floats are fractions of it.
        depth: number of blocks.

    Raises:
        ValueError: if there is none, or one is negative.
    """
    numbers = sorted({min(block_number(layer, depth), depth) for layer in layers})
    if not numbers or numbers[0] < 0:
        raise ValueError(f"layers {list(layers)} must name blocks from 0 on; use for instance [3]")
    return numbers


def list_probes(layers: Sequence[int], modes: Sequence[Mode], baseline: bool) -> list[Probe]:
    """Lists all probes of a stage, in the order of their metrics.

    Args:
        layers: numbers of the blocks.
        modes: "pair", "single" or both.
        baseline: whether the features have a second backbone's places, the random one's.
    """
    suffixes = {"pair": "", "single": "_single"}
    return [
        Probe(f"{prefix}{family}_layer{layer}{suffixes[mode]}", family, mode, first + i)
        for first, prefix in ((0, ""), (len(layers), "random_init/"))[: 1 + baseline]
        for mode in modes
        for family in FAMILIES
        for i, layer in enumerate(layers)
    ]


def versions(images: Tensor) -> tuple[Tensor, ...]:
    """Shows square images in every way that a family knows, without any interpolation.

    Args:
        images: (B, 3, S, S).

    Returns:
        `NUM_VERSIONS` tensors of that shape: 0 to 3 quarter turns, then the horizontal flip.
    """
    return (*(torch.rot90(images, turns, (-2, -1)) for turns in range(4)), images.flip(-1))


@torch.no_grad()
def version_features(
    backbones: Sequence[SplitViT], layers: Sequence[int], images: Tensor
) -> Tensor:
    """Averages the patch tokens of every version of every image, the same way at every layer.

    [CLS] is left out: it joins late, and early layers have none.

    Args:
        backbones: frozen, of one width.
        layers: after which blocks; the depth means after the final norm.
        images: (B, 3, S, S).

    Returns:
        (B, NUM_VERSIONS, places, C) float32, places being the layers of the first backbone, then
        those of the next one.
    """
    features = [
        torch.stack([m.float().mean((2, 3)) for m in backbone.token_maps(version, layers)], 1)
        for version in versions(images)
        for backbone in backbones
    ]
    return torch.stack(features, 1).unflatten(1, (NUM_VERSIONS, len(backbones))).flatten(2, 3)


def probe_input(probe: Probe, features: Tensor, label: Tensor) -> Tensor:
    """Picks what a probe sees of images transformed as their labels say.

    Args:
        probe: the probe.
        features: (B, NUM_VERSIONS, places, C) as `version_features`.
        label: (B,) int64 labels of the probe's family.

    Returns:
        (B, 2 C) for a pair, (B, C) for a single image.
    """
    here = features[:, :, probe.place]
    version = torch.tensor(FAMILIES[probe.family], device=label.device)[label]
    moved = here[torch.arange(len(here), device=here.device), version]
    return torch.cat([here[:, 0], moved], 1) if probe.mode == "pair" else moved


def probe_head(probe: Probe, width: int, hidden: int = 1024) -> nn.Sequential:
    """Builds the MLP of a probe: two hidden layers with ReLU.

    Source: the angle prediction of SIE (Garrido et al. 2023), with this input, Adam and 1e-3.

    Args:
        probe: the probe.
        width: channels C of a token.
        hidden: channels of the hidden layers.
    """
    return nn.Sequential(
        nn.Linear(width * (2 if probe.mode == "pair" else 1), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, len(FAMILIES[probe.family])),
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
        )
