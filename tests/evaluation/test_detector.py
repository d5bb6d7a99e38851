"""Detectors on the frozen ViT: anchors, sizes, and which weights they train."""

import pytest
import torch

from ser_lightning.backbones import SplitViT
from ser_lightning.evaluation.detector import build_detector
from support import tiny_backbone

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def tiny_detector(head, channels=32, **backbone):
    torch.manual_seed(0)
    return build_detector(head, tiny_backbone(**backbone), 91, MEAN, STD, channels)


def small_vit():
    options = {"depth": 1, "embed_dim": 384, "num_heads": 6}
    return SplitViT(image_size=32, patch_size=16, layer=1, vit_options=options)


@pytest.mark.parametrize(
    ("head", "millions"), [("faster_rcnn", 20.16), ("retinanet", 9.00), ("fcos", 7.26)]
)
def test_trained_weights_at_the_width_of_vit_small(head, millions):
    with torch.device("meta"):
        backbone = small_vit()
        detector = build_detector(head, backbone, 91, MEAN, STD)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert trained / 1e6 == pytest.approx(millions, abs=0.02)


@pytest.mark.parametrize(
    ("head", "smallest"), [("faster_rcnn", 32), ("retinanet", 32), ("fcos", 8)]
)
def test_anchors_of_a_patch_of_16_pixels_are_the_usual_ones(head, smallest):
    detector = build_detector(head, small_vit(), 91, MEAN, STD, 32)
    generator = detector.rpn.anchor_generator if head == "faster_rcnn" else None
    generator = generator or detector.anchor_generator
    assert [sizes[0] for sizes in generator.sizes] == [smallest * 2**i for i in range(5)]


def test_images_are_normalised_once_padded_and_not_resized():
    detector = tiny_detector("fcos")
    image = torch.rand(3, 21, 30)
    target = {"boxes": torch.tensor([[1.0, 2, 9, 8]]), "labels": torch.tensor([3])}
    images, targets = detector.transform([image], [target])
    assert images.tensors.shape == (1, 3, 24, 32)  # a multiple of two patches of 4 pixels
    assert images.image_sizes == [(21, 30)]
    assert torch.equal(targets[0]["boxes"], target["boxes"])
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    torch.testing.assert_close(images.tensors[0, :, :21, :30], (image - mean) / std)
    assert images.tensors[0, :, 21:].abs().max() == 0


@pytest.mark.parametrize(
    "head", ["fcos", pytest.param("retinanet", marks=pytest.mark.slow), "faster_rcnn"]
)
def test_losses_reach_every_weight_but_those_of_the_vit(head):
    detector = tiny_detector(head).train()
    targets = [
        {"boxes": torch.tensor([[4.0, 6, 34, 40]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[2.0, 2, 9, 11]]), "labels": torch.tensor([90])},
    ]
    losses = detector([torch.rand(3, 48, 64), torch.rand(3, 64, 40)], targets)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in detector.named_parameters():
        if name.startswith("backbone.backbone."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_faster_rcnn_refuses_patches_whose_strides_are_no_powers_of_two():
    with pytest.raises(ValueError, match=r"patches of 6 pixels.*use --model.head retinanet"):
        tiny_detector("faster_rcnn", image_size=24, patch_size=6)
    tiny_detector("fcos", image_size=24, patch_size=6)


def test_fcos_refuses_channels_that_its_norms_do_not_divide():
    with pytest.raises(ValueError, match=r"channels 40 are no multiple .*use --model.channels 64"):
        tiny_detector("fcos", channels=40)


def test_unknown_head_is_refused():
    with pytest.raises(ValueError, match="head 'detr' is not one of faster_rcnn, retinanet, fcos"):
        tiny_detector("detr")
