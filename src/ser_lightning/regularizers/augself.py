"""AugSelf: two embeddings tell how differently their views were augmented."""

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
    ViewRecord,
)
from ser_lightning.losses import at_least_float
from ser_lightning.numbers import NonNegative, PositiveInt, checked
from ser_lightning.regularizers.base import CLSRegularizer, default_hidden, global_records

Jitter = tuple[NonNegative, NonNegative, NonNegative, NonNegative]
"""Strengths of brightness, contrast, saturation and hue."""

_NUM_OUTPUTS = {"crop": 4, "color": 4, "flip": 1, "blur": 1, "solarize": 1}
_SOLARIZE_THRESHOLD = 128 / 255  # every solarized view's


@checked
class AugSelf(CLSRegularizer):
    """Predicts the difference between two views' augmentation parameters from both [CLS].

    Each attribute with a positive weight has a predictor: three layers, batch normalisation over
    all ranks and ReLU between them, no bias but in the last. With [CLS] h1, h2 (B, C):

        inputs = [cat(h1, h2); cat(h2, h1)]                         # (2B, 2C)
        targets = [difference(record1, record2); difference(record2, record1)]
        L_flip = mean(bce(sigmoid(predict(inputs)), targets))       # 1: both or neither mirrored
        L_other = mean((tanh(predict(inputs)) - targets)^2)
        loss = sum over attributes of their weight * L

    Differences: of crop, see `crop_difference`; of colour, `color_parameters`; of blur, the sigmas
    in pixels; of solarize, the thresholds, where 1 stands for none.

    Source: AugSelf (Lee et al. 2021) and its public code; SER, Table 1, for AugSelf on MoCo-v3.
    Both use 0.5 for crop and color on ImageNet (AugSelf: ImageNet-100), and no other attribute.
    With these the predictors have 1,318,920 parameters at width 384. SER's table counts 788,736,
    those of one head 768-512-512-256, which its code builds and never trains.

    Args:
        width: channels C of [CLS]; null for the backbone's.
        weight: lambda, times the whole sum.
        crop: weight of the crop box's difference.
        color: weight of the four colour factors' difference.
        flip: weight of whether both views are mirrored alike.
        blur: weight of the blur's difference. Beyond 1 pixel tanh cannot reach it.
        solarize: weight of the solarize threshold's difference.
        hidden: width of the predictors' two hidden layers; null for 512, or twice the width where
            that is less.
        jitter: strengths of brightness, contrast, saturation and hue in the views' recipe, which
            scale the color targets; 0 for an operation that is off.

    Raises:
        ValueError: if no attribute has a positive weight.
    """

    # Differs: the original with MoCo reads view 2 from the momentum branch, without gradient;
    # SER's public code and this one read both views from the online branch.
    # Differs: SER's public code trains it on other views than MoCo-v3's (both alike, saturation
    # 0.4, blur with p 0.5, no solarize); here they are MoCo-v3's, saturation 0.2, so that methods
    # are compared on the same views. Other views: the data's recipes, and `jitter`.
    # Differs: the original draws solarize thresholds; here all are 128 / 255, so that the target
    # is -127 / 255, 0 or 127 / 255.
    # Differs: the original can predict a rotation too; no crop is turned here.
    def __init__(
        self,
        width: PositiveInt | None = None,
        weight: NonNegative = 1.0,
        crop: NonNegative = 0.5,
        color: NonNegative = 0.5,
        flip: NonNegative = 0.0,
        blur: NonNegative = 0.0,
        solarize: NonNegative = 0.0,
        hidden: PositiveInt | None = None,
        jitter: Jitter = (0.4, 0.4, 0.2, 0.1),
    ) -> None:
        super().__init__(width, weight)
        weights = {"crop": crop, "color": color, "flip": flip, "blur": blur, "solarize": solarize}
        if not any(weights.values()):
            raise ValueError(
                f"the weights of {', '.join(weights)} are all 0: nothing is predicted; set at "
                "least one, crop and color to 0.5 in the paper"
            )
        self.hidden = hidden
        self.attribute_weights = {name: value for name, value in weights.items() if value > 0}
        self.jitter = jitter
        if width is not None:
            self.build(width)

    @override
    def build(self, width: int) -> None:
        hidden = self.hidden or default_hidden(width)
        # PyTorch's default initialisation is the original's: uniform within 1 / sqrt(inputs).
        self.predictors = nn.ModuleDict(
            {
                name: mlp((2 * width, hidden, hidden, _NUM_OUTPUTS[name]), last_bias=True)
                for name in self.attribute_weights
            }
        )

    @override
    def regularize(
        self, online: BranchFeatures, target: BranchFeatures | None, batch: PartitionedBatch
    ) -> LossOutput:
        """The weighted sum over both global views; each attribute's loss is logged unweighted."""
        records = global_records(batch)
        if len(records) != NUM_GLOBAL_VIEWS:
            raise ValueError(
                f"{len(records)} global views of the crop sub-batch have a record, AugSelf "
                "compares those of two; keep crop images in the batch, and fill `View.record` if "
                "it does not come from this package's data module"
            )
        views = self.global_views(online)
        inputs = torch.cat([torch.cat(views, dim=1), torch.cat(views[::-1], dim=1)])
        losses = {}
        for name, predictor in self.predictors.items():
            pairs = (records, records[::-1])
            targets = torch.cat([self._difference(name, *pair) for pair in pairs])
            predictions = at_least_float(predictor(inputs))
            losses[name] = (
                F.binary_cross_entropy_with_logits(predictions, targets)
                if name == "flip"
                else F.mse_loss(torch.tanh(predictions), targets)
            )
        total = torch.stack([self.attribute_weights[name] * losses[name] for name in losses]).sum()
        return LossOutput(total, {f"loss/{name}": losses[name].detach() for name in losses})

    def _difference(self, name: str, first: ViewRecord, second: ViewRecord) -> Tensor:
        """One attribute's target (B, n), as the first view sees it."""
        if name == "crop":
            return crop_difference(first, second)
        if name == "color":
            return color_parameters(first, self.jitter) - color_parameters(second, self.jitter)
        if name == "flip":
            return (first.flip == second.flip).to(first.flip.dtype)[:, None]
        if name == "blur":
            return (first.blur_sigma - second.blur_sigma)[:, None]
        assert name == "solarize", name
        # a threshold is 1 without solarize
        return ((_SOLARIZE_THRESHOLD - 1) * (first.solarize - second.solarize))[:, None]


def crop_parameters(record: ViewRecord) -> Tensor:
    """Where a view was cut out: (B, 4) its centre's y and x, height, width, as shares in [0, 1]."""
    size = record.box[:, 2:] / record.source_size
    return torch.cat([record.box[:, :2] / record.source_size + size / 2, size], dim=1)


def crop_difference(first: ViewRecord, second: ViewRecord) -> Tensor:
    """First minus second view's `crop_parameters` (B, 4), as a viewer of the first sees it.

    Where the first view is mirrored, x becomes 1 - x in both views and the horizontal difference
    changes its sign, whatever the second view's flip. Source: AugSelf's public code.
    """
    down, right, height, width = (crop_parameters(first) - crop_parameters(second)).unbind(1)
    return torch.stack([down, (1 - 2 * first.flip) * right, height, width], dim=1)


def color_parameters(record: ViewRecord, jitter: Jitter) -> Tensor:
    """How far the colour factors are from no change, in units of the range they are drawn from.

        (brightness - 1) / range, (contrast - 1) / range, (saturation - 1) / range, hue / range

    The range of a factor with strength s is 1 + s - max(0, 1 - s), of the hue 2 s, so that two
    views differ by at most 1. (B, 4); 0 where the operations were not applied or have strength 0.
    """
    ranges = [1 + strength - max(0.0, 1 - strength) for strength in jitter[:3]] + [2 * jitter[3]]
    changes = (record.brightness - 1, record.contrast - 1, record.saturation - 1, record.hue)
    columns = [
        change * (1 / span if span > 0 else 0.0)
        for change, span in zip(changes, ranges, strict=True)
    ]
    return torch.stack(columns, dim=1) * record.jitter[:, None]
