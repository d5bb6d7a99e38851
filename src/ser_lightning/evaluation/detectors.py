"""torchvision's detectors on a frozen ViT: all of their anchors follow from its patch size."""

from typing import Any, Literal, get_args

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from ser_lightning.backbones import SplitViT
from ser_lightning.evaluation.pyramid import FrozenPyramid, SimpleFeaturePyramid

Head = Literal["faster_rcnn", "retinanet", "fcos"]

MAX_DETECTIONS = 100
_SCORE_THRESHOLD = 0.05
_NMS_THRESHOLD = 0.5
_ASPECTS = (0.5, 1.0, 2.0)


class _Padded(GeneralizedRCNNTransform):
    """Normalises and pads images that have their size already."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """Leaves image and boxes as they are."""
        return image, target


def build_detector(
    head: Head,
    backbone: SplitViT,
    num_classes: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    channels: int = 256,
    precision: torch.dtype | None = None,
) -> nn.Module:
    """A detector whose backbone is frozen and whose other weights are new.

    For a patch of 16 pixels Faster R-CNN reads maps of strides 4, 8, 16, 32 and 64, with anchors of
    32 to 512 pixels; RetinaNet and FCOS read strides 8 to 128. It takes images in [0, 1] of any
    sizes, as they are: it normalises and pads them, but does not resize.

    Args:
        head: which detector.
        backbone: the frozen ViT.
        num_classes: category ids from 0, the background.
        mean: channel means that the backbone was trained with.
        std: channel standard deviations that it was trained with.
        channels: of the pyramid and of the detector's convolutions.
        precision: what the ViT computes in under autocast; everything else is float32.

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
        box_score_thresh=_SCORE_THRESHOLD,
        box_nms_thresh=_NMS_THRESHOLD,
        box_detections_per_img=MAX_DETECTIONS,
    )


def _retinanet(pyramid: FrozenPyramid, num_classes: int, patch_size: int) -> nn.Module:
    sides = [2 * patch_size * 2**level for level in range(5)]
    sizes = tuple(tuple(int(side * 2 ** (i / 3)) for i in range(3)) for side in sides)
    return RetinaNet(
        pyramid,
        num_classes,
        anchor_generator=AnchorGenerator(sizes, (_ASPECTS,) * 5),
        score_thresh=_SCORE_THRESHOLD,
        nms_thresh=_NMS_THRESHOLD,
        detections_per_img=MAX_DETECTIONS,
    )


def _fcos(pyramid: FrozenPyramid, num_classes: int, patch_size: int) -> nn.Module:
    sizes = tuple((patch_size * 2**level // 2,) for level in range(5))
    return FCOS(
        pyramid,
        num_classes,
        anchor_generator=AnchorGenerator(sizes, ((1.0,),) * 5),
        score_thresh=_SCORE_THRESHOLD,
        nms_thresh=_NMS_THRESHOLD,
        detections_per_img=MAX_DETECTIONS,
    )
