"""Clean images: the middle of the resized image, and which part of it that is."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ser_lightning.data.clean import Clean
from ser_lightning.data.crops import middle


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 47), (500, 333), (28, 28)])
@pytest.mark.parametrize("fraction", [1.0, 224 / 256, 0.5])
def test_central_boxes_are_what_the_central_crop_keeps(height, width, fraction):
    rows = torch.linspace(0, 255, height)[:, None].expand(height, width)
    columns = torch.linspace(0, 255, width).expand(height, width)
    image = torch.stack([rows, columns, rows]).round().to(torch.uint8)
    clean = Clean(24, fraction)
    ((top, left, *sides),) = clean.record([image]).box
    assert sides == [sides[0]] * 2
    assert sides[0] == pytest.approx(fraction * min(height, width), rel=0.03)
    shown = clean.cut(image).float() / 255
    for channel, (start, length) in enumerate([(top, height), (left, width)]):
        middle = shown[channel].mean() * (length - 1) + 0.5
        # half a pixel of the result, by which the crop's place is rounded, and one of the image
        assert middle == pytest.approx(start + sides[0] / 2, abs=1 + sides[0] / 48)


@pytest.mark.parametrize("size", [(40, 700), (900, 50), (7, 900), (1400, 41)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_long_images_are_cut_before_they_are_resized_and_look_the_same(size, interpolation):
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0))
    image = image.to(torch.uint8)
    for resized, side in ((32, 28), (64, 64), (100, 57)):
        whole = F.resize(image, [resized], InterpolationMode(interpolation), antialias=True)
        expected = F.center_crop(whole, [side, side]).int()
        shown = middle(image, resized, side, interpolation).int()
        assert (shown - expected).abs().max() <= 1


def test_a_long_image_takes_no_more_memory_than_what_is_shown():
    """Resized as a whole, this one would have 3 * 256 * 25,600,000 pixels."""
    image = torch.full((3, 1, 100_000), 7, dtype=torch.uint8)
    assert (Clean(224).cut(image) == 7).all()
