"""MoCo-v3: contrastive learning against a momentum encoder.

Source: Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers";
SER, pretraining settings.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.backbones import (
    SplitViT,
    moco_predictor,
    moco_projector,
    momentum_copy,
    update_momentum,
)
from ser_lightning.batch import BranchFeatures, LossOutput, PartitionedBatch
from ser_lightning.distributed import gather, rank
from ser_lightning.objectives.base import Embeddings, Objective, encode
from ser_lightning.optim import cosine


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE of local queries against the keys of all ranks, scaled by twice the temperature.

    For query i of rank r, with b rows per rank and q, k of unit length:

        loss_i = -log(exp(q_i . k_{r b + i} / t) / sum_j exp(q_i . k_j / t))
        result = 2 t * mean_i loss_i

    Computed in float32. No gradient flows to the keys. Source: MoCo-v3, Algorithm 1.

    Args:
        queries: (b, C) predictions of one view.
        keys: (b, C) momentum projections of the other view of the same images.
        temperature: t.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries = F.normalize(_at_least_float(queries), dim=1)
        keys = gather(F.normalize(_at_least_float(keys), dim=1))
        logits = queries @ keys.T / temperature
        labels = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
        return 2 * temperature * F.cross_entropy(logits, labels)


class MoCoV3(Objective):
    """MoCo-v3 with its momentum encoder; `regularizer: null` gives the plain method.

    L = ctr(q1, k2) + ctr(q2, k1), where q are predictions of the online branch and k projections
    of the momentum branch.

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        temperature: of the contrastive loss.
        momentum: of the momentum branch at the start; it rises to 1 along half a cosine.
        hidden: width of the heads' hidden layers.
        projection: width of projections and predictions.
        training: further arguments of every objective.
    """

    def __init__(
        self,
        backbone: SplitViT,
        *,
        temperature: float = 0.2,
        momentum: float = 0.99,
        hidden: int = 4096,
        projection: int = 256,
        **training: Any,
    ) -> None:
        super().__init__(backbone, **training)
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} must be positive; MoCo-v3 uses 0.2")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum {momentum} is outside [0, 1]; MoCo-v3 starts at 0.99")
        self.temperature = temperature
        self.momentum = momentum
        self.projector = moco_projector(backbone.width, hidden, projection)
        self.predictor = moco_predictor(projection, hidden)
        self.momentum_backbone = momentum_copy(self.backbone)
        self.momentum_projector = momentum_copy(self.projector)

    def target_features(self, batch: PartitionedBatch) -> BranchFeatures:
        """Moves the momentum branch, once per optimizer step, and encodes the batch with it."""
        with torch.no_grad():
            self._update_momentum_branch()
            return encode(self.momentum_backbone, batch)

    def _update_momentum_branch(self) -> None:
        """Runs after the online forward and before the keys' one, as in the official code."""
        if self._trainer is None or not self._is_first_of_accumulation():
            return
        momentum = cosine(self.global_step, self.num_steps, self.momentum, 1.0)
        update_momentum(self.backbone, self.momentum_backbone, momentum)
        update_momentum(self.projector, self.momentum_projector, momentum)
        self.log("schedule/momentum", momentum, batch_size=1)

    def _is_first_of_accumulation(self) -> bool:
        batch_idx = self.trainer.fit_loop.epoch_loop.batch_idx
        return batch_idx % self.trainer.accumulate_grad_batches == 0

    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        """Contrasts each view's predictions with the other view's keys."""
        assert target is not None, "MoCo-v3 has a momentum branch"
        queries = [self.predictor(self.projector(embedding)) for embedding in online]
        with torch.no_grad():
            keys = [self.momentum_projector(embedding) for embedding in target]
        loss = contrastive_loss(queries[0], keys[1], self.temperature)
        loss = loss + contrastive_loss(queries[1], keys[0], self.temperature)
        return LossOutput(loss, {})


def _at_least_float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
