"""E-SSL: an embedding tells by how many quarter turns its view was turned."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import override

from ser_lightning.batch import BranchFeatures, LossOutput, PartitionedBatch, ViewNeeds
from ser_lightning.losses import at_least_float
from ser_lightning.numbers import NonNegative, PositiveInt, checked
from ser_lightning.regularizers.base import CLSRegularizer

NUM_TURNS = 4


@checked
class ESSL(CLSRegularizer):
    """Classifies the quarter turns of a small crop, shown in all four orientations.

    With [CLS] h_k (B, C) of the copy turned k times counter-clockwise, as `torch.rot90` turns:

        loss = mean over k and images of -log(softmax(head(h_k))[k])    # log 4 by chance

    head = two times Linear(C, C), LayerNorm, ReLU, then Linear(C, hidden), LayerNorm,
    Linear(hidden, 4), all with biases: 397,316 parameters at width 384.

    Source: E-SSL (Dangovski et al. 2022) and its public code; SER, Table 1, for E-SSL on MoCo-v3.

    Args:
        width: channels C of [CLS]; null for the backbone's.
        weight: lambda.
        hidden: width of the head's last hidden layer; 128 in the original's SimCLR.
    """

    needs: ClassVar[ViewNeeds] = ViewNeeds(cls=True, rotated=True)

    # Differs: SER does not say which weight its E-SSL has (its public code's default was 3.0,
    # later 1.0); 0.4 here is the original's with SimCLR, contrastive like MoCo-v3 (8 with Barlow
    # Twins, 0.08 with SimSiam).
    def __init__(
        self, width: PositiveInt | None = None, weight: NonNegative = 0.4, hidden: PositiveInt = 256
    ) -> None:
        super().__init__(width, weight)
        self.hidden = hidden
        if width is not None:
            self.build(width)

    @override
    def build(self, width: int) -> None:
        self.head = nn.Sequential(
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, self.hidden),
            nn.LayerNorm(self.hidden),
            nn.Linear(self.hidden, NUM_TURNS),
        )

    @override
    def regularize(
        self, online: BranchFeatures, target: BranchFeatures | None, batch: PartitionedBatch
    ) -> LossOutput:
        """The mean over this rank's 4B copies; logs the share whose turns are found too."""
        if len(online.extra) != NUM_TURNS:
            raise ValueError(
                f"the batch has {len(online.extra)} extra views, E-SSL classifies exactly "
                f"{NUM_TURNS}: a crop turned by 0, 1, 2 and 3 quarter turns; keep crop images in "
                "the batch, and let no other add-on ask for extra views of another kind"
            )
        views = [self.read(taps) for taps in online.extra]
        logits = at_least_float(self.head(torch.cat(views)))
        turns = torch.arange(NUM_TURNS, device=logits.device).repeat_interleave(len(views[0]))
        loss = F.cross_entropy(logits, turns)
        accuracy = (logits.detach().argmax(1) == turns).to(loss.dtype).mean()
        logs = {"loss/rotation": loss.detach(), "essl/rotation_accuracy": accuracy}
        return LossOutput(loss, logs)
