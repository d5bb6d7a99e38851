"""VICReg: views agree, every dimension keeps its variance, dimensions are uncorrelated.

Source: Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning", and its public code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.heads import mlp
from ser_lightning.batch import LossOutput
from ser_lightning.distributed import gather_with_gradient
from ser_lightning.losses import at_least_float
from ser_lightning.numbers import NonNegative, PositiveInt, checked
from ser_lightning.objectives.base import Embeddings, Objective

_EPSILON = 1e-4  # added to a variance, where the root has no slope otherwise


def vicreg_loss(
    first: Tensor,
    second: Tensor,
    similarity_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> LossOutput:
    """Weighted sum of a similarity, a variance and a covariance term.

    Of projections x, y (b, D) of two views of the same images. Rows are those of all N = world
    size * b samples, b on every rank; var and cov are divided by N - 1:

        similarity = mean_{n,d} (x_nd - y_nd)^2
        variance = mean_{z in x,y} mean_d max(0, 1 - sqrt(var(z_d) + 1e-4))
        covariance = sum_{z in x,y} sum_{i != j} cov(z_i, z_j)^2 / D

    Computed in float32; the gradient is exact for any number of ranks. Logs the three terms, with
    their weights. Source: VICReg, Eq. 1-6, and its public code.
    Differs: from Eq. 5 and 6, as the public code does, for which the weights are: the similarity
    is a mean over dimensions and the variance a mean over views, both sums in the paper.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = at_least_float(first), at_least_float(second)
        spreads = (_spread(gather_with_gradient(view)) for view in (first, second))
        hinges, covariances = zip(*spreads, strict=True)
        terms = {
            "loss/similarity": similarity_weight * F.mse_loss(first, second),
            "loss/variance": variance_weight * (hinges[0] + hinges[1]) / 2,
            "loss/covariance": covariance_weight * (covariances[0] + covariances[1]),
        }
        loss = torch.stack(list(terms.values())).sum()
        return LossOutput(loss, {name: term.detach() for name, term in terms.items()})


def _spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """The variance and the covariance term of the (N, D) projections of one view."""
    centred = x - x.mean(dim=0)
    scaled = centred / (len(x) - 1)
    variance = (scaled * centred).sum(dim=0)
    deviation = (variance + _EPSILON).sqrt()
    return F.relu(1 - deviation).mean(), _off_diagonal(centred, scaled, variance) / x.shape[1]


def _off_diagonal(centred: Tensor, scaled: Tensor, variance: Tensor) -> Tensor:
    """The sum of squared covariances between different ones of D dimensions, of N rows.

    The squares of X^T X and of X X^T have one sum. The smaller matrix is made: of 2,048 images with
    8,192 dimensions it takes 16 MiB instead of 256, and a quarter of the products. The difference
    keeps its digits: of N rows, dimensions of one variance are (N - 1) / D of the sum at most.
    """
    if len(centred) < centred.shape[1]:
        return (scaled @ centred.T).square().sum() - variance.square().sum()
    # In place: a copy is as large again.
    return (scaled.T @ centred).fill_diagonal_(0).square().sum()


@checked
class VICReg(Objective):
    """VICReg; no momentum branch, so SER's candidates are the online branch's own tokens.

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        similarity_weight: factor of the mean squared distance between the views.
        variance_weight: factor of the hinge that keeps every dimension's deviation above 1.
        covariance_weight: factor of the squared covariances between dimensions.
        hidden: width of the expander's hidden layers, which have biases.
        projection: width of the expander's output.
    """

    def __init__(
        self,
        backbone: SplitViT,
        *,
        similarity_weight: NonNegative = 25.0,
        variance_weight: NonNegative = 25.0,
        covariance_weight: NonNegative = 1.0,
        hidden: PositiveInt = 8192,
        projection: PositiveInt = 8192,
        **training: Any,
    ) -> None:
        super().__init__(backbone, **training)
        self.weights = {
            "similarity_weight": similarity_weight,
            "variance_weight": variance_weight,
            "covariance_weight": covariance_weight,
        }
        self.projector = mlp((backbone.width, hidden, hidden, projection), bias=True)

    @override
    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        first, second = (self.projector(embedding) for embedding in online)
        return vicreg_loss(first, second, **self.weights)
