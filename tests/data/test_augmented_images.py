"""Several views of the same images: counter-based, each image once, recipes in pairs."""

import numpy as np
import pytest
import torch

from ser_lightning.data import CropViews, InvertibleViews, Shapes, render
from ser_lightning.data.datasets import AugmentedImages
from ser_lightning.data.draws import Canvas
from ser_lightning.data.reading import Reader

IMAGES = Shapes(num_train=24, num_evaluation=24, image_size=16).evaluation()


def augmented(num_views=4, seed=0, crop=None):
    """Augmented views of Shapes, every second image."""
    pipelines = crop or CropViews(), InvertibleViews()
    return AugmentedImages(
        Reader(IMAGES), np.arange(12) * 2, num_views, *pipelines, Canvas(16, 4), seed
    )


def pixels(make, pipeline, batch_size=5):
    """The rendered views of all batches: for each view its (N, 3, h, w) images."""
    rendered = [
        render(make(np.arange(12)[i : i + batch_size]), 4) for i in range(0, 12, batch_size)
    ]
    views = [getattr(batch, pipeline) for batch in rendered]
    return [torch.cat([view.pixels for view in number]) for number in zip(*views, strict=True)]


@pytest.mark.parametrize("pipeline", ["crop", "invertible"])
def test_views_depend_on_image_and_seed_but_not_on_the_batch(pipeline):
    views = pixels(augmented(), pipeline)
    assert len(views) == 4
    for view, same in zip(views, pixels(augmented(), pipeline, 12), strict=True):
        torch.testing.assert_close(view, same, atol=1e-5, rtol=0)
    others = pixels(augmented(seed=1), pipeline)
    assert any(
        view.shape != other.shape or not torch.equal(view, other)
        for view, other in zip(views, others, strict=True)
    )
    # the pairs of views are different draws
    assert views[0].shape != views[2].shape or not torch.equal(views[0], views[2])


def test_odd_number_of_views_is_refused():
    with pytest.raises(ValueError, match="num_views 5 does not form pairs"):
        augmented(num_views=5)


def test_both_pipelines_show_the_same_images():
    make = augmented(2, crop=CropViews(scale=(1, 1), ratio=(1, 1), p_flip=0))
    plain = make(np.arange(12))
    assert torch.equal(plain.crop[0].pixels, plain.invertible[0].pixels)
    assert torch.equal(plain.indices, torch.arange(12))
    assert torch.equal(plain.label, IMAGES.labels[::2])
