"""The base of all objectives: the one training step, the optimizer, the schedules, the logs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import (
    BranchFeatures,
    EvaluationBatch,
    LossOutput,
    PartitionedBatch,
    ViewFeatures,
)
from ser_lightning.distributed import all_reduce_mean
from ser_lightning.objectives.guard import FiniteGuard
from ser_lightning.optim import OptimizerFactory, scaled_learning_rate, warmup_cosine
from ser_lightning.regularizers import Regularizer

Embeddings = tuple[Tensor, ...]
"""One (B, C) embedding per view."""


class Objective(L.LightningModule, ABC):
    """An invariance objective on the final embedding, with an optional regularizer.

    L = L_invariance + weight * L_regularizer (SER Eq. 3). A subclass implements
    `invariance_loss`, and `target_features` if it has a momentum branch.

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        regularizer: an add-on such as SERRegularizer; null for the plain objective.
        optimizer: makes the optimizer from parameters and learning rate.
        base_learning_rate: peak learning rate per 256 images of the global batch.
        warmup_epochs: epochs of linear warm-up from 0, before the cosine to 0.
        partition: "joint" computes one invariance loss on both sub-batches together, as all
            published numbers do; "separate" computes one per sub-batch and adds them (SER Eq. 3
            to the letter).
        global_batch_size: images per optimizer step; ser-fit takes it from `data`.
        seed: seed of dropout and stochastic depth; ser-fit takes it from `seed_everything`.
    """

    def __init__(
        self,
        backbone: SplitViT,
        regularizer: Regularizer | None = None,
        optimizer: OptimizerFactory = lambda params, lr: torch.optim.AdamW(
            params, lr, weight_decay=0.1, fused=True
        ),
        base_learning_rate: float = 3e-4,
        warmup_epochs: float = 10,
        partition: Literal["joint", "separate"] = "joint",
        global_batch_size: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if regularizer is not None and regularizer.width != backbone.width:
            raise ValueError(
                f"the regularizer is built for tokens of width {regularizer.width}, the backbone "
                f"has {backbone.width}; set `model.init_args.regularizer.init_args.width` to "
                f"{backbone.width}"
            )
        self.backbone = backbone
        self.regularizer = regularizer
        self.optimizer_factory = optimizer
        self.learning_rate = scaled_learning_rate(base_learning_rate, global_batch_size)
        self.warmup_epochs = warmup_epochs
        self.partition = partition
        self.seed = seed
        self._guard = FiniteGuard()

    @abstractmethod
    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        """Pulls the views of an image together.

        Args:
            online: one embedding (B, C) per view, of the online branch.
            target: the same of the momentum branch, detached; None without one.
        """

    def target_features(self, batch: PartitionedBatch) -> BranchFeatures | None:
        """Features by a momentum branch, without gradient; None for objectives without one.

        Called after the online branch's forward pass.
        """
        return None

    def training_step(self, batch: PartitionedBatch, batch_idx: int) -> Tensor:
        """Computes L = L_invariance + weight * L_regularizer; returns it with its gradient."""
        online = encode(self.backbone, batch)
        target = self.target_features(batch)
        invariance = self._invariance(online, target)
        terms, logs = {"invariance": invariance.loss}, dict(invariance.logs)
        total = invariance.loss
        if self.regularizer is not None:
            regularization = self.regularizer.regularize(online, target, batch)
            total = total + self.regularizer.weight * regularization.loss
            terms["equivariance"] = regularization.loss
            logs |= regularization.logs
        self._log_step(
            {"loss": total} | {f"loss/{name}": terms[name] for name in terms}, logs, batch
        )
        return total

    def _invariance(self, online: BranchFeatures, target: BranchFeatures | None) -> LossOutput:
        if self.partition == "joint" or not (online.crop and online.invertible):
            return self.invariance_loss(joint_embeddings(online), joint_embeddings(target))
        parts = [
            self.invariance_loss(joint_embeddings(part), joint_embeddings(part_target))
            for part, part_target in zip(_sub_batches(online), _sub_batches(target), strict=True)
        ]
        return LossOutput(parts[0].loss + parts[1].loss, parts[0].logs)

    def _log_step(
        self, terms: dict[str, Tensor], logs: dict[str, Tensor], batch: PartitionedBatch
    ) -> None:
        """Averages everything over ranks in one call, guards the losses, and logs."""
        scalars = terms | logs
        means = all_reduce_mean(torch.stack([value.detach().float() for value in scalars.values()]))
        if self._trainer is None:
            return
        self._guard.watch(tuple(terms), means[: len(terms)])
        batch_size = len(batch.indices)
        for name, value in zip(scalars, means, strict=True):
            self.log(name, value, prog_bar=name in terms, batch_size=batch_size)
        self.log("schedule/learning_rate", self.optimizers().param_groups[0]["lr"], batch_size=1)  # type: ignore[union-attr]
        self.log(
            "data/unreadable_images",
            batch.num_unreadable.float(),
            on_step=False,
            on_epoch=True,
            reduce_fx="sum",
            sync_dist=True,
            batch_size=batch_size,
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stops the run if a loss term is not finite."""
        self._guard.check(self.global_step)

    def on_train_batch_start(self, batch: PartitionedBatch, batch_idx: int) -> None:
        """Seeds dropout and stochastic depth by step and rank, so that they need no state."""
        place = [self.seed, self.trainer.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]) >> 1)

    def validation_step(
        self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Does nothing: `OnlineEvaluation` measures the backbone on these batches."""

    def test_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Does nothing: see `validation_step`."""

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer; the learning rate follows warm-up and cosine, per step."""
        optimizer = self.optimizer_factory(list(self.trainable_parameters()), self.learning_rate)
        num_steps = self.num_steps
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        if warmup_steps >= num_steps and not getattr(self.trainer, "fast_dev_run", False):
            raise ValueError(
                f"warm-up of {self.warmup_epochs} epochs is not shorter than the run of "
                f"{num_steps / self.steps_per_epoch:g} epochs; lower `model.init_args."
                "warmup_epochs` or raise `trainer.max_epochs`"
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, num_steps, warmup_steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that require a gradient."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run.

        Raises:
            ValueError: the run has no end, so that nothing can be scheduled.
        """
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError("the run has no end; set `trainer.max_epochs` or `trainer.max_steps`")
        return int(steps)

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps of an epoch."""
        return self.trainer.num_training_batches / self.trainer.accumulate_grad_batches


def encode(backbone: nn.Module, batch: PartitionedBatch) -> BranchFeatures:
    """Runs all views of a batch through a backbone, those of equal size in one pass.

    Args:
        backbone: a SplitViT.
        batch: one rank's partitioned batch.

    Returns:
        Token maps and embeddings in the batch's order.
    """
    views = [view.pixels for view in (*batch.crop, *batch.invertible)]
    features: list[ViewFeatures | None] = [None] * len(views)
    shapes = [view.shape[-2:] for view in views]
    for shape in dict.fromkeys(shapes):
        members = [position for position, other in enumerate(shapes) if other == shape]
        outputs = _encode_together(backbone, [views[position] for position in members])
        for position, output in zip(members, outputs, strict=True):
            features[position] = output
    num_crop = len(batch.crop)
    return BranchFeatures(tuple(features[:num_crop]), tuple(features[num_crop:]))  # type: ignore[arg-type]


def _encode_together(backbone: Any, views: Sequence[Tensor]) -> list[ViewFeatures]:
    sizes = [len(view) for view in views]
    prefix = backbone.prefix(torch.cat(list(views)))
    embeddings = backbone.suffix(prefix).split(sizes)
    tokens = prefix.tokens.split(sizes)
    return [ViewFeatures(*pair) for pair in zip(tokens, embeddings, strict=True)]


def joint_embeddings(features: BranchFeatures | None) -> Any:
    """Concatenates the sub-batches, crops first: one embedding (B, C) per view, or None."""
    if features is None:
        return None
    if not (features.crop and features.invertible):
        return tuple(view.embedding for view in features.crop or features.invertible)
    return tuple(
        torch.cat([crop.embedding, invertible.embedding])
        for crop, invertible in zip(features.crop, features.invertible, strict=True)
    )


def _sub_batches(features: BranchFeatures | None) -> Sequence[BranchFeatures | None]:
    if features is None:
        return (None, None)
    return (features._replace(invertible=()), features._replace(crop=()))
