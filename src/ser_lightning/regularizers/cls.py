"""What the add-ons that read [CLS] share."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.batch import NUM_GLOBAL_VIEWS, BranchFeatures, Tap, TapFeatures, ViewNeeds
from ser_lightning.regularizers.base import Regularizer


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
