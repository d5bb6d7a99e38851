"""What every add-on to an invariance objective offers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from ser_lightning.batch import BranchFeatures, LossOutput, PartitionedBatch, Tap, ViewNeeds
from ser_lightning.numbers import NonNegative, PositiveInt, checked


@checked
class Regularizer(nn.Module, ABC):
    """An equivariance add-on: a second loss on features the objective has computed anyway.

    The objective calls `regularize` and adds `weight` times its loss; a subclass returns the loss
    unweighted. Its parameters are trained with the objective's and have no momentum copy.

    Args:
        width: channels C of the backbone's tokens and embedding; null takes them from the backbone
            when the objective is built. A training loop of your own gives the number.
        weight: lambda, the factor of this loss in the total; 0 switches it off.
    """

    needs: ClassVar[ViewNeeds]
    """What the run's batches must hold for it."""

    def __init__(self, width: PositiveInt | None = None, weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.width = width
        self.weight = weight

    def build(self, width: int) -> None:
        """Makes the modules whose shapes depend on the width; nothing by default.

        A subclass's constructor calls it when it was given a width, `attach` where it was not.
        """

    def attach(self, taps: Sequence[Tap], width: int) -> None:
        """Learns where the backbone hands out features, and how wide they are.

        The objective calls it once, before it makes modules of its own.

        Args:
            taps: the places, shallowest first.
            width: channels C of the features.

        Raises:
            ValueError: if the add-on cannot read there, or was built for another width.
        """
        self._require_readable(taps)
        if self.width is None:
            self.width = width
            self.build(width)
        elif self.width != width:
            raise ValueError(
                f"the regularizer is built for tokens of width {self.width}, the backbone has "
                f"{width}; leave `model.init_args.regularizer.init_args.width` out"
            )

    def _require_readable(self, taps: Sequence[Tap]) -> None:
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


def default_hidden(width: int) -> int:
    """Hidden channels of a small head on features of a width: 512, less for a small ViT.

    512 from width 256 on (SER's width is 384), else twice the width.
    """
    return min(512, 2 * width)
