"""ViT backbones that hand out a token map on the way, projection heads and the EMA."""

from ser_lightning.backbones.ema import momentum_copy, update_momentum
from ser_lightning.backbones.heads import CrossRankBatchNorm1d, mlp, moco_predictor, moco_projector
from ser_lightning.backbones.split_vit import Prefix, SplitViT
from ser_lightning.backbones.weights import Branch

__all__ = [
    "Branch",
    "CrossRankBatchNorm1d",
    "Prefix",
    "SplitViT",
    "mlp",
    "moco_predictor",
    "moco_projector",
    "momentum_copy",
    "update_momentum",
]
