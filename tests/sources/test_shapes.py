"""Tests of the generated shapes."""

import numpy as np
import pytest
import torch

from ser_lightning.sources.shapes import SHAPES, Shapes, draw_shapes


@pytest.fixture(scope="module")
def source():
    return Shapes(num_train=1200, num_evaluation=360)


def test_splits_have_labels_of_twelve_balanced_classes(source):
    train, evaluation = source.train(), source.evaluation()
    assert (len(train), len(evaluation)) == (1200, 360)
    assert train.labels.bincount().tolist() == [100] * 12
    assert train.labels.dtype == torch.int64
    assert train.num_classes == len(train.class_names) == 12
    assert train.read(3).shape == (3, 32, 32)
    assert train.read(3).dtype == torch.uint8


def test_image_is_a_pure_function_of_split_and_position(source):
    some = draw_shapes(0, np.array([700, 5]), 32)
    assert np.array_equal(some, source.train().pixels[[700, 5]].numpy())
    fewer = Shapes(num_train=50).train()
    assert torch.equal(fewer.pixels, source.train().pixels[:50])


def test_splits_and_images_differ(source):
    train, evaluation = source.train(), source.evaluation()
    both = torch.cat([train.pixels[:360], evaluation.pixels])
    assert len(both.flatten(1).unique(dim=0)) == 720


def test_split_is_drawn_once(source):
    assert source.train() is source.train()


def test_image_size_is_free():
    images = Shapes(num_train=24, image_size=48).train()
    assert images.pixels.shape == (24, 3, 48, 48)


@pytest.mark.parametrize(
    ("name", "partner", "moved"),
    [
        ("arrow up", "arrow right", lambda mask: np.rot90(mask, -1)),
        ("L", "mirrored L", lambda mask: mask[:, ::-1]),
        ("flag right", "flag left", lambda mask: mask[:, ::-1]),
        ("triangle up", "triangle down", lambda mask: mask[::-1]),
    ],
)
def test_four_pairs_differ_by_their_orientation_only(name, partner, moved):
    # 63 points lie symmetric, none of them on an outline
    x, y = np.meshgrid(np.linspace(-1, 1, 63), -np.linspace(-1, 1, 63))
    inside = SHAPES[name](x, y) < 0
    assert np.array_equal(moved(inside), SHAPES[partner](x, y) < 0)
    assert not np.array_equal(inside, SHAPES[partner](x, y) < 0)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_fits_its_square_and_covers_a_good_part_of_it(name):
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 91), np.linspace(-1.5, 1.5, 91))
    inside = SHAPES[name](x, y) < 0
    assert not inside[(np.abs(x) > 1) | (np.abs(y) > 1)].any()
    assert 0.15 < inside.sum() / (np.abs(x).max() ** -2 * inside.size) < 0.7


def test_raw_pixels_tell_classes_only_in_part(source):
    """The set must be neither hopeless nor solved before training. Measured: 0.35."""
    train, evaluation = source.train(), source.evaluation()
    bank, queries = (images.pixels.flatten(1).float() for images in (train, evaluation))
    mean = bank.mean(0)
    bank, queries = (torch.nn.functional.normalize(x - mean, dim=1) for x in (bank, queries))
    nearest = train.labels[(queries @ bank.T).topk(20).indices]
    accuracy = (nearest.mode(1).values == evaluation.labels).float().mean()
    assert 0.2 < accuracy < 0.8


@pytest.mark.parametrize("name", ["num_train", "num_evaluation", "image_size"])
def test_empty_sets_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} 0"):
        Shapes(**{name: 0})
