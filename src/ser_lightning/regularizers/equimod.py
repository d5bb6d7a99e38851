"""EquiMod: the embedding of a view is predicted from the plain image's and the augmentation."""

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.backbones.heads import CrossRankBatchNorm1d, mlp
from ser_lightning.batch import (
    NUM_GLOBAL_VIEWS,
    BranchFeatures,
    LossOutput,
    PartitionedBatch,
    ViewNeeds,
    ViewRecord,
)
from ser_lightning.losses import contrastive_loss
from ser_lightning.numbers import NonNegative, Positive, PositiveInt, checked
from ser_lightning.regularizers.base import CLSRegularizer, global_records

NUM_PARAMETERS = 18


@checked
class EquiMod(CLSRegularizer):
    """Contrasts each view's projection with the one predicted for it from its augmentation.

    With x0 the image as evaluation shows it (resized, its centre), x1 and x2 its views, and v one
    of the two views:

        y_v = head(cls of x_v)                                      # the same head for x0
        p_v = embed(standardised(parameters(record of view v)))
        predicted_v = predictor([y_0, p_v])
        y, predicted = [y_1; y_2], [predicted_1; predicted_2]       # rows of both views
        loss = (contrastive_loss(y, predicted) + contrastive_loss(predicted, y)) / 2

    The candidates of a row are thus the other kind's rows of both views of all images. Source:
    EquiMod, section 3, in the setting of SER, Tables 1 and 6, and SER's public code.

    Args:
        width: channels C of the [CLS] token, null for the backbone's; the head's hidden layers have
            as many.
        weight: lambda. Both papers use 1.
        temperature: tau. Both papers use 0.2.
        projection: channels of the head's, the augmentation's and the predictor's output.
    """

    needs: ClassVar[ViewNeeds] = ViewNeeds(cls=True, plain=True)

    # Differs: the original's candidates are the rows of both kinds, with a gradient to each, and
    # its head is 2048 wide and normalises over x0, x1 and x2 together. Here, as in SER's code, they
    # are the other kind's, without gradient, the head has the backbone's width and normalises each
    # of the three by itself, as MoCo-v3's projector does.
    # Differs: the crop's box is in pixels of the source image in the original, here in shares of
    # its sides, because images differ in size and x0 is resized.
    # Differs: the original standardises the parameters by constants measured on its recipe, SER's
    # code keeps them for another recipe; here by the global batch's mean and deviation.
    # Differs: jitter, blur and solarization are the run's, by default MoCo-v3's as in SER; the
    # original jitters by 0.8, 0.8, 0.8, 0.2, blurs half of the images and solarizes none.
    def __init__(
        self,
        width: PositiveInt | None = None,
        weight: NonNegative = 1.0,
        temperature: Positive = 0.2,
        projection: PositiveInt = 128,
    ) -> None:
        super().__init__(width, weight)
        self.temperature = temperature
        self.projection = projection
        if width is not None:
            self.build(width)

    @override
    def build(self, width: int) -> None:
        projection = self.projection
        self.head = mlp((width, width, width, projection), last_norm="affine_free")
        self.standardise = CrossRankBatchNorm1d(NUM_PARAMETERS, affine=False)
        self.embed = mlp((NUM_PARAMETERS, projection), last_norm="affine")
        self.predictor = mlp((2 * projection, projection), last_norm="affine_free")

    @override
    def regularize(
        self, online: BranchFeatures, target: BranchFeatures | None, batch: PartitionedBatch
    ) -> LossOutput:
        """The loss of the crop sub-batch.

        No gradient flows to the gathered candidates, but each kind is the anchors once.
        """
        records = global_records(batch)
        if len(records) != NUM_GLOBAL_VIEWS or not online.extra:
            num_crops = len(batch.crop[:NUM_GLOBAL_VIEWS])
            raise ValueError(
                f"the batch has {num_crops} global crops, {len(records)} with a record of what "
                f"was drawn, and {len(online.extra)} extra views; EquiMod needs "
                f"{NUM_GLOBAL_VIEWS} with their records and the plain view: set `data.invertible` "
                "to null, so that there are crops, and take batches from the data module, which "
                "adds the rest"
            )
        augmentation = torch.cat([parameters(record) for record in records])
        projected = torch.cat([self.head(view) for view in self.global_views(online)])
        plain = self.head(self.read(online.extra[0])).repeat(NUM_GLOBAL_VIEWS, 1)
        dtype = next(self.embed.parameters()).dtype
        standardised = self.standardise(augmentation.to(dtype))
        predicted = self.predictor(torch.cat([plain, self.embed(standardised)], dim=1))
        to_predicted = contrastive_loss(projected, predicted, self.temperature)
        to_projected = contrastive_loss(predicted, projected, self.temperature)
        return LossOutput((to_predicted + to_projected) / 2, {})


def parameters(record: ViewRecord) -> Tensor:
    """What was applied to make a view, (B, 18).

    The crop's top, left, height and width in shares of the source image's sides, flip flag, jitter
    flag, the order of the four colour operations, brightness, contrast, saturation, hue, gray
    flag, blur flag, blur deviation, solarize flag. Without jitter the order is 0, 1, 2, 3, the
    factors are 1 and the hue is 0. Source: EquiMod, appendix, and SER's public code.
    """
    jitter = record.jitter[:, None] > 0
    drawn = torch.stack([record.brightness, record.contrast, record.saturation, record.hue], dim=1)
    unchanged = torch.cat([torch.ones_like(drawn[:, :3]), torch.zeros_like(drawn[:, 3:])], dim=1)
    upright = torch.arange(4, device=drawn.device, dtype=drawn.dtype).expand_as(drawn)
    blurred = (record.blur_sigma > 0).to(drawn.dtype)
    return torch.cat(
        [
            record.box / record.source_size.repeat(1, 2),
            torch.stack([record.flip, record.jitter], dim=1),
            torch.where(jitter, record.order, upright),
            torch.where(jitter, drawn, unchanged),
            torch.stack([record.gray, blurred, record.blur_sigma, record.solarize], dim=1),
        ],
        dim=1,
    )
