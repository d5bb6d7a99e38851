"""BYOL: predicts the projections of a momentum encoder, without negatives.

Source: Grill et al. 2020, "Bootstrap Your Own Latent".
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.heads import mlp
from ser_lightning.batch import LossOutput
from ser_lightning.losses import negative_cosine, projection_std
from ser_lightning.numbers import PositiveInt, Probability, checked
from ser_lightning.objectives.base import Embeddings
from ser_lightning.objectives.momentum import MomentumObjective


def regression_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of unit-length predictions and targets, mean over the local images.

    For predictions p (b, C) from one view and momentum projections z (b, C) of the other:

        result = mean_i |p_i / |p_i| - z_i / |z_i||^2 = 2 - 2 mean_i cos(p_i, z_i)

    Computed in float32. No gradient flows to the targets. Source: BYOL, Eq. 2.
    """
    return 2 + 2 * negative_cosine(predictions, targets)


@checked
class BYOL(MomentumObjective):
    """BYOL; `regularizer: null` gives the plain method.

    L = reg(p1, z2) + reg(p2, z1), where p are predictions of the online branch and z projections
    of the momentum branch. The momentum branch moves before it encodes. Logs
    `diagnostics/projection_std` of the online branch, which falls from about 1 / sqrt(projection)
    to 0 in a collapse.

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        momentum: the momentum branch's at the start; it rises to 1 along half a cosine.
        hidden: width of the heads' hidden layers.
        projection: width of projections and predictions.
    """

    def __init__(
        self,
        backbone: SplitViT,
        *,
        momentum: Probability = 0.99,
        hidden: PositiveInt = 4096,
        projection: PositiveInt = 256,
        **training: Any,
    ) -> None:
        super().__init__(
            backbone,
            projector=lambda: mlp((backbone.width, hidden, projection)),
            momentum=momentum,
            **training,
        )
        self.predictor = mlp((projection, hidden, projection))

    @override
    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        assert target is not None, "BYOL has a momentum branch"
        z1, z2 = (self.projector(embedding) for embedding in online)
        with torch.no_grad():
            target_1, target_2 = (self.momentum_projector(embedding) for embedding in target)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = regression_loss(p1, target_2) + regression_loss(p2, target_1)
        return LossOutput(loss, {"diagnostics/projection_std": projection_std(torch.cat([z1, z2]))})
