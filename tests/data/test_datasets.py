"""Whole batches by key: pure functions; clean evaluation images."""

import numpy as np
import pytest
import torch

from ser_lightning.data.clean import Clean
from ser_lightning.data.datasets import CleanImages, TrainingViews, balanced_subset
from ser_lightning.data.draws import Canvas
from ser_lightning.data.extra_views import LocalCrops
from ser_lightning.data.pipelines import CropViews, InvertibleViews
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.reading import Reader
from ser_lightning.sources.base import ImageSet


class Images(ImageSet):
    """Gray images whose brightness is their index."""

    def __init__(self, count=20, size=16):
        self.labels = torch.arange(count) % 4
        self.class_names = ("a", "b", "c", "d")
        self.size = size

    def read(self, index):
        return torch.full((3, self.size, self.size), index, dtype=torch.uint8)


def training(images, rank=0, world_size=1, local=None):
    plan, pipelines = (
        Plan(len(images), 8, 4, 0, rank, world_size),
        (CropViews(local=local), InvertibleViews(0.5)),
    )
    return TrainingViews(Reader(images), plan, *pipelines, Canvas(16, 4))


def test_batch_has_both_parts_and_their_labels():
    batch = training(Images())(BatchKey(0, 0))
    assert [len(view.pixels) for view in (*batch.crop, *batch.invertible)] == [4, 4, 4, 4]
    assert torch.equal(batch.label, batch.indices % 4)
    assert len(batch.unreadable) == 0


def test_local_crops_rule_both_parts():
    batch = training(Images(), local=LocalCrops(num=4, size=8))(BatchKey(0, 0))
    for views in (batch.crop, batch.invertible):
        assert [view.pixels.shape[-1] for view in views] == [16, 16, 8, 8, 8, 8]
    assert all(view.element.shape[0] * 4 <= 16 for view in batch.invertible[2:])  # of a 2x2 grid


@pytest.mark.parametrize("local", [None, LocalCrops(num=2, size=8)])
def test_two_ranks_hold_the_batch_of_one(local):
    whole = training(Images(), local=local)(BatchKey(1, 1))
    parts = [training(Images(), rank, 2, local)(BatchKey(1, 1)) for rank in range(2)]
    for view, *halves in (
        *zip(whole.crop, *(part.crop for part in parts), strict=True),
        *zip(whole.invertible, *(part.invertible for part in parts), strict=True),
    ):
        assert torch.equal(torch.cat([half.pixels for half in halves]), view.pixels)
        for field, *shares in zip(view.record, *(half.record for half in halves), strict=True):
            assert np.array_equal(np.concatenate(shares), field)
    for view, *halves in zip(whole.invertible, *(part.invertible for part in parts), strict=True):
        for field in ("flip", "half_turn"):
            shares = [getattr(half.element, field) for half in halves]
            assert torch.equal(torch.cat(shares), getattr(view.element, field))
        assert all(half.element[2:] == view.element[2:] for half in halves)


def test_evaluation_image_is_resized_and_cropped_in_the_middle():
    class Centred(Images):
        def read(self, index):
            image = torch.zeros(3, 64, 96, dtype=torch.uint8)
            image[:, 4:60, 20:76] = 255
            return image

    clean = Clean(56, 56 / 64, (0, 0, 0), (1, 1, 1))
    pixels = CleanImages(Reader(Centred(1)), clean)(np.arange(1)).pixels
    assert torch.equal(pixels, torch.ones(1, 3, 56, 56))


def test_balanced_subset_takes_the_same_number_of_each_class():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    chosen = balanced_subset(labels, 30, 0)
    assert torch.bincount(labels[torch.from_numpy(chosen)]).tolist() == [10, 10, 10]
    assert len(set(chosen)) == 30


def test_balanced_subset_fills_up_where_a_class_is_small():
    labels = torch.tensor([0] * 50 + [1] * 2)
    chosen = balanced_subset(labels, 12, 0)
    assert torch.bincount(labels[torch.from_numpy(chosen)]).tolist() == [10, 2]


def test_balanced_subset_of_everything_is_everything():
    for size in (9, None):
        assert balanced_subset(torch.zeros(4), size, 0).tolist() == [0, 1, 2, 3]
