"""Heads trained on frozen features: several in one pass, the best chosen on held-out images."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import EvaluationBatch
from ser_lightning.distributed import gather
from ser_lightning.evaluation.features import CleanRows, FeatureBatch
from ser_lightning.evaluation.metrics.accuracy import Accuracy, AccuracyCounter

SELECTION_SHARE = 0.2  # SER: of 50 epochs, from epoch 40 on


class Heads(nn.Module, ABC):
    """Classifiers on the same features, which are trained in one pass and do not interact.

    Attributes:
        num_heads: how many there are, K.
    """

    num_heads: int

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """(B, D) features to (B, K, classes) logits."""

    @abstractmethod
    def objective(self, losses: Tensor) -> Tensor:
        """Unites the heads' losses (K,) so that each head gets its own gradient."""

    @abstractmethod
    def configure(self, num_epochs: int) -> OptimizerLRScheduler:
        """Optimizer and schedule of a training of some epochs."""

    @abstractmethod
    def single(self, index: int) -> nn.Module:
        """A copy of one head: (B, D) features to (B, classes) logits."""

    @abstractmethod
    def describe(self, index: int) -> dict[str, Any]:
        """What sets a head apart from the others, in plain values."""


class Choice(NamedTuple):
    """A head at the end of an epoch.

    Attributes:
        head: its number.
        epoch: after how many epochs.
        holdout_top1: its accuracy on the held-out images, in percent; NaN without any.
        classifier: (B, D) features to (B, classes) logits.
    """

    head: int
    epoch: int
    holdout_top1: float
    classifier: nn.Module


class Probe(L.LightningModule):
    """Trains heads on batches of features, chooses on held-out rows, and is tested.

    All heads are measured on the held-out rows after every epoch. Of the last fifth of the epochs,
    the best head and epoch are chosen (the first of equals). A test measures the chosen head, and
    next to it the one that is best after the last epoch.

    Args:
        heads: to train.
        num_classes: of their logits.

    Attributes:
        holdout: this rank's held-out rows, given by `fit_probe`; None chooses nothing.
        holdout_top1: by epoch, the accuracies (K,) of the heads on the held-out rows, in percent.
        selected: the chosen head; None before training.
        last: the best head after the last epoch; None before training.
        accuracies: of the two on the test rows; empty before a test.
        hits: (rows,) bool, whether the chosen head was right on each of this rank's test rows.
    """

    def __init__(self, heads: Heads, num_classes: int) -> None:
        super().__init__()
        # A split may have fewer images than there are processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.heads = heads
        self.selected_counter = AccuracyCounter(num_classes)
        self.last_counter = AccuracyCounter(num_classes)
        self.holdout: CleanRows | None = None
        self.holdout_top1: list[list[float]] = []
        self.selected: Choice | None = None
        self.last: Choice | None = None
        self.accuracies: list[Accuracy] = []
        self.hits = torch.empty(0, dtype=torch.bool)
        self._tested = nn.ModuleList()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """As the heads want it."""
        return self.heads.configure(_num_epochs(self.trainer))

    def on_fit_start(self) -> None:
        """Forgets an earlier training."""
        self.holdout_top1, self.selected, self.last = [], None, None

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """The heads' cross-entropies, in float32 (or as the heads are)."""
        num_heads = self.heads.num_heads
        with torch.autocast(self.device.type, enabled=False):
            logits = self.heads(self._as_heads(batch.features))
            labels = batch.label.repeat_interleave(num_heads)
            losses = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none")
            losses = losses.view(-1, num_heads).mean(0)
            lowest = losses.detach().nan_to_num(nan=math.inf).amin()
            self.log("loss", lowest, prog_bar=True, logger=False, batch_size=len(batch.label))
            return self.heads.objective(losses)

    def on_train_epoch_end(self) -> None:
        """Measures all heads on the held-out rows, and keeps the best one of the last epochs."""
        if self.holdout is None:
            return
        *hits, total = gather(self.count_hits(self.holdout)[None]).sum(0).tolist()
        top1 = [100 * hit / total for hit in hits]
        self.holdout_top1.append(top1)
        options: dict[str, Any] = {"logger": False, "batch_size": 1, "sync_dist": True}
        self.log("holdout_top1", max(top1), prog_bar=True, **options)  # equal on all ranks
        num_epochs, epoch = _num_epochs(self.trainer), self.current_epoch + 1
        if epoch <= num_epochs - max(1, round(SELECTION_SHARE * num_epochs)):
            return
        best = max(top1)
        if self.selected is None or best > self.selected.holdout_top1:
            self.selected = self._choice(top1.index(best), epoch, best)
        if epoch == num_epochs:
            self.last = self._choice(top1.index(best), epoch, best)

    @torch.no_grad()
    def count_hits(self, rows: CleanRows) -> Tensor:
        """Counts the hits of every head on this rank's rows, and the rows: (K + 1,) int64."""
        counts = torch.zeros(self.heads.num_heads + 1, dtype=torch.int64, device=self.device)
        for number in range(len(rows)):
            features, label = (x.to(self.device) for x in rows[number])
            predicted = self.heads(self._as_heads(features)).argmax(-1)
            counts[:-1] += (predicted == label[:, None]).sum(0)
            counts[-1] += len(label)
        return counts

    def on_fit_end(self) -> None:
        """Takes the only head where nothing was held out."""
        if self.selected is None:
            assert self.heads.num_heads == 1
            self.selected = self._choice(0, self.current_epoch, math.nan)
        self.last = self.last or self.selected

    def on_test_epoch_start(self) -> None:
        """Takes the chosen heads along to the device, and forgets an earlier test."""
        self.hits = self.hits[:0]
        assert self.selected is not None
        assert self.last is not None
        chosen = [self.selected.classifier, self.last.classifier]
        self._tested = nn.ModuleList(chosen).to(self.device)

    def test_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Counts the hits of the chosen heads."""
        with torch.autocast(self.device.type, enabled=False):
            features = self._as_heads(batch.features)
            selected, last = (classifier(features) for classifier in self._tested)
        self.selected_counter.update(selected, batch.label)
        self.hits = torch.cat([self.hits, (selected.argmax(1) == batch.label).cpu()])
        self.last_counter.update(last, batch.label)

    def on_test_epoch_end(self) -> None:
        """Adds up over ranks."""
        self.accuracies = [self.selected_counter.compute(), self.last_counter.compute()]

    def _choice(self, head: int, epoch: int, holdout_top1: float) -> Choice:
        return Choice(head, epoch, holdout_top1, self.heads.single(head).requires_grad_(False))

    def _as_heads(self, features: Tensor) -> Tensor:
        return features.to(next(self.heads.parameters()).dtype)


class CropProbe(Probe):
    """Trains heads on random crops, which pass through the frozen backbone.

    Args:
        backbone: frozen.
        layers: the blocks whose [CLS] tokens are read, through the final norm.
        heads: to train.
        num_classes: of their logits.
    """

    def __init__(
        self, backbone: SplitViT, layers: Sequence[int], heads: Heads, num_classes: int
    ) -> None:
        super().__init__(heads, num_classes)
        self.backbone = backbone
        self.layers = list(layers)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Computes the features of a batch of crops and trains the heads on them."""
        assert isinstance(batch, EvaluationBatch)
        with torch.no_grad():
            features = torch.cat(self.backbone.cls_tokens(batch.pixels, self.layers), dim=1)
        return super().training_step(FeatureBatch(features, batch.label), batch_idx)

    def train(self, mode: bool = True) -> "CropProbe":
        """Sets the mode of the heads; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self


def fit_probe(
    trainer: L.Trainer, probe: Probe, train: DataLoader, holdout: CleanRows | None
) -> None:
    """Trains heads for `trainer.max_epochs` and chooses one.

    Args:
        trainer: may have trained before.
        probe: to train.
        train: batches for its `training_step`.
        holdout: this rank's held-out rows; None where nothing was held out.

    Raises:
        ValueError: if the trainer has no number of epochs, or there are several heads and nothing
            to choose one with.
    """
    _num_epochs(trainer)
    probe.holdout = holdout
    if probe.heads.num_heads > 1 and holdout is None:
        raise ValueError(
            f"{probe.heads.num_heads} heads and no held-out image to choose one with; raise "
            "data.holdout_fraction, or train a single head"
        )
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit_loop.epoch_loop.batch_progress.reset()
    with warnings.catch_warnings():
        # The frozen backbone is meant to be.
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
        trainer.fit(probe, train)


def _num_epochs(trainer: L.Trainer) -> int:
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise ValueError(
            f"trainer.max_epochs {trainer.max_epochs} says not how long to train; the paper trains "
            "50 epochs"
        )
    return trainer.max_epochs
