"""A feature pyramid on the last token map of a frozen ViT, as detectors want it.

Source: ViTDet (Li et al. 2022), simple feature pyramid.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from ser_lightning.backbones import SplitViT


def _resample(width: int, scale: float) -> tuple[nn.Module, int]:
    """What brings a map of `width` channels to `scale` times its size, and its channels then."""
    if scale == 4:
        up = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            LayerNorm2d(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
        )
        return up, width // 4
    if scale == 2:
        return nn.ConvTranspose2d(width, width // 2, 2, 2), width // 2
    if scale == 1:
        return nn.Identity(), width
    assert scale == 0.5, scale
    return nn.MaxPool2d(2, 2), width


class SimpleFeaturePyramid(nn.Module):
    """Maps of several sizes from one token map.

    Each level resamples the token map, then has a 1x1 and a 3x3 convolution, each with a layer norm
    over channels. The extra levels subsample the coarsest one by 2, again and again.

    Args:
        width: channels of the token map.
        channels: channels of every level.
        scales: sizes of the levels relative to the token map, from large to small: of 4, 2, 1, 0.5.
        num_extra: levels after these.

    Attributes:
        out_channels: channels of every level; torchvision's detectors ask for it.
    """

    def __init__(self, width: int, channels: int, scales: Sequence[float], num_extra: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for scale in scales:
            resample, between = _resample(width, scale)
            level = nn.Sequential(
                resample,
                nn.Conv2d(between, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            self.levels.append(level)
        self.num_extra = num_extra
        self.out_channels = channels

    def forward(self, tokens: Tensor) -> OrderedDict[str, Tensor]:
        """(B, C, h, w) token map to the levels "p0", "p1", ..., each (B, channels, h', w')."""
        maps = [level(tokens) for level in self.levels]
        for _ in range(self.num_extra):
            maps.append(F.max_pool2d(maps[-1], 1, 2))
        return OrderedDict((f"p{number}", level) for number, level in enumerate(maps))


class FrozenPyramid(nn.Module):
    """The pyramid on the patch tokens of a frozen ViT after its final norm.

    No gradient reaches the ViT, and it stays in evaluation mode. The pyramid computes in float32.

    Args:
        backbone: the ViT.
        pyramid: takes its token maps.
        precision: what the ViT computes in under autocast; None for its own.

    Attributes:
        out_channels: channels of every level.
    """

    def __init__(
        self,
        backbone: SplitViT,
        pyramid: SimpleFeaturePyramid,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.pyramid = pyramid
        self.precision = precision
        self.out_channels = pyramid.out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) normalised images, sides of whole patches, to the levels."""
        kind, reduced = images.device.type, self.precision is not None
        with torch.no_grad(), torch.autocast(kind, self.precision, enabled=reduced):
            (tokens,) = self.backbone.token_maps(images, [self.backbone.depth])
        levels: OrderedDict[str, Tensor] = self.pyramid(tokens.float())
        return levels

    def train(self, mode: bool = True) -> "FrozenPyramid":
        """Sets the mode of the pyramid alone."""
        super().train(mode)
        self.backbone.eval()
        return self
