"""What every add-on to an invariance objective offers."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from ser_lightning.batch import BranchFeatures, LossOutput, PartitionedBatch


class Regularizer(nn.Module, ABC):
    """An equivariance add-on: a second loss on features the objective has computed anyway.

    The objective calls `regularize` and adds `weight` times its loss; a subclass returns the loss
    unweighted. Its parameters are trained with the objective's and have no momentum copy.

    Args:
        width: channels C of the backbone's tokens and embedding.
        weight: lambda, the factor of this loss in the total.

    Raises:
        ValueError: if weight is negative.
    """

    needs_invertible: ClassVar[bool]
    """Whether the batch must have an invertible sub-batch."""

    def __init__(self, width: int, weight: float = 1.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight {weight} must be 0 or positive; 0 switches the term off")
        self.width = width
        self.weight = weight

    @abstractmethod
    def regularize(
        self, online: BranchFeatures, target: BranchFeatures | None, batch: PartitionedBatch
    ) -> LossOutput:
        """Computes the loss of one step.

        Args:
            online: features of the branch that is trained.
            target: features of the momentum branch, without gradient; None if there is none.
            batch: what the features were computed from.

        Returns:
            The unweighted loss, a scalar whose gradient is right under DDP's mean over ranks, and
            what to log.
        """
