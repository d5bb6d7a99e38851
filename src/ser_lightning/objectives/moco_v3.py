"""MoCo-v3: contrastive learning against a momentum encoder.

Source: Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers";
SER, pretraining settings.
"""

from typing import Any, Literal

import torch
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.heads import mlp
from ser_lightning.batch import LossOutput
from ser_lightning.losses import contrastive_loss
from ser_lightning.numbers import Positive, PositiveInt, Probability, checked
from ser_lightning.objectives.base import Embeddings
from ser_lightning.objectives.momentum import MomentumObjective


@checked
class MoCoV3(MomentumObjective):
    """MoCo-v3 with its momentum encoder; `regularizer: null` gives the plain method.

    Two views: L = ctr(q1, k2) + ctr(q2, k1), where q are predictions of the online branch and k
    projections of the momentum branch. With local crops, the sum of ctr(q_i, k_j) over all views
    i and both global views j except i: 10 terms for two global and four local views, none of them
    between local crops. Source: SER, appendix A.1.

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        temperature: the contrastive loss's.
        momentum: the momentum branch's at the start; it rises to 1 along half a cosine.
        hidden: width of the heads' hidden layers.
        projection: width of projections and predictions.
        reduction: "sum" of the terms, as in MoCo-v3 and SER; their "mean" does not grow with the
            number of views, so that a regularizer's weight means the same for any.
    """

    accepts_local_views = True

    def __init__(
        self,
        backbone: SplitViT,
        *,
        temperature: Positive = 0.2,
        momentum: Probability = 0.99,
        hidden: PositiveInt = 4096,
        projection: PositiveInt = 256,
        reduction: Literal["sum", "mean"] = "sum",
        **training: Any,
    ) -> None:
        widths = (backbone.width, hidden, hidden, projection)
        super().__init__(
            backbone,
            projector=lambda: mlp(widths, last_norm="affine_free"),
            momentum=momentum,
            **training,
        )
        self.temperature = temperature
        self.reduction = reduction
        self.predictor = mlp((projection, hidden, projection), last_norm="affine_free")

    @override
    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        assert target is not None, "MoCo-v3 has a momentum branch"
        queries = [self.predictor(self.projector(embedding)) for embedding in online]
        with torch.no_grad():
            keys = [self.momentum_projector(embedding) for embedding in target]
        terms = [
            contrastive_loss(query, key, self.temperature)
            for i, query in enumerate(queries)
            for j, key in enumerate(keys)
            if i != j
        ]
        total = torch.stack(terms).sum()
        return LossOutput(total if self.reduction == "sum" else total / len(terms), {})
