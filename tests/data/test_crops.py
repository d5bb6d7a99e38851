"""Tests of crop boxes and resizing against torchvision."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from ser_lightning.data.crops import (
    NUM_UNIFORMS,
    crop_and_resize,
    crop_boxes,
    cut,
    whole,
)
from ser_lightning.data.extra_views import LocalCrops
from ser_lightning.data.pipelines import CropViews
from ser_lightning.randomness import Stream, uniforms

RATIO = (3 / 4, 4 / 3)


def draw(count):
    return uniforms(0, Stream.AUGMENT, 0, np.arange(count), 0, NUM_UNIFORMS)


def ks_distance(first, second):
    """Largest distance between two empirical distribution functions."""
    points = np.sort(np.concatenate([first, second]))
    shares = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (first, second)]
    return np.abs(shares[0] - shares[1]).max()


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1)])
@pytest.mark.parametrize("ratio", [(0.1, 0.3), (3, 4)])
def test_box_in_a_line_of_pixels_has_at_least_one(height, width, ratio):
    boxes = crop_boxes(draw(8), height, width, ratio=ratio)
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [height, width]).all()


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(28, 28, (0.08, 1.0)), (375, 500, (0.08, 1.0)), (90, 200, (0.25, 1.0)), (500, 60, (0.3, 1.0))],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    count = 1500
    torch.manual_seed(0)
    blank = torch.empty(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, list(scale), list(RATIO)) for _ in range(count)]
    )
    ours = crop_boxes(draw(count), height, width, scale)
    for column in range(4):  # 1 % critical value for 1500 against 1500: 0.059
        assert ks_distance(ours[:, column], theirs[:, column]) < 0.059


@pytest.mark.parametrize(("height", "width"), [(28, 28), (1, 1), (7, 300), (300, 7), (2, 3)])
def test_boxes_lie_within_the_image(height, width):
    top, left, crop_height, crop_width = crop_boxes(draw(500), height, width).T
    assert min(top.min(), left.min()) >= 0
    assert min(crop_height.min(), crop_width.min()) >= 1
    assert (top + crop_height).max() <= height
    assert (left + crop_width).max() <= width


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_boxes_of_extreme_images_are_torchvisions_central_crop(height, width):
    scale = (0.9, 1.0)  # no crop of this area has an allowed aspect: always the central one
    theirs = RandomResizedCrop.get_params(torch.empty(1, height, width), list(scale), list(RATIO))
    assert (crop_boxes(draw(20), height, width, scale) == np.array(theirs)).all()


def test_boxes_take_one_size_per_image():
    block = draw(6)
    heights, widths = np.array([28, 30, 300, 40, 50, 9]), np.array([28, 60, 30, 41, 49, 9])
    rows = [crop_boxes(block[i : i + 1], heights[i], widths[i])[0] for i in range(6)]
    assert np.array_equal(crop_boxes(block, heights, widths), np.stack(rows))


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.2)])
def test_crops_of_an_impossible_scale_are_refused(scale):
    with pytest.raises(ValueError, match="CropViews: scale"):
        CropViews(scale=scale)


def test_crops_of_an_impossible_ratio_are_refused():
    with pytest.raises(ValueError, match="CropViews: ratio"):
        CropViews(ratio=(2.0, 1.0))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (75, 100), (40, 31)])
@pytest.mark.parametrize("flip", [False, True])
def test_pixels_are_bit_equal_to_torchvisions(interpolation, height, width, flip):
    image = picture(height, width)
    boxes = [*crop_boxes(draw(8), height, width), np.array([0, 0, 28, 28])]
    for box in boxes:
        theirs = F.resized_crop(
            image, *box.tolist(), size=[28, 28], interpolation=InterpolationMode(interpolation)
        )
        theirs = F.horizontal_flip(theirs) if flip else theirs
        assert torch.equal(crop_and_resize(image, box, 28, flip, interpolation), theirs)


def test_pixels_do_not_depend_on_the_memory_format():
    image = picture(50, 40)
    strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as image decoders return it
    box = np.array([3, 4, 30, 20])
    result = crop_and_resize(strided, box, 16)
    assert torch.equal(result, crop_and_resize(image, box, 16))
    assert result.is_contiguous()


def test_whole_image_of_the_right_size_is_copied_unchanged():
    image = picture(28, 28)
    (result,) = cut([image], whole([image]), 28)
    assert torch.equal(result, image)
    result.zero_()
    assert image.sum() > 0


def test_whole_images_are_squashed():
    images = [picture(60, 20), picture(30, 50)]
    where = whole(images)
    result = cut(images, where, 24)
    expected = [F.resize(image, [24, 24], antialias=True) for image in images]
    assert torch.equal(result, torch.stack(expected))
    flipped = cut(images, where._replace(flip=np.array([False, True])), 24)
    assert torch.equal(flipped, torch.stack([expected[0], expected[1].flip(-1)]))


def test_local_crops_default_to_four_of_96_pixels_with_dinos_colours():
    local = LocalCrops()
    assert (local.num, local.size, local.scale) == (4, 96, (0.05, 0.25))
    view = local.view
    assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.2, 0.1)
    assert (view.p_jitter, view.p_gray, view.p_blur, view.p_solarize) == (0.8, 0.2, 0.5, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "^LocalCrops: num 0 must be int >= 1; the default is 4"),
        ({"size": 0}, "^LocalCrops: size 0 must be int >= 1; the default is 96"),
        (
            {"scale": (0.3, 0.2)},
            r"^LocalCrops: scale \(0.3, 0.2\) must be \[a, b\] with 0 < a <= b",
        ),
        ({"scale": (0.0, 0.2)}, "^LocalCrops: scale"),
    ],
)
def test_impossible_local_crops_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalCrops(**options)
