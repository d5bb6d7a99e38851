"""ViT backbones that hand out a token map on the way, projection heads and the EMA."""

from ser_lightning.backbones.split_vit import Prefix, SplitViT

__all__ = ["Prefix", "SplitViT"]
