"""Barlow Twins: the cross-correlation of two views' projections becomes the identity.

Source: Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction"; SER,
pretraining settings.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.heads import CrossRankBatchNorm1d, mlp
from ser_lightning.batch import LossOutput
from ser_lightning.distributed import sum_with_gradient, world_size
from ser_lightning.losses import at_least_float
from ser_lightning.numbers import NonNegative, Positive, PositiveInt, Probability, checked
from ser_lightning.objectives.base import Embeddings, Objective
from ser_lightning.optim import decay_groups


# Differs: the public codes reduce the matrix over ranks in place, outside of autograd, which leaves
# 1 / world size of the gradient below. AdamW and LARS's adapted weights do not see that factor;
# clipping, and what LARS does not adapt, do.
def barlow_twins_loss(first: Tensor, second: Tensor, off_diagonal_weight: float) -> LossOutput:
    """Squared distance of the cross-correlation matrix from the identity.

    With the N = world size * b rows of all ranks, b on each, and u, v the columns of both views'
    projections (b, D) at zero mean and unit variance over these rows:

        C_ij = mean_n u_ni * v_nj
        result = sum_i (C_ii - 1)^2 + weight * sum_{i != j} C_ij^2

    Computed in float32, in full on every rank; the gradient is exact for any number of ranks. Logs
    both terms, with their weights. Source: Barlow Twins, Eq. 1 and 2.
    """
    with torch.autocast(first.device.type, enabled=False):
        norm = CrossRankBatchNorm1d(first.shape[1], affine=False, track_running_stats=False)
        first, second = norm(at_least_float(first)), norm(at_least_float(second))
        num_samples = world_size() * len(first)
        correlation = sum_with_gradient((first / num_samples).T @ second)
        diagonal = (correlation.diagonal() - 1).square().sum()
        # In place: with D = 8192 a copy would be 256 MiB.
        off_diagonal = off_diagonal_weight * correlation.fill_diagonal_(0).square().sum()
        logs = {"loss/diagonal": diagonal.detach(), "loss/off_diagonal": off_diagonal.detach()}
        return LossOutput(diagonal + off_diagonal, logs)


@checked
class BarlowTwins(Objective):
    """Barlow Twins; no momentum branch, so SER's candidates are the online branch's own tokens.

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        off_diagonal_weight: lambda, the weight of the redundancy reduction term.
        bias_learning_rate: peak learning rate of biases, norms and other vectors for a global
            batch of 256 images, as the original has with LARS; null for that of the weights.
        base_learning_rate: peak learning rate for a global batch of 256 images.
        final_learning_rate: where its cosine ends, as a share of the peak.
        clip_parameter_norm: longest gradient of each single parameter; null for none.
        hidden: width of the projector's hidden layers.
        projection: width of the projections.
    """

    # Differs: SER's public code for Barlow Twins carries the token map of view 1 to the frame of
    # view 2 only; here, as for every objective, both directions are averaged.
    def __init__(
        self,
        backbone: SplitViT,
        *,
        off_diagonal_weight: NonNegative = 0.0051,
        bias_learning_rate: Positive | None = None,
        base_learning_rate: Positive = 1e-4,
        final_learning_rate: Probability = 0.001,
        clip_parameter_norm: Positive | None = 0.3,
        hidden: PositiveInt = 8192,
        projection: PositiveInt = 8192,
        **training: Any,
    ) -> None:
        super().__init__(
            backbone,
            base_learning_rate=base_learning_rate,
            final_learning_rate=final_learning_rate,
            clip_parameter_norm=clip_parameter_norm,
            **training,
        )
        self.off_diagonal_weight = off_diagonal_weight
        self.bias_share = bias_learning_rate and bias_learning_rate / base_learning_rate
        self.projector = mlp((backbone.width, hidden, hidden, projection))

    @override
    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        first, second = (self.projector(embedding) for embedding in online)
        return barlow_twins_loss(first, second, self.off_diagonal_weight)

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights and vectors apart, where vectors have a learning rate of their own."""
        if self.bias_share is None:
            return super().parameter_groups()
        weights, vectors = decay_groups(self.trainable_parameters(), decay_biases=False)
        vectors["lr"] = self.learning_rate * self.bias_share
        if self.decay_biases:
            del vectors["weight_decay"]
        return [weights, vectors]
