"""Tests of the generated patterns."""

import numpy as np
import pytest
import torch

from ser_lightning.data import Patterns
from ser_lightning.sources.patterns import OUTLINES, PATTERNS, draw_patterns


@pytest.fixture(scope="module")
def source():
    return Patterns(num_train=1200, num_evaluation=360)


def test_splits_have_labels_of_twelve_balanced_classes(source):
    train, evaluation = source.train(), source.evaluation()
    assert (len(train), len(evaluation)) == (1200, 360)
    assert train.labels.bincount().tolist() == [100] * 12
    assert train.class_names == tuple(PATTERNS)
    assert train.read(3).shape == (3, 32, 32)
    assert train.read(3).dtype == torch.uint8


def test_image_is_a_pure_function_of_split_and_position(source):
    some = draw_patterns(0, np.array([700, 5]), 32)
    assert np.array_equal(some, source.train().pixels[[700, 5]].numpy())
    assert torch.equal(Patterns(num_train=50).train().pixels, source.train().pixels[:50])


def test_splits_and_images_differ(source):
    both = torch.cat([source.train().pixels[:360], source.evaluation().pixels])
    assert len(both.flatten(1).unique(dim=0)) == 720


def test_image_size_and_clutter_are_free():
    images = Patterns(num_train=24, image_size=48, clutter=0).train()
    assert images.pixels.shape == (24, 3, 48, 48)
    rough = Patterns(num_train=24, image_size=48, clutter=1).train().pixels.float()
    assert rough.diff(dim=-1).abs().mean() > images.pixels.float().diff(dim=-1).abs().mean()


def test_patterns_lie_any_way_round():
    """The gradients of stripes point along their normal; all directions are about as frequent."""
    pixels = Patterns(num_train=2400, clutter=0).train().pixels[::12].float().mean(1)
    x, y = pixels.diff(dim=2)[:, :-1], pixels.diff(dim=1)[:, :, :-1]
    double = torch.atan2((2 * x * y).sum((1, 2)), (x**2 - y**2).sum((1, 2)))
    assert torch.complex(double.cos(), double.sin()).mean().abs() < 0.25
    assert double.histc(4, -torch.pi, torch.pi).min() > 0.15 * len(pixels)


@pytest.mark.parametrize("outline", OUTLINES)
def test_every_outline_fits_its_square_and_covers_a_good_part_of_it(outline):
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 91), np.linspace(-1.5, 1.5, 91))
    inside = outline(x, y) < 0
    assert not inside[(np.abs(x) > 1) | (np.abs(y) > 1)].any()
    assert 0.15 < inside.mean() * 1.5**2 < 0.8


def test_raw_pixels_hardly_tell_classes(source):
    """What a network that has learned nothing could use. Measured: 0.25."""
    train, evaluation = source.train(), source.evaluation()
    bank, queries = (images.pixels.flatten(1).float() for images in (train, evaluation))
    mean = bank.mean(0)
    bank, queries = (torch.nn.functional.normalize(x - mean, dim=1) for x in (bank, queries))
    nearest = train.labels[(queries @ bank.T).topk(20).indices]
    accuracy = (nearest.mode(1).values == evaluation.labels).float().mean()
    assert accuracy < 0.3


@pytest.mark.parametrize("name", ["num_train", "num_evaluation", "image_size"])
def test_empty_sets_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} 0"):
        Patterns(**{name: 0})
