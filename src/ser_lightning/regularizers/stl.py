"""STL: what changed between an image's views predicts the same change of another image."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.backbones.heads import mlp
from ser_lightning.batch import (
    NUM_GLOBAL_VIEWS,
    BranchFeatures,
    LossOutput,
    PartitionedBatch,
    ViewNeeds,
)
from ser_lightning.losses import contrastive_loss
from ser_lightning.numbers import NonNegative, Positive, PositiveInt, checked
from ser_lightning.regularizers.base import CLSRegularizer

PROJECTOR_HIDDEN = 512


@checked
class STL(CLSRegularizer):
    """Learns a representation t of the change between views, and applies a partner's to an image.

    Images 2i and 2i + 1 are partners: each view of both was made by the same augmentation. With
    y1, y2 an image's [CLS], P and Q the two projectors and nce(a, b) = contrastive_loss(a, b) +
    contrastive_loss(b, a):

        t12, t21 = backbone([y1, y2]), backbone([y2, y1])
        y1_hat, y2_hat = matrix(t21 of partner) @ y2, matrix(t12 of partner) @ y1
        predicted = nce([P(y1); P(y2)], [P(y1_hat); P(y2_hat)])     # rows of all images
        shared = nce(Q([t12; t21] of even images), Q([t12; t21] of their partners))
        loss = equivariance * predicted + transformation * shared

    matrix(t) is a linear function of t. Source: STL, section 3, in the setting of SER, Table 1,
    and SER's public code.

    Args:
        width: channels C of the [CLS] token; null for the backbone's.
        weight: a factor of the whole loss.
        temperature: tau. STL and SER use 0.2.
        equivariance: weight of the predicted term. STL and SER use 1.
        transformation: weight of the shared term. STL and SER use 0.1.
        hidden: channels of t and of the hidden layers of its backbone and projector.
        projection: channels of both projectors' output.
    """

    needs: ClassVar[ViewNeeds] = ViewNeeds(cls=True, paired=True)

    # Differs: the original's candidates are the rows of both sides, with a gradient to each. Here,
    # as in SER's code, they are the other side's, without gradient, with MoCo-v3's factor 2 tau
    # and a sum over both directions where the original takes the mean.
    # Differs: in the original and SER's code partners share crop, jitter and grayscale of a recipe
    # of their own, while each image draws its flip and blur; here partners share every draw of the
    # run's recipe, by default MoCo-v3's.
    def __init__(
        self,
        width: PositiveInt | None = None,
        weight: NonNegative = 1.0,
        temperature: Positive = 0.2,
        equivariance: NonNegative = 1.0,
        transformation: NonNegative = 0.1,
        hidden: PositiveInt = 128,
        projection: PositiveInt = 128,
    ) -> None:
        super().__init__(width, weight)
        self.temperature = temperature
        self.equivariance = equivariance
        self.transformation = transformation
        self.hidden = hidden
        self.projection = projection
        if width is not None:
            self.build(width)

    @override
    def build(self, width: int) -> None:
        hidden, projection = self.hidden, self.projection
        self.transformation_backbone = mlp((2 * width, hidden, hidden))
        self.hypernetwork = nn.Linear(hidden, width * width, bias=False)
        self.equivariance_projector = mlp((width, PROJECTOR_HIDDEN, projection))
        self.transformation_projector = mlp((hidden, hidden, projection))

    @override
    def regularize(
        self, online: BranchFeatures, target: BranchFeatures | None, batch: PartitionedBatch
    ) -> LossOutput:
        """The loss of the crop sub-batch; logs its two terms, with their weights.

        No gradient flows to the gathered candidates, but each side is the anchors once.
        """
        crops = online.crop[:NUM_GLOBAL_VIEWS]
        num_images = len(crops[0].embedding) if len(crops) == NUM_GLOBAL_VIEWS else 0
        if num_images == 0 or num_images % 2:
            raise ValueError(
                f"the crop sub-batch has {num_images} images on this rank, STL needs pairs of "
                "them; choose `data.global_batch_size` so that each rank has an even number of "
                "images, and set `data.invertible` to null"
            )
        first, second = self.global_views(online)
        forth = self.transformation_backbone(torch.cat([first, second], dim=1))
        back = self.transformation_backbone(torch.cat([second, first], dim=1))
        of_partners = torch.cat([_of_partners(back), _of_partners(forth)])
        predicted = self._transform(torch.cat([second, first]), of_partners).chunk(NUM_GLOBAL_VIEWS)
        views, predictions = (
            torch.cat([self.equivariance_projector(view) for view in pair])
            for pair in ((first, second), predicted)
        )
        even, odd = (
            self.transformation_projector(torch.cat([forth[start::2], back[start::2]]))
            for start in (0, 1)
        )
        terms = {
            "loss/predicted": self.equivariance * self._both_directions(views, predictions),
            "loss/shared": self.transformation * self._both_directions(even, odd),
        }
        loss = torch.stack(list(terms.values())).sum()
        return LossOutput(loss, {name: term.detach() for name, term in terms.items()})

    def _transform(self, y: Tensor, t: Tensor) -> Tensor:
        """Multiplies each row of y (B, C) by the C x C matrix that its row of t (B, hidden) gives.

            result[b, o] = sum over c, h of weight[o * C + c, h] * t[b, h] * y[b, c]

        The outer product of t and y comes first: as many multiplications as with the matrices
        first, in one product, and (B, C * hidden) numbers instead of (B, C * C).
        """
        outer = y.to(t.dtype)[:, :, None] * t[:, None, :]
        return F.linear(outer.flatten(1), self.hypernetwork.weight.view(y.shape[1], -1))

    def _both_directions(self, one: Tensor, other: Tensor) -> Tensor:
        """Sum of the contrastive losses of either side's (b, D) rows against the other's."""
        forth = contrastive_loss(one, other, self.temperature)
        return forth + contrastive_loss(other, one, self.temperature)


def _of_partners(rows: Tensor) -> Tensor:
    """Swaps rows 2i and 2i + 1 of (B, D)."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
