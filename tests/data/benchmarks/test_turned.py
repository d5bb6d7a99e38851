"""Test images in four quarter turns."""

import torch

from ser_lightning.data.benchmarks.turned import TurnedImages
from ser_lightning.sources.base import MemoryImages


def test_the_middle_square_is_turned_counter_clockwise():
    pixels = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).byte()
    images = TurnedImages(MemoryImages(pixels, torch.tensor([1, 0]), ("a", "b")))
    square = pixels[1][:, :, 1:5]
    versions = images.read(1)
    assert torch.equal(versions[0], square)
    for y in range(4):
        for x in range(4):  # what was at the right is now at the top
            assert torch.equal(versions[1][:, y, x], square[:, x, 3 - y])
    assert torch.equal(versions[2], square.flip(-1, -2))
    assert torch.equal(versions[3].rot90(1, (-2, -1)), square)
    assert images.labels.tolist() == [1, 0]
