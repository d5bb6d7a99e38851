"""The stage of 3DIEBench's regressions: how was the object turned, and how were colours changed?

Source: SIE's public code (Garrido et al. 2023): an MLP on the representations of two views of an
object, side by side, with Adam; R2 over pairs of unseen objects.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.data import BatchKey
from ser_lightning.data.benchmarks.threediebench_regression import (
    ViewPairs,
    ViewPairsDataModule,
    drawn_pairs,
)
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.plan import Plan
from ser_lightning.distributed import gather_ragged
from ser_lightning.evaluation.features import CleanRows, Extractor, FeatureBatch, Features
from ser_lightning.evaluation.metrics.latents import joint_r2, relative_latents, target_widths
from ser_lightning.evaluation.probe import Heads, Probe, deep_head, fit_probe
from ser_lightning.evaluation.stage import Stage, StageResult, check_finite
from ser_lightning.evaluation.stored import StoredFeatures, rows_loader, step_plan, step_size
from ser_lightning.numbers import Positive, PositiveInt, checked
from ser_lightning.optim import RunLength
from ser_lightning.sources.base import ImageSet
from ser_lightning.sources.threediebench import NUM_VIEWS, ObjectImages


class Embeddings(Extractor):
    """(B, backbones, C) embeddings: [CLS] of each backbone through its final norm."""

    def __init__(self, backbones: Sequence[SplitViT]) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.shape = (len(backbones), backbones[0].width)

    @override
    def forward(self, pixels: Tensor) -> Tensor:
        return torch.stack([backbone(pixels) for backbone in self.backbones], 1)


class PairHeads(Heads):
    """One MLP for each backbone and target, on the embeddings of both views of a pair.

    A `FeatureBatch` has features (B, 2, backbones, C) here, and in the place of labels all
    targets (B, T) side by side. Adam trains the heads, without weight decay.

    Args:
        widths: how many numbers each target has.
        num_backbones: how many there are.
        width: channels C.
        hidden: channels of the two hidden layers.
        learning_rate: learning rate of Adam.
        seed: of the initial weights.
    """

    chooses = False

    def __init__(
        self,
        widths: Mapping[str, int],
        num_backbones: int,
        width: int,
        hidden: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.tasks = [(place, target) for place in range(num_backbones) for target in widths]
        self.num_heads = len(self.tasks)
        ends = np.cumsum(list(widths.values()))
        self.columns = {
            target: slice(int(end) - size, int(end))
            for (target, size), end in zip(widths.items(), ends, strict=True)
        }
        self.learning_rate = learning_rate
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(
                deep_head(2 * width, widths[target], hidden) for _, target in self.tasks
            )

    @override
    def forward(self, features: Tensor) -> list[Tensor]:  # type: ignore[override]
        """What every head tells from (B, 2, backbones, C) features."""
        pairs = [features[:, :, place].flatten(1) for place, _ in self.tasks]
        return [head(pair) for head, pair in zip(self.heads, pairs, strict=True)]

    @override
    def losses(self, batch: FeatureBatch) -> Tensor:
        found = zip(self.tasks, self(batch.features), strict=True)
        return torch.stack([
            F.mse_loss(values.float(), batch.label[:, self.columns[target]])
            for (_, target), values in found
        ])  # fmt: skip

    @override
    def configure(self, length: RunLength) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.learning_rate)


class TrainingPairs(Dataset):
    """Maps a `BatchKey` to this rank's pairs: two views of each object, drawn for the epoch.

    Objects with fewer than two readable views are left out.
    """

    def __init__(self, features: Features, latents: np.ndarray) -> None:
        self.features = features
        self.latents = latents
        is_read = np.zeros(latents.shape[0] * NUM_VIEWS, dtype=bool)
        is_read[features.rows] = True
        is_read = is_read.reshape(-1, NUM_VIEWS)
        self.objects = np.flatnonzero(is_read.sum(1) > 1)
        self.num_views = is_read.sum(1)
        self.views = np.argsort(~is_read, axis=1, kind="stable")  # those that were read come first
        self.plan: Plan | None = None

    def __len__(self) -> int:
        assert self.plan is not None
        return self.plan.steps_per_epoch

    def __getitem__(self, key: BatchKey) -> FeatureBatch:
        assert self.plan is not None
        indices, _ = self.plan.indices(key)
        objects = self.objects[indices]
        drawn = drawn_pairs(self.plan.seed, key.epoch, objects, self.num_views[objects])
        views = np.take_along_axis(self.views[objects], drawn, 1)
        values = self.features.values[objects[:, None] * NUM_VIEWS + views]
        latents = self.latents[objects[:, None], views]
        slot = self.plan.rank * len(indices) + torch.arange(len(indices))
        return FeatureBatch(torch.from_numpy(values), _targets(latents), slot)


@checked
class ThreeDIEBenchRegressionStage(Stage):
    """Measures by R2 how well the change between two views of an object is told.

    Metrics: `r2/rotation` for the quaternion of the relative rotation, `r2/colour` for the hues of
    floor and light, on 3DIEBench-T also `r2/translation_object` and `r2/translation_base`; with
    `random_init/` in front for a backbone with fresh weights. 1 is exact, 0 as good as a constant.
    A folder of 3DIEBench-OOD gives a record of its own, by the same heads. Nothing is selected:
    the heads after the last epoch count.

    Differs: features are computed once, in evaluation mode (SIE's ResNet keeps updating its batch
    norms); images are resized to the backbone's size and normalised as in its training. The heads
    of all targets train in one pass, and do not interact.

    Args:
        checkpoint: file of a pretraining run.
        batch_size: pairs per step, over all devices; all of them where there are no more.
        learning_rate: learning rate of Adam.
        hidden: channels of the two hidden layers.
        baseline: whether to measure a randomly initialised backbone as well.
        stage: further arguments of every stage.
    """

    name = "3diebench-regression"
    trains = True
    needs_labels = False
    folders = (("3diebench", "data.source.root"),)
    further_folders = (("3diebench-ood", "data.out_of_range"),)

    def __init__(
        self,
        checkpoint: str,
        batch_size: PositiveInt = 256,
        learning_rate: Positive = 1e-3,
        hidden: PositiveInt = 1024,
        baseline: bool = True,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.hidden = hidden
        self.baseline = baseline

    @override
    def measured_sets(self, data: LabelledDataModule, dataset: str | None) -> Sequence[ImageSet]:
        assert isinstance(data, ViewPairsDataModule)
        beyond = dataset is not None and data.beyond is not None
        return [data.beyond] if beyond and data.beyond else super().measured_sets(data, dataset)

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        if not isinstance(data, ViewPairsDataModule):
            raise ValueError(
                f"{type(data).__name__} has no pairs of views; use --data ViewPairsDataModule with "
                "the source ThreeDIEBench"
            )
        self.check_training(trainer)
        data.setup("fit")
        train, test = data.images("train"), data.images("test")
        assert isinstance(train, ObjectImages)
        assert isinstance(test, ViewPairs)
        step_size(trainer, len(train.folders), self.batch_size)  # refused before the pass
        latents, truth = train.latents(), test.latents()
        beyond = data.beyond.latents() if data.beyond is not None else None
        backbones = [self.backbone, *([self.random_backbone()] if self.baseline else [])]
        widths = target_widths(latents.shape[2])
        what = self.backbone.width, self.hidden, self.learning_rate, self.seed
        heads = PairHeads(widths, len(backbones), *what)
        with StoredFeatures(Embeddings(backbones), trainer, folder) as stored:
            pairs = TrainingPairs(stored.of(data.clean_loader("train"), len(train)), latents)
            num_train = len(pairs.objects)
            pairs.plan = step_plan(trainer, num_train, self.batch_size, self.seed)
            probe = Probe(heads)
            fit_probe(trainer, probe, rows_loader(pairs, trainer), None)
            reasons = self.shortened(trainer)
            size = step_size(trainer, num_train, self.batch_size)
            if size < self.batch_size:
                reasons.append(f"{size} pairs a step for want of {self.batch_size}")
            check_finite(heads, "weights of the heads", "lower model.learning_rate")
            probe.to(trainer.strategy.root_device)
            protocol = {"num_train": num_train}
            sets: list[tuple[ViewPairs, np.ndarray, str | None]] = [(test, truth, None)]
            if data.beyond is not None and beyond is not None:
                sets.append((data.beyond, beyond, f"{data.dataset_name}_out_of_range"))
            return [
                self._measured(trainer, data, stored, probe, images, told, name, protocol, reasons)
                for images, told, name in sets
            ]

    def _measured(
        self,
        trainer: L.Trainer,
        data: ViewPairsDataModule,
        stored: StoredFeatures,
        probe: Probe,
        images: ViewPairs,
        latents: np.ndarray,
        dataset: str | None,
        protocol: Mapping[str, Any],
        reasons: Sequence[str],
    ) -> StageResult:
        """The R2 of every head on the pairs of a set."""
        name = "test" if dataset is None else "out of range"
        features = stored.of(data.pairs_loader(images, name), len(images))
        tested = whole_pairs(features, latents)
        left_out = len(images) // 2 - len(tested.rows)
        if left_out:
            reasons = [*reasons, f"{left_out} pairs with an unreadable view were left out"]
        predicted, truth = predictions(probe, tested, data.evaluation_batch_size, trainer)
        heads = probe.heads
        assert isinstance(heads, PairHeads)
        metrics = {
            f"{'random_init/' if place else ''}r2/{target}": joint_r2(
                values, truth[:, heads.columns[target]]
            )
            for (place, target), values in zip(heads.tasks, predicted, strict=True)
        }
        return self.result(
            data,
            metrics,
            2 * len(tested.rows),
            dataset=dataset,
            counts={"pairs": len(tested.rows)},
            feature={"cls_of_blocks": [self.backbone.depth], "norm": "final", "views": 2},
            protocol=protocol,
            reasons=reasons,
        )


def whole_pairs(features: Features, latents: np.ndarray) -> Features:
    """Features (N, 2, backbones, C) of pairs that were read whole, with targets for labels.

    Args:
        features: of the views, two in a row for each of the N pairs.
        latents: (N, 2, L).
    """
    pairs = features.values.reshape(-1, 2, *features.values.shape[1:])
    is_read = np.zeros(2 * len(pairs), dtype=bool)
    is_read[features.rows] = True
    rows = np.flatnonzero(is_read.reshape(-1, 2).all(1))
    return Features(pairs, _targets(latents[rows]), rows)


@torch.no_grad()
def predictions(
    probe: Probe, tested: Features, batch_size: int, trainer: L.Trainer
) -> tuple[list[Tensor], Tensor]:
    """What every head tells of all pairs, in their order, and the truth; a collective call.

    Each rank computes a share of the pairs, of which there may be none.
    """
    rows = CleanRows(tested, batch_size, trainer.global_rank, trainer.world_size)
    heads, device = probe.heads, next(probe.parameters()).device
    assert isinstance(heads, PairHeads)
    sizes = [heads.columns[target].stop - heads.columns[target].start for _, target in heads.tasks]
    found = [torch.empty(0, sum(sizes))]
    for number in range(len(rows)):
        told = heads(rows[number].features.to(device))
        found.append(torch.cat(told, 1).float().cpu())
    everything = gather_ragged(torch.cat(found))
    slots = gather_ragged(torch.from_numpy(rows.slots))
    in_order = everything[slots.argsort()]
    return list(in_order.split(sizes, 1)), tested.label


def _targets(latents: np.ndarray) -> Tensor:
    """All targets (N, T) side by side of pairs of latents (N, 2, L)."""
    found = relative_latents(latents[:, 0], latents[:, 1])
    return torch.from_numpy(np.concatenate(list(found.values()), 1))
