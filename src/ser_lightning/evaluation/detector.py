"""torchvision's detectors on a frozen ViT: all of their anchors follow from its patch size."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

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
    """Maps of several sizes from one token map (B, width, h, w).

    Each level resamples the token map to one of the `scales`, from large to small and of 4, 2, 1
    and 0.5, then has a 1x1 and a 3x3 convolution, each with a layer norm over channels. The extra
    levels subsample the coarsest one by 2, again and again.
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
        self.out_channels = channels  # torchvision's detectors ask for it

    def forward(self, tokens: Tensor) -> OrderedDict[str, Tensor]:
        """(B, C, h, w) token map to the levels "p0", "p1", ..., each (B, channels, h', w')."""
        maps = [level(tokens) for level in self.levels]
        for _ in range(self.num_extra):
            maps.append(F.max_pool2d(maps[-1], 1, 2))
        return OrderedDict((f"p{number}", level) for number, level in enumerate(maps))


class FrozenPyramid(nn.Module):
    """The pyramid on the patch tokens of a frozen ViT after its final norm.

    No gradient reaches the ViT, and it stays in evaluation mode. The pyramid computes in float32;
    `precision` is what the ViT computes in under autocast, None for its own.
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


Head = Literal["faster_rcnn", "retinanet", "fcos"]
MAX_DETECTIONS = 100
_ASPECTS = (0.5, 1.0, 2.0)
_LIMITS: dict[str, Any] = {"score_thresh": 0.05, "nms_thresh": 0.5}
_LIMITS["detections_per_img"] = MAX_DETECTIONS


class _Padded(GeneralizedRCNNTransform):
    """Normalises and pads images that have their size already."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """Leaves image and boxes as they are."""
        return image, target


def build_detector(
    head: Head,
    backbone: SplitViT,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    channels: int = 256,
    precision: torch.dtype | None = None,
) -> nn.Module:
    """A detector whose backbone is frozen and whose other weights are new.

    For a patch of 16 pixels Faster R-CNN reads maps of strides 4, 8, 16, 32 and 64, with anchors of
    32 to 512 pixels; RetinaNet and FCOS read strides 8 to 128. It takes images in [0, 1] of any
    sizes, as they are: it normalises and pads them, but does not resize.

    The means and standard deviations are those that the backbone was trained with; `precision` is
    what it computes in under autocast, everything else is float32.

    Raises:
        ValueError: if there is no such detector, or it does not fit the patch size.
    """
    if head not in get_args(Head):
        raise ValueError(f"head {head!r} is not one of {', '.join(get_args(Head))}")
    make = {"faster_rcnn": _faster_rcnn, "retinanet": _retinanet, "fcos": _fcos}[head]
    scales = (4, 2, 1, 0.5) if head == "faster_rcnn" else (2, 1, 0.5)
    num_extra = 1 if head == "faster_rcnn" else 2
    pyramid = SimpleFeaturePyramid(backbone.width, channels, scales, num_extra)
    detector = make(FrozenPyramid(backbone, pyramid, precision), num_classes, backbone.patch_size)
    detector.transform = _Padded(
        0, 0, list(mean), list(std), size_divisible=2 * backbone.patch_size
    )
    return detector


def _faster_rcnn(pyramid: FrozenPyramid, num_classes: int, patch_size: int) -> nn.Module:
    """Faster R-CNN with a two-layer RPN and a head of four convolutions and a hidden layer.

    Source: ViTDet, layer norms in the head included.
    """
    if patch_size & (patch_size - 1):
        raise ValueError(
            f"Faster R-CNN finds the level of a box by powers of two, patches of {patch_size} "
            "pixels give other strides; use --model.head retinanet or fcos"
        )
    channels, hidden = pyramid.out_channels, 4 * pyramid.out_channels
    sizes = tuple((2 * patch_size * 2**level,) for level in range(5))
    return FasterRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(sizes, (_ASPECTS,) * 5),
        rpn_head=RPNHead(channels, len(_ASPECTS), conv_depth=2),
        box_roi_pool=MultiScaleRoIAlign(["p0", "p1", "p2", "p3"], 7, 2),
        box_head=FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [hidden], LayerNorm2d),
        box_predictor=FastRCNNPredictor(hidden, num_classes),
        **{f"box_{name}": value for name, value in _LIMITS.items()},
    )


def _retinanet(pyramid: FrozenPyramid, num_classes: int, patch_size: int) -> nn.Module:
    sides = [2 * patch_size * 2**level for level in range(5)]
    sizes = tuple(tuple(int(side * 2 ** (i / 3)) for i in range(3)) for side in sides)
    return RetinaNet(
        pyramid,
        num_classes,
        anchor_generator=AnchorGenerator(sizes, (_ASPECTS,) * 5),
        **_LIMITS,
    )


def _fcos(pyramid: FrozenPyramid, num_classes: int, patch_size: int) -> nn.Module:
    channels, groups = pyramid.out_channels, 32  # of torchvision's norms
    if channels % groups:
        raise ValueError(
            f"channels {channels} are no multiple of the {groups} groups that FCOS normalises; use "
            f"--model.channels {-(-channels // groups) * groups}"
        )
    sizes = tuple((patch_size * 2**level // 2,) for level in range(5))
    return FCOS(
        pyramid,
        num_classes,
        anchor_generator=AnchorGenerator(sizes, ((1.0,),) * 5),
        **_LIMITS,
    )
