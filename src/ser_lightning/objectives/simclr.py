"""SimCLR: contrastive learning within the batch, without a momentum encoder.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations".
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.heads import mlp
from ser_lightning.batch import LossOutput
from ser_lightning.distributed import gather_with_gradient, rank
from ser_lightning.losses import at_least_float
from ser_lightning.numbers import Positive, PositiveInt, checked
from ser_lightning.objectives.base import Embeddings, Objective


def nt_xent_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent: every projection against all others of all ranks, of both views.

    With z the projections (b, C) of both views and all ranks at unit length, 2B of them, p(i) the
    other view of the image that z_i shows, and the temperature t:

        loss_i = -log(exp(z_i . z_p(i) / t) / sum_{k != i} exp(z_i . z_k / t))
        result = mean of loss_i over the 2b local i

    Computed in float32. Gradients flow to the anchors and to the candidates of all ranks.
    Source: SimCLR, Eq. 1 and Algorithm 1.
    """
    with torch.autocast(first.device.type, enabled=False):
        projections = torch.cat([first, second])
        anchors = F.normalize(at_least_float(projections), dim=1)
        logits = anchors @ gather_with_gradient(anchors).T / temperature
        start = rank() * len(anchors)  # where this rank's anchors stand among the candidates
        logits.diagonal(start).fill_(-torch.inf)  # no anchor is its own candidate
        other_view = torch.arange(len(anchors), device=logits.device).roll(len(first))
        return F.cross_entropy(logits, start + other_view)


@checked
class SimCLR(Objective):
    """SimCLR; `regularizer: null` gives the plain method.

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        temperature: the contrastive loss's.
        hidden: width of the projector's hidden layer.
        projection: width of projections.
    """

    def __init__(
        self,
        backbone: SplitViT,
        *,
        temperature: Positive = 0.1,
        hidden: PositiveInt = 2048,
        projection: PositiveInt = 128,
        **training: Any,
    ) -> None:
        super().__init__(backbone, **training)
        self.temperature = temperature
        self.projector = mlp((backbone.width, hidden, projection), last_norm="affine")

    @override
    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        first, second = (self.projector(embedding) for embedding in online)
        return LossOutput(nt_xent_loss(first, second, self.temperature), {})
