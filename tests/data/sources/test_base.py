"""Tests of the interface of image sets."""

import numpy as np
import pytest
import torch

from ser_lightning.data.sources.base import MemoryImages, Part, hold_out


def memory(count, channels=3):
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, channels, 2, 3)
    return MemoryImages(pixels, torch.arange(count) % 2, ("even", "odd"))


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_images_are_read_as_colour(channels):
    images = memory(5, channels)
    assert len(images) == 5
    assert images.num_classes == 2
    assert images.read(4).shape == (3, 2, 3)
    assert (images.read(4) == 4).all()


def test_part_reads_its_images_with_their_labels():
    part = Part(memory(9), np.array([7, 2]))
    assert len(part) == 2
    assert [int(part.read(i)[0, 0, 0]) for i in range(2)] == [7, 2]
    assert part.labels.tolist() == [1, 0]
    assert part.class_names == ("even", "odd")


def test_hold_out_keeps_every_twentieth_image_from_training():
    train, held_out = hold_out(memory(45))
    assert [int(held_out.read(i)[0, 0, 0]) for i in range(len(held_out))] == [19, 39]
    assert len(train) == 43


def test_hold_out_of_a_small_set_holds_nothing_out():
    train, held_out = hold_out(memory(19))
    assert len(train) == 19
    assert held_out is None
