"""Objectives whose targets come from a momentum branch that follows the online one."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import override

from ser_lightning.backbones import SplitViT, momentum_copy, update_momentum
from ser_lightning.batch import BranchFeatures, PartitionedBatch
from ser_lightning.numbers import Probability, checked
from ser_lightning.objectives.base import Objective
from ser_lightning.objectives.encode import encode, global_views
from ser_lightning.optim import cosine
from ser_lightning.step_logs import log_setting


@checked
class MomentumObjective(Objective):
    """An objective with a momentum copy of its backbone and projector.

    The momentum branch sees the global views only. It moves once per optimizer step, before it
    encodes the batch (MoCo-v3, BYOL) or after the optimizer's step (DINO).

    Args:
        backbone: the online ViT.
        projector: makes the online head, after the add-on's modules.
        momentum: the momentum branch's at the start; it rises to 1 along half a cosine.
    """

    moves_after_step: ClassVar[bool] = False
    """Whether the momentum branch moves after the optimizer's step instead of before the keys."""

    def __init__(
        self,
        backbone: SplitViT,
        projector: Callable[[], nn.Module],
        momentum: Probability,
        **training: Any,
    ) -> None:
        super().__init__(backbone, **training)
        self.momentum = momentum
        self.projector = projector()
        self.momentum_backbone = momentum_copy(self.backbone)
        self.momentum_projector = momentum_copy(self.projector)

    @override
    def target_features(self, batch: PartitionedBatch) -> BranchFeatures:
        if self._trainer is not None:  # a loss computed outside of a run moves nothing
            log_setting(self, "schedule/momentum", self._current_momentum())
            if not self.moves_after_step:
                batch_idx = self.trainer.fit_loop.epoch_loop.batch_idx
                if batch_idx % self.trainer.accumulate_grad_batches == 0:  # the step's first pass
                    self._move()
        with torch.no_grad():
            return encode(self.momentum_backbone, global_views(batch))

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Later hooks would be too late: a checkpoint of this step is written before they run.
        if self.moves_after_step:
            self._move()

    def _move(self) -> None:
        momentum = self._current_momentum()
        update_momentum(self.backbone, self.momentum_backbone, momentum)
        update_momentum(self.projector, self.momentum_projector, momentum)

    def _current_momentum(self) -> float:
        return cosine(self.global_step, self.run_length.num_steps, self.momentum, 1.0)
