"""Heads trained on frozen features: several in one pass, the best chosen on held-out images.

Which ones, such as the grid of learning rates, the stages say: `stages/linear.py`, `stages/mlp.py`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import EvaluationBatch
from ser_lightning.distributed import gather
from ser_lightning.evaluation.features import CleanRows, FeatureBatch
from ser_lightning.evaluation.metrics.accuracy import top_hits
from ser_lightning.evaluation.stage import fit_on_frozen
from ser_lightning.run_length import RunLength, before_resuming, run_length
from ser_lightning.step_logs import log_loss

SELECTION_SHARE = 0.2  # SER: of 50 epochs, from epoch 40 on


class Heads(nn.Module):
    """Classifiers on the same features, which are trained in one pass and do not interact.

    Its `forward` maps (B, D) features to (B, K, classes) logits of the K heads, unless a subclass
    has losses and hits of its own.
    """

    chooses: ClassVar[bool] = True
    """Whether one of them is to be chosen on held-out images."""

    num_heads: int
    learning_rate: float

    def losses(self, batch: FeatureBatch) -> Tensor:
        """(K,) cross-entropies of a batch."""
        logits = self(batch.features.flatten(1))
        labels = batch.label.repeat_interleave(self.num_heads)
        losses = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none")
        return losses.view(-1, self.num_heads).mean(0)

    def hits(self, batch: FeatureBatch) -> Tensor:
        """(K,) int64 numbers of right images of a batch."""
        return (self(batch.features.flatten(1)).argmax(-1) == batch.label[:, None]).sum(0)

    def objective(self, losses: Tensor) -> Tensor:
        """The heads' losses (K,) in one, so that each head gets its own gradient."""
        return losses.sum()

    def configure(self, length: RunLength) -> OptimizerLRScheduler:
        """Optimizer and schedule of a training: by default Adam at a constant rate."""
        return torch.optim.Adam(self.parameters(), self.learning_rate)

    def single(self, index: int) -> nn.Module:
        """A copy of one head: (B, D) features to (B, classes) logits."""
        raise TypeError(f"none of the heads of {type(self).__name__} is chosen")

    def describe(self, index: int) -> dict[str, Any]:
        """What sets a head apart from the others, in plain values."""
        return {}


def deep_heads(sizes: Iterable[tuple[int, int]], hidden: int, seed: int) -> list[nn.Sequential]:
    """MLPs of three linear layers with ReLU between them, one for each (inputs, outputs).

    Source: the deep head of SIE (Garrido et al. 2023), for classes and for angles. Their initial
    weights are PyTorch's default, drawn by the seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [
            nn.Sequential(
                nn.Linear(inputs, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, outputs),
            )
            for inputs, outputs in sizes
        ]


class Choice(NamedTuple):
    """A head at the end of an epoch, and its held-out accuracy in percent; NaN without images."""

    head: int
    epoch: int
    holdout_top1: float
    classifier: nn.Module


class Probe(L.LightningModule):
    """Trains heads on batches of features, chooses on held-out rows, and is tested.

    All heads are measured on the held-out rows after every epoch. Of the last fifth of the epochs,
    the best head and epoch are chosen (the first of equals). A test measures the chosen head, and
    next to it the one that is best after the last epoch.

    Attributes:
        holdout: this rank's held-out rows, given by `fit_probe`; None chooses nothing.
        holdout_top1: by epoch, the accuracies (K,) of the heads on the held-out rows, in percent.
        selected: the chosen head; None before training.
        last: the best head after the last epoch; None before training.
        hits: (rows, 4) bool, `top_hits` of the two on each of this rank's test rows.
    """

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.holdout: CleanRows | None = None
        self.holdout_top1: list[list[float]] = []
        self.selected: Choice | None = None
        self.last: Choice | None = None
        self.hits = torch.empty(0, 4, dtype=torch.bool)
        self._tested = nn.ModuleList()

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.heads.configure(run_length(self.trainer))

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        before_resuming(self, checkpoint)

    @override
    def on_fit_start(self) -> None:
        self.holdout_top1, self.selected, self.last = [], None, None

    @override
    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            losses = self.heads.losses(self._as_heads(batch))
            lowest = losses.detach().nan_to_num(nan=math.inf).amin()
            log_loss(self, "loss", lowest, logger=False, batch_size=len(batch.label))
            return self.heads.objective(losses)

    @override
    def on_train_epoch_end(self) -> None:
        if self.holdout is None:
            return
        top1 = self.top1(self.holdout)
        self.holdout_top1.append(top1)
        options: dict[str, Any] = {"logger": False, "batch_size": 1, "sync_dist": True}
        self.log("holdout_top1", max(top1), prog_bar=True, **options)  # equal on all ranks
        num_epochs, epoch = run_length(self.trainer).num_epochs, self.current_epoch + 1
        if epoch <= num_epochs - max(1, round(SELECTION_SHARE * num_epochs)):
            return
        best = max(top1)
        if self.selected is None or best > self.selected.holdout_top1:
            self.selected = self._choice(top1.index(best), epoch, best)
        self.last = self._choice(top1.index(best), epoch, best)

    def top1(self, rows: CleanRows) -> list[float]:
        """The accuracy of every head in percent, over all ranks' rows; a collective call."""
        *hits, total = gather(self.count_hits(rows)[None]).sum(0).tolist()
        return [100 * hit / total for hit in hits]

    @torch.no_grad()
    def count_hits(self, rows: CleanRows) -> Tensor:
        """Counts the hits of every head on this rank's rows, and the rows: (K + 1,) int64."""
        counts = torch.zeros(self.heads.num_heads + 1, dtype=torch.int64, device=self.device)
        for number in range(len(rows)):
            batch = FeatureBatch(*(x.to(self.device) for x in rows[number]))
            counts[:-1] += self.heads.hits(self._as_heads(batch))
            counts[-1] += len(batch.label)
        return counts

    @override
    def on_fit_end(self) -> None:
        if self.selected is None and self.holdout is not None:
            raise ValueError(
                f"the training ended after {len(self.holdout_top1)} of "
                f"{run_length(self.trainer).num_epochs} epochs, before any of the last fifth, of "
                "which one is chosen; leave out what stops it early, or shorten it by "
                "trainer.max_epochs"
            )
        if self.selected is None and self.heads.chooses:
            assert self.heads.num_heads == 1
            self.selected = self._choice(0, self.current_epoch, math.nan)
        self.last = self.last or self.selected

    @override
    def on_test_epoch_start(self) -> None:
        self.hits = self.hits[:0]
        assert self.selected is not None
        assert self.last is not None
        chosen = [self.selected.classifier, self.last.classifier]
        self._tested = nn.ModuleList(chosen).to(self.device)

    @override
    def test_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        with torch.autocast(self.device.type, enabled=False):
            features = self._as_heads(batch).features.flatten(1)
            hits = [top_hits(classifier(features), batch.label) for classifier in self._tested]
        self.hits = torch.cat([self.hits, torch.cat(hits, 1).cpu()])

    def selection(self) -> dict[str, Any]:
        """What was chosen on held-out images, and what the heads reached there, in plain values."""
        assert self.selected is not None
        head, epoch, holdout_top1, _ = self.selected
        return {
            **self.heads.describe(head),
            "epoch": epoch,
            "holdout_top1": None if math.isnan(holdout_top1) else holdout_top1,
            "holdout_top1_last_epoch": self.holdout_top1[-1] if self.holdout_top1 else None,
        }

    def _choice(self, head: int, epoch: int, holdout_top1: float) -> Choice:
        return Choice(head, epoch, holdout_top1, self.heads.single(head).requires_grad_(False))

    def _as_heads(self, batch: FeatureBatch) -> FeatureBatch:
        kind = next(self.heads.parameters()).dtype
        return batch._replace(features=batch.features.to(kind))


class CropProbe(Probe):
    """Trains heads on crops' [CLS] after some blocks of the frozen backbone, by the final norm."""

    def __init__(self, backbone: SplitViT, layers: Sequence[int], heads: Heads) -> None:
        super().__init__(heads)
        self.backbone = backbone
        self.layers = list(layers)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert isinstance(batch, EvaluationBatch)
        with torch.no_grad():
            features = torch.cat(self.backbone.cls_tokens(batch.pixels, self.layers), dim=1)
        return super().training_step(FeatureBatch(features, batch.label, batch.indices), batch_idx)

    @override
    def train(self, mode: bool = True) -> "CropProbe":
        super().train(mode)
        self.backbone.eval()  # frozen
        return self


def fit_probe(
    trainer: L.Trainer, probe: Probe, train: DataLoader, holdout: CleanRows | None
) -> None:
    """Trains heads as long as the trainer says, which may have trained before, and chooses one.

    Raises:
        ValueError: if there are several heads and nothing to choose one with, or the trainer would
            let heads interact.
    """
    if trainer.gradient_clip_val:
        raise ValueError(
            f"trainer.gradient_clip_val {trainer.gradient_clip_val} would shorten the gradients of "
            "all heads together, each of which trains as if alone; leave it out"
        )
    probe.holdout = holdout
    if probe.heads.chooses and probe.heads.num_heads > 1 and holdout is None:
        raise ValueError(
            f"{probe.heads.num_heads} heads and no held-out image to choose one with; raise "
            "data.holdout_fraction, or train a single head"
        )
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit_loop.epoch_loop.batch_progress.reset()
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.reset()
    fit_on_frozen(trainer, probe, train)
