"""What every add-on to an invariance objective offers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.batch import (
    NUM_GLOBAL_VIEWS,
    BranchFeatures,
    LossOutput,
    PartitionedBatch,
    Tap,
    TapFeatures,
    ViewNeeds,
    ViewRecord,
)
from ser_lightning.groups.frame import MAX_SCALE
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
    max_scale: float = MAX_SCALE
    """Largest ratio of token sizes where it compares tokens of views that see parts of an image."""

    ratio: float = 1.0
    """Share of the crop sub-batch that it reads, where it reads crops."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not isinstance(getattr(cls, "needs", None), ViewNeeds):
            raise ValueError(
                f"{cls.__name__} does not say which views it needs; give it `needs = ViewNeeds()`, "
                "with invertible=True and the like for what it reads beside crops"
            )

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
        if self.width is None:
            self.width = width
            self.build(width)
        elif self.width != width:
            raise ValueError(
                f"the regularizer is built for tokens of width {self.width}, the backbone has "
                f"{width}; leave `model.init_args.regularizer.init_args.width` out"
            )

    def compared_ratios(self) -> set[float]:
        """Shares of the crop sub-batch whose crops are compared token by token; none for most."""
        return {self.ratio} if self.needs.places else set()

    @abstractmethod
    def regularize(
        self, online: BranchFeatures, target: BranchFeatures | None, batch: PartitionedBatch
    ) -> LossOutput:
        """The unweighted loss of one step, and what to log.

        Args:
            online: features of the branch that is trained.
            target: features of the momentum branch, without gradient; None if there is none.
            batch: what the features were computed from.

        Returns:
            () loss whose gradient is right under DDP's mean over ranks.
        """


class CLSRegularizer(Regularizer):
    """An add-on that reads the online branch's [CLS] after block `layer`.

    After an inner block it passes a LayerNorm of the add-on's own first; the final [CLS] has
    passed the backbone's. Source: SER, Table 6 (layer decoupling) and its public code for AugSelf.
    """

    needs: ClassVar[ViewNeeds] = ViewNeeds(cls=True)

    @override
    def attach(self, taps: Sequence[Tap], width: int) -> None:
        super().attach(taps, width)
        self.norm = nn.Identity() if taps[0].is_final else nn.LayerNorm(width, eps=1e-6)

    def global_views(self, online: BranchFeatures) -> tuple[Tensor, Tensor]:
        """[CLS] (B, C) of the crop sub-batch's two global views, normed."""
        first, second = online.crop[:NUM_GLOBAL_VIEWS]
        return self.read(first.taps), self.read(second.taps)

    def read(self, taps: Sequence[TapFeatures]) -> Tensor:
        """[CLS] (B, C) of one view, normed."""
        cls = taps[0].cls
        assert cls is not None, "attach() refuses taps without [CLS]"
        normed: Tensor = self.norm(cls)
        return normed


def global_records(batch: PartitionedBatch) -> list[ViewRecord]:
    """The records of the crop sub-batch's global views, as far as the batch has them."""
    return [view.record for view in batch.crop[:NUM_GLOBAL_VIEWS] if view.record is not None]


def default_hidden(width: int) -> int:
    """Hidden channels of a small head: 512 (SER's width is 384), twice the width if below 256."""
    return min(512, 2 * width)
