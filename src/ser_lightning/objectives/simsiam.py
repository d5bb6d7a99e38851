"""SimSiam: two views predict each other through a stop-gradient, without negatives or momentum.

Source: Chen & He 2021, "Exploring Simple Siamese Representation Learning", and its public code.
"""

from typing import Any

import torch
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.heads import mlp
from ser_lightning.batch import LossOutput
from ser_lightning.losses import negative_cosine, projection_std
from ser_lightning.numbers import PositiveInt, checked
from ser_lightning.objectives.base import Embeddings, Objective
from ser_lightning.optim import decay_groups


@checked
class SimSiam(Objective):
    """SimSiam; `regularizer: null` gives the plain method.

    L = (D(p1, z2) + D(p2, z1)) / 2, where D is the negative cosine similarity, p are predictions
    and z projections, through which no gradient flows. Logs `diagnostics/projection_std`, which
    falls from about 1 / sqrt(projection) to 0 in a collapse.

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        hidden: width of the projector's hidden layers.
        projection: width of projections and predictions.
        predictor_hidden: width of the predictor's hidden layer, a bottleneck; null for a quarter
            of `projection`.
    """

    def __init__(
        self,
        backbone: SplitViT,
        *,
        hidden: PositiveInt = 2048,
        projection: PositiveInt = 2048,
        predictor_hidden: PositiveInt | None = None,
        **training: Any,
    ) -> None:
        bottleneck = projection // 4 if predictor_hidden is None else predictor_hidden
        if bottleneck < 1:
            raise ValueError(
                f"predictor_hidden 0 with a projection of {projection}: a quarter of it is none; "
                "set predictor_hidden, or a projection of at least 4"
            )
        super().__init__(backbone, **training)
        self.projector = mlp((backbone.width, hidden, hidden, projection), last_norm="affine_free")
        self.predictor = mlp((projection, bottleneck, projection), last_bias=True)

    @override
    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        z1, z2 = (self.projector(embedding) for embedding in online)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
        return LossOutput(loss, {"diagnostics/projection_std": projection_std(torch.cat([z1, z2]))})

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything but the predictor, then the predictor at a constant learning rate.

        A predictor whose learning rate decays lags behind the representations. Source: SimSiam,
        section 4.2.
        """
        owned = set(self.predictor.parameters())
        predictor = [p for p in self.trainable_parameters() if p in owned]
        others = [p for p in self.trainable_parameters() if p not in owned]
        scheduled = decay_groups(others, self.decay_biases)
        constant = decay_groups(predictor, self.decay_biases)
        return [*scheduled, *(group | {"constant_learning_rate": True} for group in constant)]
