"""A linear classifier of the tokens of a map, and the mask that it makes of them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_lightning.backbones.heads import CrossRankBatchNorm1d
from ser_lightning.distributed import all_reduce_mean
from ser_lightning.sources.masks import IGNORED

INITIAL_STD = 0.01


class LinearMaskHead(nn.Module):
    """Batch normalisation over tokens and images, then a 1x1 convolution.

    Source: DINOv2's linear head for segmentation (BNHead). Its statistics are those of the global
    batch.
    Differs: no dropout, which would depend on the number of processes.
    """

    def __init__(self, width: int, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.norm = CrossRankBatchNorm1d(width)
        self.classify = nn.Conv2d(width, num_classes, 1)
        draws = torch.Generator().manual_seed(seed)
        weight = INITIAL_STD * torch.randn(num_classes, width, 1, 1, generator=draws)
        self.classify.weight = nn.Parameter(weight)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, C, h, w) token map to (B, classes, h, w) logits."""
        normed: Tensor = self.norm(tokens.flatten(2)).view_as(tokens)
        logits: Tensor = self.classify(normed)
        return logits


def enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, classes, h, w) resampled to a size, bilinear."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of the pixels that count, averaged over those of the global batch.

    With the average of gradients over ranks that DDP takes, N processes have the gradient of one:
    a rank's sum is divided by the number of pixels of a mean rank. No gradient flows through it.

    Args:
        logits: (B, classes, h, w).
        truth: (B, H, W) int64 classes, `IGNORED` where a pixel does not count.
    """
    large = enlarged(logits, (truth.shape[1], truth.shape[2]))
    total = F.cross_entropy(large, truth, ignore_index=IGNORED, reduction="sum")
    return total / all_reduce_mean((truth != IGNORED).sum()).clamp(min=1)


def predicted_masks(logits: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """The likeliest class of every pixel of each image, (H, W) int64, in the images' own sizes."""
    return [enlarged(logits[i : i + 1], size).argmax(1)[0] for i, size in enumerate(sizes)]
