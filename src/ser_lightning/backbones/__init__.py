"""ViT backbones that hand out a token map on the way, projection heads and the EMA."""

from ser_lightning.backbones.ema import momentum_copy, update_momentum
from ser_lightning.backbones.opening import OpenedBackbone, open_backbone
from ser_lightning.backbones.split_vit import SplitViT
from ser_lightning.foreign import Branch

__all__ = [
    "Branch",
    "OpenedBackbone",
    "SplitViT",
    "momentum_copy",
    "open_backbone",
    "update_momentum",
]
