"""The base of all objectives: the one training step, the optimizer, the schedules, the logs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.backbones import Branch, SplitViT
from ser_lightning.backbones.compiled import require_compiler
from ser_lightning.batch import BranchFeatures, EvaluationBatch, LossOutput, PartitionedBatch, Tap
from ser_lightning.distributed import all_reduce_mean
from ser_lightning.numbers import (
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Probability,
    checked,
)
from ser_lightning.objectives.encode import encode, joint_embeddings, sub_batches
from ser_lightning.objectives.finite_guard import FiniteGuard, NonFinite, Pass
from ser_lightning.objectives.replay_file import stop
from ser_lightning.optim import (
    OptimizerFactory,
    Scaling,
    check_optimizer,
    clip_each_,
    decay_groups,
    scaled_learning_rate,
    scheduled,
    warmup_cosine,
)
from ser_lightning.regularizers import Regularizer
from ser_lightning.run_length import Place, RunLength, before_resuming, is_trial, run_length
from ser_lightning.step_logs import log_loss, log_setting
from ser_lightning.trainer_rules import check_trainer

Embeddings = tuple[Tensor, ...]
"""One (B, C) embedding per view."""


@checked
class Objective(L.LightningModule, ABC):
    """An invariance objective on the final embedding, with an optional regularizer.

    L = L_invariance + weight * L_regularizer (SER Eq. 3). A subclass implements
    `invariance_loss`, and `target_features` if it has a momentum branch.

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        regularizer: an add-on such as SERRegularizer; null for the plain objective.
        optimizer: makes the optimizer from parameters and learning rate.
        base_learning_rate: peak learning rate for a global batch of 256 images.
        learning_rate_scaling: how the peak grows with the global batch size, "linear" or "sqrt".
        warmup_epochs: epochs of linear warm-up from 0, before the cosine.
        final_learning_rate: where the cosine ends, as a share of the peak.
        decay_biases: whether weight decay acts on biases, norms and other vectors too, as in
            MoCo-v3. False sets it to 0 for them, with which LARS does not adapt them either.
        clip_parameter_norm: longest gradient of each single parameter, as DINO clips; null for
            none. `trainer.gradient_clip_val` clips the norm of all of them together instead.
        partition: "joint" computes one invariance loss on both sub-batches together, as all
            published numbers do; "separate" computes one per sub-batch and adds them (SER Eq. 3
            to the letter).
        global_batch_size: images per optimizer step; ser-fit takes it from `data`.
        seed: seed of dropout and stochastic depth; ser-fit takes it from `seed_everything`.
        compile: run the blocks through `torch.compile`: the same losses but for rounding, after
            a minute or more of compiling at the start.
    """

    accepts_local_views: ClassVar[bool] = False
    """Whether the loss knows what to do with local crops beside the two global views."""

    result_branch: ClassVar[Branch] = "online"
    """Whose weights an evaluation takes for the run's result, unless it is told otherwise."""

    def __init__(
        self,
        backbone: SplitViT,
        regularizer: Regularizer | None = None,
        optimizer: OptimizerFactory = lambda params, lr: torch.optim.AdamW(
            params, lr, weight_decay=0.1, fused=True
        ),
        base_learning_rate: Positive = 3e-4,
        learning_rate_scaling: Scaling = "linear",
        warmup_epochs: NonNegative = 10,
        final_learning_rate: Probability = 0.0,
        decay_biases: bool = True,
        clip_parameter_norm: Positive | None = None,
        partition: Literal["joint", "separate"] = "joint",
        global_batch_size: PositiveInt = 2048,
        seed: NonNegativeInt = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        backbone.compiles = compile
        if regularizer is not None:
            first, depth = backbone.first_with_cls, backbone.depth
            taps = [Tap(n, n >= first, n == depth) for n in backbone.layers]
            regularizer.attach(taps, backbone.width)
        self.backbone = backbone
        self.regularizer = regularizer
        self.optimizer_factory = optimizer
        self.learning_rate = scaled_learning_rate(
            base_learning_rate, global_batch_size, learning_rate_scaling
        )
        self.warmup_epochs = warmup_epochs
        self.final_learning_rate = final_learning_rate
        self.decay_biases = decay_biases
        self.clip_parameter_norm = clip_parameter_norm
        self.partition = partition
        self.seed = seed
        self.outside = Place(0, RunLength(1, 1, ""))  # of a loss that is computed outside of a run
        self._guard = FiniteGuard()
        self._gradient_norm: Tensor | None = None

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            check_trainer(self.trainer, self)
        if self.backbone.compiles:
            require_compiler(self.trainer.strategy.root_device)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        before_resuming(self, checkpoint)

    @abstractmethod
    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        """Pulls the views of an image together.

        Args:
            online: one embedding (B, C) per view, of the online branch.
            target: the same of the momentum branch, detached; None without one.
        """

    def target_features(self, batch: PartitionedBatch) -> BranchFeatures | None:
        """Features by a momentum branch, detached, after the online pass; None without one."""
        return None

    @override
    def training_step(self, batch: PartitionedBatch, batch_idx: int) -> Tensor:
        terms, logs = self.losses(batch)
        self._log_step(terms, logs, batch)
        return terms["loss"]

    def losses(self, batch: PartitionedBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted sum `loss` and its unweighted terms, and detached scalars worth logging."""
        online = encode(self.backbone, batch)
        target = self.target_features(batch)
        invariance = self._invariance(online, target)
        total, logs = invariance.loss, dict(invariance.logs)
        terms = {"loss/invariance": invariance.loss}
        if self.regularizer is not None:
            given = self.regularizer.regularize(online, target, batch)
            giver = f"{type(self.regularizer).__name__}.regularize"
            regularization = LossOutput.checked(given, giver)
            total = total + self.regularizer.weight * regularization.loss
            terms["loss/equivariance"] = regularization.loss
            logs |= regularization.logs
        return {"loss": total, **terms}, logs

    def _invariance(self, online: BranchFeatures, target: BranchFeatures | None) -> LossOutput:
        if self.partition == "joint" or not (online.crop and online.invertible):
            return self._checked_invariance(joint_embeddings(online), joint_embeddings(target))
        parts = [
            self._checked_invariance(joint_embeddings(part), joint_embeddings(part_target))
            for part, part_target in zip(sub_batches(online), sub_batches(target), strict=True)
        ]
        return LossOutput.sum_of(parts)

    def _checked_invariance(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        given = self.invariance_loss(online, target)
        return LossOutput.checked(given, f"{type(self).__name__}.invariance_loss")

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
            if name in terms:
                log_loss(self, name, value, batch_size=batch_size)
            else:
                self.log(name, value, batch_size=batch_size)
        log_setting(self, "schedule/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        self.log(
            "data/unreadable_images",
            batch.num_unreadable.float(),
            on_step=False,
            on_epoch=True,
            reduce_fx="sum",
            sync_dist=True,
            batch_size=batch_size,
        )

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._stop_at(self._guard.gradients(self._scaler is not None) or self._guard.losses())

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None:
            self._stop_at(self._guard.gradients(self._scaler is not None))

    def _stop_at(self, found: NonFinite | None) -> None:
        if found is not None:
            raise stop(self, found)

    @override
    def on_train_batch_end(self, outputs: Any, batch: PartitionedBatch, batch_idx: int) -> None:
        if self._gradient_norm is not None:
            self.log("gradient_norm", self._gradient_norm, batch_size=1)

    @override
    def on_train_batch_start(self, batch: PartitionedBatch, batch_idx: int) -> None:
        """Seeds dropout and stochastic depth by step and rank, so that they need no state."""
        epoch, rank = self.trainer.current_epoch, self.global_rank
        place = np.random.SeedSequence([self.seed, epoch, batch_idx, rank])
        seed = int(place.generate_state(1, np.uint64)[0]) >> 1
        torch.manual_seed(seed)
        is_first = batch_idx % self.trainer.accumulate_grad_batches == 0
        now = Pass(batch, self.global_step, epoch, batch_idx, rank, seed)
        self._guard.begin(self, now, is_first)

    @override
    def validation_step(
        self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Does nothing: `OnlineEvaluation` measures the backbone on these batches."""

    test_step = validation_step

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.optimizer_factory(self.parameter_groups(), self.learning_rate)
        check_optimizer(optimizer)
        length = self.run_length
        if is_trial(self._trainer):
            warmup_steps = self.warmup_epochs * length.steps_per_epoch
        else:
            warmup_steps = length.warmup_steps(self.warmup_epochs, "model.init_args.warmup_epochs")

        def schedule(step: int) -> float:
            return warmup_cosine(step, length.num_steps, warmup_steps, self.final_learning_rate)

        schedules = [
            (lambda step: 1.0) if group.get("constant_learning_rate") else schedule
            for group in optimizer.param_groups
        ]
        return scheduled(optimizer, *schedules)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer trains; a group may bring its own `lr` and `weight_decay`.

        The learning rate of a group with `constant_learning_rate` follows no schedule.
        """
        return decay_groups(self.trainable_parameters(), self.decay_biases)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips each parameter's own gradient, then what the trainer's settings ask for.

        Before that it takes the norm of all gradients together, which must be finite.
        """
        # Lightning leaves the unscaling of float16's gradients to fused optimizers
        is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        scaler = self._scaler if is_fused else None
        every: int = getattr(self._trainer, "log_every_n_steps", 0)
        is_logged = every > 0 and (self.global_step + 1) % every == 0
        if scaler is not None and (self.clip_parameter_norm or gradient_clip_val or is_logged):
            scaler.unscale_(optimizer)  # the optimizer then takes the step as it is
        gradients = [p.grad for p in self.trainable_parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._gradient_norm = norm if is_logged else self._gradient_norm
        self._stop_at(self._guard.watch_gradients(norm, optimizer, self._scaler is not None))
        if self.clip_parameter_norm is not None:
            clip_each_(self.trainable_parameters(), self.clip_parameter_norm)
        if scaler is None:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
        elif gradient_clip_val:  # Lightning refuses to, not knowing that nothing is scaled any more
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            plugin = self.trainer.precision_plugin
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that require a gradient."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    @property
    def _scaler(self) -> Any:
        """What scales float16's losses; None in other precisions."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    @property
    def place(self) -> Place:
        """The step and the run's length, which schedules follow; outside of a run `outside`."""
        return Place(self.global_step, self.run_length) if self._trainer else self.outside

    @property
    def run_length(self) -> RunLength:
        """The run's length in optimizer steps, which all schedules follow."""
        return run_length(self.trainer)
