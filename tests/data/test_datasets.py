"""Whole batches by key: pure functions, unreadable images, clean evaluation images."""

import warnings

import numpy as np
import pytest
import torch

from ser_lightning.data.datasets import EvaluationBatches, ImageReader, balanced_subset
from ser_lightning.data.datasets import TrainingBatches as Batches
from ser_lightning.data.pipelines import CropViews, InvertibleViews
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.settings import LocalCrops
from ser_lightning.data.sources.base import ImageSet, UnreadableImage


class Images(ImageSet):
    """Gray images whose brightness is their index; some of them are damaged."""

    def __init__(self, count=20, bad=(), size=16):
        self.labels = torch.arange(count) % 4
        self.class_names = ("a", "b", "c", "d")
        self.bad, self.size = set(bad), size

    def read(self, index):
        if index in self.bad:
            raise UnreadableImage(f"image_{index}.jpg cannot be read")
        return torch.full((3, self.size, self.size), index, dtype=torch.uint8)


def training(images, rank=0, world_size=1, local=None, **options):
    plan = Plan(len(images), 8, 4, 0, rank, world_size)
    return Batches(images, plan, CropViews(local=local), InvertibleViews(0.5), 16, 4, **options)


def test_batch_has_both_parts_and_their_labels():
    batch = training(Images())[BatchKey(0, 0)]
    assert [len(view.pixels) for view in (*batch.crop, *batch.invertible)] == [4, 4, 4, 4]
    assert torch.equal(batch.label, batch.indices % 4)
    assert batch.num_unreadable == 0


def test_local_crops_rule_both_parts():
    batch = training(Images(), local=LocalCrops(num=4, size=8))[BatchKey(0, 0)]
    for views in (batch.crop, batch.invertible):
        assert [view.pixels.shape[-1] for view in views] == [16, 16, 8, 8, 8, 8]
    assert all(view.element.shape[0] * 4 <= 16 for view in batch.invertible[2:])  # of a 2x2 grid


@pytest.mark.parametrize("local", [None, LocalCrops(num=2, size=8)])
def test_two_ranks_hold_the_batch_of_one(local):
    whole = training(Images(), local=local)[BatchKey(1, 1)]
    parts = [training(Images(), rank, 2, local)[BatchKey(1, 1)] for rank in range(2)]
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


def test_unreadable_image_stops_the_run_with_its_name():
    batches = training(Images(bad=range(20)))
    with pytest.raises(UnreadableImage, match=r"image_\d+\.jpg"):
        batches[BatchKey(0, 0)]


def test_unreadable_image_is_skipped_named_and_counted_on_request():
    with pytest.warns(UserWarning, match=r"image_3\.jpg cannot be read; the next"):
        image, position = ImageReader(Images(bad=[3]), "skip").read(3)
    assert position == 4
    assert image[0, 0, 0] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = [
            int(training(Images(bad=[3, 4]), on_bad_image="skip")[BatchKey(0, s)].num_unreadable)
            for s in range(2)
        ]
    assert sum(counts) in range(1, 4)  # 16 of 20 images are seen; 3 costs two attempts


def test_a_data_set_without_readable_images_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnreadableImage, match="no image"):
            ImageReader(Images(3, bad=range(3)), "skip").read(0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_once_over_all_ranks(world_size):
    seen = []
    for rank in range(world_size):
        batches = EvaluationBatches(Images(), None, 3, 16, rank=rank, world_size=world_size)
        for number in range(len(batches)):
            seen += batches[number].indices.tolist()
    assert sorted(seen) == list(range(20))
    assert batches.num_images == 20


def test_evaluation_image_is_resized_and_cropped_in_the_middle():
    class Centred(Images):
        def read(self, index):
            image = torch.zeros(3, 64, 96, dtype=torch.uint8)
            image[:, 4:60, 20:76] = 255
            return image

    pixels = EvaluationBatches(Centred(1), None, 1, 56, 56 / 64, (0, 0, 0), (1, 1, 1))[0].pixels
    assert torch.equal(pixels, torch.ones(1, 3, 56, 56))


def test_balanced_subset_takes_the_same_number_of_each_class():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    chosen = balanced_subset(labels, 30, np.random.default_rng(0))
    assert torch.bincount(labels[torch.from_numpy(chosen)]).tolist() == [10, 10, 10]
    assert len(set(chosen)) == 30


def test_balanced_subset_fills_up_where_a_class_is_small():
    labels = torch.tensor([0] * 50 + [1] * 2)
    chosen = balanced_subset(labels, 12, np.random.default_rng(0))
    assert torch.bincount(labels[torch.from_numpy(chosen)]).tolist() == [10, 2]


def test_balanced_subset_of_everything_is_everything():
    assert balanced_subset(torch.zeros(4), 9, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]
