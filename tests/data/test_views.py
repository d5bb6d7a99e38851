"""The two pipelines: shapes, geometry, and independence of everything but the key."""

import numpy as np
import pytest
import torch

from ser_lightning.data.partition import BatchKey
from ser_lightning.data.photometric import PhotometricRecipe
from ser_lightning.data.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CropViews,
    HostBatch,
    InvertibleViews,
    normalise,
    render,
)
from ser_lightning.groups import GroupSampler, act, relative

SIZE, PATCH = 32, 4
GRID = (SIZE // PATCH, SIZE // PATCH)
NO_COLOUR = PhotometricRecipe(p_jitter=0, p_gray=0, p_blur=0)
INDICES = np.array([4, 9, 2])


def images(count=3):
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, 40, 48), generator=rng, dtype=torch.uint8)] * count


def rendered(crop=(), invertible=()):
    nothing = torch.zeros(0)
    return render(HostBatch(crop, invertible, nothing, nothing, nothing), PATCH)


def assert_views_equal(views, others):
    for view, other in zip(views, others, strict=True):
        assert torch.equal(view.pixels, other.pixels)
        for field, same in zip(view.record, other.record, strict=True):
            assert np.array_equal(field, same)


def test_crop_views_are_two_different_squares():
    views = CropViews().make(images(), INDICES, BatchKey(0, 0), 0, SIZE)
    assert [view.pixels.shape for view in views] == [(3, 3, SIZE, SIZE)] * 2
    assert not torch.equal(views[0].pixels, views[1].pixels)


def test_views_depend_on_seed_epoch_and_index_only():
    crop, invertible = CropViews(), InvertibleViews()
    args = (BatchKey(1, 5), 7, SIZE)
    assert_views_equal(
        crop.make(images(), INDICES, *args),
        crop.make(images(), INDICES, BatchKey(1, 6), 7, SIZE),  # crops know no step
    )
    together = invertible.make(images(), INDICES, *args, GRID)
    alone = invertible.make(images(1), INDICES[1:2], *args, GRID)
    for whole, single in zip(together, alone, strict=True):
        assert torch.equal(whole.pixels[1:2], single.pixels)
        assert torch.equal(whole.element.flip[1:2], single.element.flip)
        assert whole.element.grid == single.element.grid


@pytest.mark.parametrize(("key", "seed"), [(BatchKey(2, 5), 7), (BatchKey(1, 5), 8)])
def test_views_change_with_epoch_and_seed(key, seed):
    first = CropViews().make(images(), INDICES, BatchKey(1, 5), 7, SIZE)
    other = CropViews().make(images(), INDICES, key, seed, SIZE)
    assert not torch.equal(first[0].pixels, other[0].pixels)


def test_invertible_views_show_the_whole_image_through_their_group_elements():
    pipeline = InvertibleViews(view_1=NO_COLOUR, view_2=NO_COLOUR, group=GroupSampler(scale=False))
    host = pipeline.make(images(), INDICES, BatchKey(0, 0), 0, SIZE, GRID)
    batch = rendered(invertible=host)
    upright = normalise(host[0].pixels / 255, IMAGENET_MEAN, IMAGENET_STD)
    for view in batch.invertible:
        assert torch.equal(view.pixels, act(view.element, upright, PATCH))
    first, second = batch.invertible
    carried = act(relative(first.element, second.element), first.pixels, PATCH)
    assert torch.equal(carried, second.pixels)


def test_invertible_views_share_one_crop_on_request():
    whole, shared = (
        InvertibleViews(crop=crop).make(images(), INDICES, BatchKey(0, 0), 0, SIZE, GRID)
        for crop in ("none", "shared")
    )
    assert torch.equal(shared[0].pixels, shared[1].pixels)
    assert not torch.equal(shared[0].pixels, whole[0].pixels)


def test_rendered_view_is_normalised_and_as_large_as_its_element_says():
    host = InvertibleViews().make(images(), INDICES, BatchKey(0, 3), 0, SIZE, GRID)
    batch = rendered(CropViews().make(images(), INDICES, BatchKey(0, 3), 0, SIZE), host)
    for view in batch.invertible:
        height, width = view.element.shape
        assert view.pixels.shape == (3, 3, height * PATCH, width * PATCH)
    assert all(view.element is None for view in batch.crop)
    assert batch.crop[0].pixels.abs().max() < 3
