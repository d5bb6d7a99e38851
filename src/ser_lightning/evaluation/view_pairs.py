"""Regressions on pairs of views of an object: what is trained, and what it is measured on.

Source: SIE's public code (Garrido et al. 2023).
"""

from collections.abc import Mapping, Sequence

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.data import BatchKey
from ser_lightning.data.benchmarks.threediebench_regression import drawn_pairs
from ser_lightning.data.plan import Plan
from ser_lightning.distributed import gather_ragged
from ser_lightning.evaluation.features import CleanRows, Extractor, FeatureBatch, Features
from ser_lightning.evaluation.metrics.latents import relative_latents
from ser_lightning.evaluation.probe import Heads, deep_heads
from ser_lightning.sources.threediebench import NUM_VIEWS


def embeddings(backbones: Sequence[SplitViT]) -> Extractor:
    """(B, backbones, C) embeddings: [CLS] of each backbone through its final norm."""
    shape = len(backbones), backbones[0].width
    return Extractor(backbones, shape, lambda x: torch.stack([each(x) for each in backbones], 1))


class PairHeads(Heads):
    """One MLP for each backbone and target, on the embeddings of both views of a pair.

    A `FeatureBatch` has features (B, 2, backbones, C) here, and in the place of labels all
    targets (B, T) side by side, each of so many numbers as `widths` says. Adam trains the heads,
    without weight decay.
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
        sizes = ((2 * width, widths[target]) for _, target in self.tasks)
        self.heads = nn.ModuleList(deep_heads(sizes, hidden, seed))

    @override
    def forward(self, features: Tensor) -> list[Tensor]:
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


class TrainingPairs(Dataset):
    """Maps a `BatchKey` to this rank's pairs: two views of each object, drawn for the epoch.

    Objects with fewer than two readable views are left out.
    """

    plan: Plan  # of the `objects`, to be given

    def __init__(self, features: Features, latents: np.ndarray) -> None:
        self.features = features
        self.latents = latents
        is_read = np.zeros(latents.shape[0] * NUM_VIEWS, dtype=bool)
        is_read[features.rows] = True
        is_read = is_read.reshape(-1, NUM_VIEWS)
        self.objects = np.flatnonzero(is_read.sum(1) > 1)
        self.num_views = is_read.sum(1)
        self.views = np.argsort(~is_read, axis=1, kind="stable")  # those that were read come first

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, key: BatchKey) -> FeatureBatch:
        indices, _ = self.plan.indices(key)
        objects = self.objects[indices]
        drawn = drawn_pairs(self.plan.seed, key.epoch, objects, self.num_views[objects])
        views = np.take_along_axis(self.views[objects], drawn, 1)
        values = self.features.values[objects[:, None] * NUM_VIEWS + views]
        latents = self.latents[objects[:, None], views]
        slot = self.plan.rank * len(indices) + torch.arange(len(indices))
        return FeatureBatch(torch.from_numpy(values), _targets(latents), slot)


def whole_pairs(features: Features, latents: np.ndarray) -> Features:
    """Features (N, 2, backbones, C) of pairs that were read whole, with targets for labels.

    From those of the views, two in a row for each of the N pairs, and their latents (N, 2, L).
    """
    pairs = features.values.reshape(-1, 2, *features.values.shape[1:])
    is_read = np.zeros(2 * len(pairs), dtype=bool)
    is_read[features.rows] = True
    rows = np.flatnonzero(is_read.reshape(-1, 2).all(1))
    return Features(pairs, _targets(latents[rows]), rows)


@torch.no_grad()
def predictions(
    heads: PairHeads, tested: Features, batch_size: int, trainer: L.Trainer
) -> tuple[list[Tensor], Tensor]:
    """What every head tells of all pairs, in their order, and the truth; a collective call.

    Each rank computes a share of the pairs, of which there may be none.
    """
    rows = CleanRows(tested, batch_size, trainer.global_rank, trainer.world_size)
    weight = next(heads.parameters())
    sizes = [heads.columns[target].stop - heads.columns[target].start for _, target in heads.tasks]
    found = [torch.empty(0, sum(sizes))]
    for number in range(len(rows)):
        told = heads(rows[number].features.to(weight))
        found.append(torch.cat(told, 1).float().cpu())
    everything = gather_ragged(torch.cat(found))
    slots = gather_ragged(torch.from_numpy(rows.slots))
    in_order = everything[slots.argsort()]
    return list(in_order.split(sizes, 1)), tested.label


def _targets(latents: np.ndarray) -> Tensor:
    """All targets (N, T) side by side of pairs of latents (N, 2, L)."""
    found = relative_latents(latents[:, 0], latents[:, 1])
    return torch.from_numpy(np.concatenate(list(found.values()), 1))
