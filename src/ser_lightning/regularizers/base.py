"""What every add-on to an invariance objective offers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from ser_lightning.batch import BranchFeatures, LossOutput, PartitionedBatch, Tap, ViewNeeds


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

    needs: ClassVar[ViewNeeds]
    """What the run's batches must hold for it."""

    def __init__(self, width: int, weight: float = 1.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight {weight} must be 0 or positive; 0 switches the term off")
        self.width = width
        self.weight = weight

    def attach(self, taps: Sequence[Tap]) -> None:
        """Learns where the backbone hands out features; the objective calls it once.

        Args:
            taps: the places, shallowest first.

        Raises:
            ValueError: if the add-on cannot read there.
        """
        if len(taps) != 1:
            raise ValueError(
                f"{type(self).__name__} reads one layer, `backbone.layer` names {len(taps)}; give "
                "one, or an add-on for each of them in PerLayer"
            )
        if self.needs.cls and not taps[0].has_cls:
            raise ValueError(
                f"{type(self).__name__} reads [CLS] after block {taps[0].layer}, where it has not "
                "joined; set `model.init_args.backbone.cls_layer` to 0"
            )

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
