"""Augmented batches: deterministic, whatever loads them, and augmented at all."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ser_lightning.data import BatchKey, CropViews, Shapes
from ser_lightning.data.finetune import FinetuneDataModule, posterize, seeded_globals
from ser_lightning.data.plan import Plan
from ser_lightning.randomness import Stream, generator

SOURCE = Shapes(num_train=48, num_evaluation=12, image_size=16)


def module(**options):
    defaults = {"global_batch_size": 12, "image_size": 16, "num_workers": 0}
    data = FinetuneDataModule(SOURCE, **{**defaults, **options})
    data.setup("fit")
    return data


def globals_state():
    words = np.random.get_state()[1]  # noqa: NPY002
    return random.getstate(), words.tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_workers(num_workers):
    data = module(num_workers=num_workers, num_repeats=2)
    random.seed(num_workers)  # what the process drew before must not matter either
    loaded = list(data.train_dataloader())
    direct = [module(num_repeats=2).train_dataset()[BatchKey(0, step)] for step in range(4)]
    assert len(loaded) == 4
    for ours, theirs in zip(loaded, direct, strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.indices, theirs.indices)


def test_an_image_looks_the_same_in_any_batch_of_its_epoch():
    small, large = module().train_dataset(), module(global_batch_size=24).train_dataset()
    first = torch.cat([small[BatchKey(0, step)].pixels for step in range(2)])
    assert torch.equal(first, large[BatchKey(0, 0)].pixels)
    assert first.shape == (24, 3, 16, 16)


@pytest.mark.parametrize(("seed", "epoch", "repeat"), [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_seed_epoch_and_repeat_change_the_augmentation(seed, epoch, repeat):
    image = SOURCE.train().read(5)
    crops = [
        module(seed=s, rand_augment=None, p_erasing=0.0)
        .train_dataset()
        .make.augment(image, e, 5, r)
        for s, e, r in ((0, 0, 0), (seed, epoch, repeat))
    ]
    assert not torch.equal(*crops)


def test_labels_are_those_of_the_images():
    batch = module().train_dataset()[BatchKey(0, 1)]
    assert torch.equal(batch.label, SOURCE.train().labels[batch.indices])


def test_reading_a_batch_leaves_the_global_generators_alone():
    before = globals_state()
    module().train_dataset()[BatchKey(0, 0)]
    assert globals_state() == before


def test_seeded_globals_give_the_same_draws_again():
    draws = []
    for _ in range(2):
        with seeded_globals(generator(3, Stream.AUGMENT, 0, 1)):
            numpy_draw = np.random.rand()  # noqa: NPY002
            draws.append((random.random(), numpy_draw, torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert len({round(number, 6) for number in draws[0]}) == 3


def test_without_augmentation_crops_are_the_normalised_images():
    crop = CropViews(scale=(1.0, 1.0), ratio=(1.0, 1.0), p_flip=0.0)
    data = module(rand_augment=None, p_erasing=0.0, crop=crop, mean=(0.5,) * 3, std=(0.5,) * 3)
    batch = data.train_dataset()[BatchKey(0, 0)]
    images = torch.stack([SOURCE.train().read(int(index)) for index in batch.indices])
    torch.testing.assert_close(batch.pixels, images / 127.5 - 1, atol=1e-6, rtol=0)


def test_erasing_replaces_a_rectangle_by_noise():
    options = {
        "rand_augment": None,
        "crop": CropViews(scale=(1.0, 1.0), ratio=(1.0, 1.0), p_flip=0),
    }
    clean = module(p_erasing=0.0, **options).train_dataset()[BatchKey(0, 0)].pixels
    erased = module(p_erasing=1.0, **options).train_dataset()[BatchKey(0, 0)].pixels
    changed = (clean != erased).any(1)
    share = changed.float().mean((1, 2))
    assert (share > 0).all()
    assert (share < 0.5).all()  # a rectangle of 2 to 33 percent of the image
    rows, columns = changed[0].any(1).sum(), changed[0].any(0).sum()
    assert changed[0].sum() == rows * columns


def test_largest_magnitude_may_posterize_to_black():
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    assert posterize(image, 0).getextrema() == ((0, 0),) * 3
    assert posterize(image, 2).tobytes() == ImageOps.posterize(image, 2).tobytes()
    data = module(rand_augment="rand-m10-n8-inc1")  # would fail in Pillow 13 as timm makes it
    assert sum(len(batch.label) for batch in data.train_dataloader()) == 48


@pytest.mark.parametrize(("batch_size", "repeats"), [(12, 3), (12, 1), (8, 3)])
def test_repeats_fill_a_step_and_an_epoch_keeps_its_length(batch_size, repeats):
    make = module(global_batch_size=batch_size, num_repeats=repeats).train_dataset().make
    num_steps = make.plan.steps_per_epoch
    assert num_steps == 48 // batch_size
    seen = []
    for step in range(num_steps):
        indices, number = make.places(BatchKey(0, step))
        assert len(indices) == batch_size
        places = list(zip(indices.tolist(), number.tolist(), strict=True))
        assert len(set(places)) == batch_size
        seen += np.unique(indices).tolist()
    assert len(seen) == len(set(seen)) == num_steps * -(-batch_size // repeats)


def test_repeats_of_an_image_differ():
    batch = module(num_repeats=3).train_dataset()[BatchKey(0, 0)]
    assert batch.indices[0] == batch.indices[1] == batch.indices[2]
    assert not torch.equal(batch.pixels[0], batch.pixels[1])


def test_ranks_share_the_global_batch_and_spread_the_repeats():
    make, key = module(num_repeats=2).train_dataset().make, BatchKey(1, 0)
    whole = make(key)
    parts = [replace(make, plan=Plan(48, 12, 0, 0, rank, 2))(key) for rank in range(2)]
    assert torch.equal(torch.stack([p.pixels for p in parts], 1).flatten(0, 1), whole.pixels)
    assert torch.equal(parts[0].indices, parts[1].indices)
    assert len(parts[0].indices.unique()) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_erasing": 1.5}, r"p_erasing 1.5 must be float in \[0, 1\]"),
        ({"num_repeats": 0}, "num_repeats 0 must be int >= 1"),
        ({"rand_augment": "augmix-m3"}, "'augmix-m3' is no policy of RandAugment; use one like"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_policy_unknown_to_timm_is_refused_with_one_that_it_knows():
    with pytest.raises(ValueError, match=r"'rand-m9-q3' .*; use one like rand-m9-mstd0\.5-inc1"):
        module(rand_augment="rand-m9-q3").train_dataset()
