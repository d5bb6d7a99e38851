"""Several views of the same images: counter-based, each image once, recipes in pairs."""

import numpy as np
import pytest
import torch

from ser_lightning.data import CropViews, InvertibleViews, Shapes, render
from ser_lightning.data.datasets import AugmentedBatches


def batches(batch_size=5, num_views=4, rank=0, world_size=1, seed=0, num_images=12):
    """Augmented views of Shapes, every second image."""
    return AugmentedBatches(
        Shapes(num_train=24, num_evaluation=24, image_size=16).evaluation(),
        np.arange(num_images) * 2,
        batch_size,
        num_views,
        CropViews(),
        InvertibleViews(),
        16,
        4,
        seed,
        rank,
        world_size,
    )


def pixels(dataset, pipeline):
    """The rendered views of all batches: for each view its (N, 3, h, w) images."""
    rendered = [render(dataset[i], 4) for i in range(len(dataset))]
    views = [getattr(batch, pipeline) for batch in rendered]
    return [torch.cat([view.pixels for view in number]) for number in zip(*views, strict=True)]


@pytest.mark.parametrize("pipeline", ["crop", "invertible"])
def test_views_depend_on_image_and_seed_but_not_on_the_batch(pipeline):
    views = pixels(batches(batch_size=5), pipeline)
    assert len(views) == 4
    for view, same in zip(views, pixels(batches(batch_size=12), pipeline), strict=True):
        torch.testing.assert_close(view, same, atol=1e-5, rtol=0)
    others = pixels(batches(seed=1), pipeline)
    assert any(
        view.shape != other.shape or not torch.equal(view, other)
        for view, other in zip(views, others, strict=True)
    )
    # the pairs of views are different draws
    assert views[0].shape != views[2].shape or not torch.equal(views[0], views[2])


def test_two_ranks_see_every_image_once():
    slots = [
        torch.cat([dataset[i].indices for i in range(len(dataset))])
        for dataset in (batches(rank=rank, world_size=2, num_images=11) for rank in range(2))
    ]
    assert sorted(torch.cat(slots).tolist()) == list(range(11))


def test_odd_number_of_views_is_refused():
    with pytest.raises(ValueError, match="num_views 5 does not form pairs"):
        batches(num_views=5)


def test_both_pipelines_show_the_same_images():
    dataset = batches(batch_size=12)
    plain = AugmentedBatches(
        dataset.images,
        dataset.indices,
        12,
        2,
        CropViews(scale=(1, 1), ratio=(1, 1), p_flip=0),
        InvertibleViews(),
        16,
        4,
    )[0]
    assert torch.equal(plain.crop[0].pixels, plain.invertible[0].pixels)
    assert torch.equal(plain.indices, torch.arange(12))
    assert torch.equal(plain.label, dataset.images.labels[::2])
