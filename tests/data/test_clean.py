"""Clean images: the middle of the resized image, and which part of it that is."""

import pytest
import torch

from ser_lightning.data.clean import Clean


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
