"""The two pipelines: shapes, geometry, and independence of everything but the key."""

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from ser_lightning.data import PartitionedDataModule, Shapes
from ser_lightning.data.draws import Canvas, Draws
from ser_lightning.data.extra_views import LocalCrops
from ser_lightning.data.photometric import PhotometricRecipe
from ser_lightning.data.pipelines import CropViews, InvertibleViews
from ser_lightning.data.plan import BatchKey
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, HostBatch, normalise, render
from ser_lightning.groups import GroupSampler, act, relative

SIZE, PATCH = 32, 4
CANVAS = Canvas(SIZE, PATCH)
NO_COLOUR = PhotometricRecipe(p_jitter=0, p_gray=0, p_blur=0)
INDICES = np.array([4, 9, 2])
LOCAL = LocalCrops(num=4, size=16)
KEY = BatchKey(1, 5)


def images(count=3):
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, 40, 48), generator=rng, dtype=torch.uint8)] * count


def crops_of(pictures, indices, key, seed, local=None):
    return CropViews(local=local).make(pictures, Draws(seed, key, indices), CANVAS)


def pairs_of(pipeline, pictures, indices, key, seed, local=None):
    crop = CropViews(local=local)
    return pipeline.make(pictures, Draws(seed, key, indices), CANVAS, crop)


def rendered(crop=(), invertible=()):
    nothing = torch.zeros(0)
    return render(HostBatch(crop, invertible, nothing, nothing), PATCH)


def assert_views_equal(views, others):
    for view, other in zip(views, others, strict=True):
        assert torch.equal(view.pixels, other.pixels)
        for field, same in zip(view.record, other.record, strict=True):
            assert np.array_equal(field, same)


def test_crop_views_are_two_different_squares():
    views = crops_of(images(), INDICES, BatchKey(0, 0), 0)
    assert [view.pixels.shape for view in views] == [(3, 3, SIZE, SIZE)] * 2
    assert not torch.equal(views[0].pixels, views[1].pixels)


def test_views_depend_on_seed_epoch_and_index_only():
    invertible, args = InvertibleViews(), (BatchKey(1, 5), 7)
    assert_views_equal(
        crops_of(images(), INDICES, *args),
        crops_of(images(), INDICES, BatchKey(1, 6), 7),  # crops know no step
    )
    together = pairs_of(invertible, images(), INDICES, *args)
    alone = pairs_of(invertible, images(1), INDICES[1:2], *args)
    for whole, single in zip(together, alone, strict=True):
        assert torch.equal(whole.pixels[1:2], single.pixels)
        assert torch.equal(whole.element.flip[1:2], single.element.flip)
        assert whole.element.grid == single.element.grid


@pytest.mark.parametrize(("key", "seed"), [(BatchKey(2, 5), 7), (BatchKey(1, 5), 8)])
def test_views_change_with_epoch_and_seed(key, seed):
    first = crops_of(images(), INDICES, BatchKey(1, 5), 7)
    other = crops_of(images(), INDICES, key, seed)
    assert not torch.equal(first[0].pixels, other[0].pixels)


def test_invertible_views_show_the_whole_image_through_their_group_elements():
    pipeline = InvertibleViews(view_1=NO_COLOUR, view_2=NO_COLOUR, group=GroupSampler(scale=False))
    host = pairs_of(pipeline, images(), INDICES, BatchKey(0, 0), 0)
    batch = rendered(invertible=host)
    upright = normalise(host[0].pixels / 255, IMAGENET_MEAN, IMAGENET_STD)
    for view in batch.invertible:
        assert torch.equal(view.pixels, act(view.element, upright, PATCH))
    first, second = batch.invertible
    carried = act(relative(first.element, second.element), first.pixels, PATCH)
    assert torch.equal(carried, second.pixels)


def test_invertible_views_share_one_crop_on_request():
    whole, shared = (
        pairs_of(InvertibleViews(crop=crop), images(), INDICES, BatchKey(0, 0), 0)
        for crop in ("none", "shared")
    )
    assert torch.equal(shared[0].pixels, shared[1].pixels)
    assert not torch.equal(shared[0].pixels, whole[0].pixels)


def test_rendered_view_is_normalised_and_as_large_as_its_element_says():
    host = pairs_of(InvertibleViews(), images(), INDICES, BatchKey(0, 3), 0)
    batch = rendered(crops_of(images(), INDICES, BatchKey(0, 3), 0), host)
    for view in batch.invertible:
        height, width = view.element.shape
        assert view.pixels.shape == (3, 3, height * PATCH, width * PATCH)
    assert all(view.element is None for view in batch.crop)
    assert batch.crop[0].pixels.abs().max() < 3


def make_both(local, key=KEY, seed=7, pictures=None, indices=INDICES, **options):
    """The views of the crop and of the invertible pipeline for the same images."""
    pictures = images() if pictures is None else pictures
    args = (pictures, indices, key, seed, local)
    return crops_of(*args), pairs_of(InvertibleViews(**options), *args)


def assert_elements_equal(views, others):
    for view, other in zip(views, others, strict=True):
        assert torch.equal(view.element.flip, other.element.flip)
        assert torch.equal(view.element.half_turn, other.element.half_turn)
        assert view.element[2:] == other.element[2:]


@pytest.mark.parametrize("crop", ["none", "shared"])
def test_local_crops_leave_the_global_views_unchanged(crop):
    (crops, pairs), (crops_2, pairs_2) = (make_both(local, crop=crop) for local in (LOCAL, None))
    assert_views_equal(crops[:2], crops_2)
    assert_views_equal(pairs[:2], pairs_2)
    assert_elements_equal(pairs[:2], pairs_2)


def test_local_views_follow_the_global_ones_in_both_pipelines():
    for views in make_both(LOCAL):
        assert [view.pixels.shape for view in views] == [
            *[(3, 3, SIZE, SIZE)] * 2,
            *[(3, 3, 16, 16)] * 4,
        ]
    batch = rendered(*make_both(LOCAL))
    assert [view.pixels.shape[-2:] for view in batch.crop[2:]] == [(16, 16)] * 4
    for view in batch.invertible[2:]:
        assert view.pixels.shape[-2:] == tuple(PATCH * side for side in view.element.shape)


def test_local_crops_and_pairs_have_draws_of_their_own():
    crop, pairs = make_both(LOCAL, indices=np.arange(3), seed=3)
    for views in (crop[2:], pairs[2::2]):
        for number, view in enumerate(views):
            for other in views[:number]:
                assert not torch.equal(view.pixels, other.pixels)
    for views in (crop, pairs):
        assert len(np.unique([view.record.brightness for view in views])) == 6 * len(INDICES)


def test_pairs_draw_their_elements_independently():
    turns, grids = [], []
    for step in range(40):
        _, views = make_both(LOCAL, key=BatchKey(0, step), indices=INDICES + 3 * step)
        codes = [(v.element.flip[0].item(), v.element.quarter_turns[0].item()) for v in views]
        turns.append(codes)
        grids.append([view.element.grid for view in views[2:]])
    for one in range(6):
        for other in range(one):
            same = sum(codes[one] == codes[other] for codes in turns)
            assert same < 16, (one, other)  # 40 steps, one in 8: 5 expected, 99.999 % below 16
    assert any(first != third for first, _, third, _ in grids)


def test_local_crops_show_a_part_of_the_image_within_their_scale():
    ramp = torch.arange(256, dtype=torch.uint8)
    picture = torch.stack(
        [ramp[:, None].expand(256, 256), ramp.expand(256, 256), ramp.expand(256, 256)]
    )
    pictures, indices = [picture] * 20, np.arange(20)
    crop, pairs = make_both(LOCAL, pictures=pictures, indices=indices)
    for view in (*crop[2:], *pairs[2:]):
        height, width = (
            (x.flatten(1).amax(1) - x.flatten(1).amin(1)).float() / 256
            for x in (view.pixels[:, 0], view.pixels[:, 1])
        )
        # Averaged over a cell of the resize, both ends lose up to 1/32 of the crop's side.
        area = height * width * (16 / 15) ** 2
        assert area.min() > 0.05 * 0.9
        assert area.max() < 0.25 * 1.1
        assert area.max() / area.min() > 1.5


def test_views_of_a_local_pair_show_the_same_crop():
    local = LocalCrops(num=4, size=16, view=NO_COLOUR)
    _, host = make_both(local, group=GroupSampler(scale=False))
    views = rendered(invertible=host).invertible
    grid = (4, 4)
    upright = [act(view.element.inverse(grid), view.pixels, PATCH) for view in views[2:]]
    for first, second, host_view in zip(upright[::2], upright[1::2], host[2::2], strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, normalise(host_view.pixels / 255, IMAGENET_MEAN, IMAGENET_STD))
    assert any(not torch.equal(view.pixels, u) for view, u in zip(views[2:], upright, strict=True))


def test_views_of_a_local_pair_are_coloured_apart():
    _, host = make_both(LOCAL)
    for first, second in zip(host[2::2], host[3::2], strict=True):
        assert not np.array_equal(first.record.brightness, second.record.brightness)
    assert not any(view.record.solarize.any() for view in host[2:])


def test_local_views_depend_on_seed_epoch_step_and_index_only():
    together, again, later = (make_both(LOCAL, BatchKey(1, step))[1] for step in (5, 5, 6))
    alone = make_both(LOCAL, pictures=images(1), indices=INDICES[1:2])
    assert_views_equal(together, again)
    assert_elements_equal(together, again)
    assert_views_equal(together, later)  # of a step, only grid and parity depend on the step
    assert [v.element[2:] for v in together] != [v.element[2:] for v in later]
    for whole, single in zip(
        (*make_both(LOCAL)[0], *together), (*alone[0], *alone[1]), strict=True
    ):
        assert torch.equal(whole.pixels[1:2], single.pixels)
        assert np.array_equal(whole.record.hue[1:2], single.record.hue)
        if whole.element is not None:
            assert torch.equal(whole.element.flip[1:2], single.element.flip)
            assert whole.element[2:] == single.element[2:]


@pytest.mark.parametrize(("key", "seed"), [(BatchKey(2, 5), 7), (BatchKey(1, 5), 8)])
def test_local_views_change_with_epoch_and_seed(key, seed):
    for views, others in zip(make_both(LOCAL), make_both(LOCAL, key, seed), strict=True):
        for view, other in zip(views[2:], others[2:], strict=True):
            assert not torch.equal(view.pixels, other.pixels)


def test_invertible_views_have_the_colours_of_the_crops_unless_set():
    """The recipes of the crops, with the draws of the invertible views."""
    gray, solarized = PhotometricRecipe(p_gray=1.0), PhotometricRecipe(p_solarize=1.0)

    def records(**options):
        data = PartitionedDataModule(
            Shapes(num_train=64, image_size=SIZE),
            16,
            crop=CropViews(gray, solarized),
            invertible=InvertibleViews(0.25, **options),
            image_size=SIZE,
            patch_size=PATCH,
        )
        data.setup("fit")
        return [view.record for view in data.train_dataset()[BatchKey(1, 0)].invertible]

    first, second = records()
    assert first.gray.all()
    assert not first.solarize.any()
    assert second.solarize.all()
    first, second = records(view_1=solarized)
    assert first.solarize.all()
    assert second.solarize.all()


def test_local_views_of_96_pixels_have_sides_of_4_to_8_tokens():
    pictures, pipeline = images(1), InvertibleViews()
    crop, canvas = CropViews(local=LocalCrops(num=2)), Canvas(224, 16)
    sides = set()
    for step in range(60):
        draws = Draws(0, BatchKey(0, step), INDICES[:1])
        views = pipeline.make(pictures, draws, canvas, crop)
        sides |= {side for view in views[2:] for side in view.element.grid}
    assert sides <= set(range(4, 9))
    assert {5, 6, 7} <= sides


def test_local_crops_are_set_from_a_configuration():
    parser = ArgumentParser()
    parser.add_class_arguments(CropViews, "crop")
    config = parser.parse_object({"crop": {"local": {"num": 2, "view": {"p_gray": 0.0}}}})
    assert parser.parse_string(parser.dump(config)) == config
    local = parser.instantiate(config).crop.local
    assert local == LocalCrops(num=2, view=PhotometricRecipe(p_gray=0.0, p_blur=0.5))
    assert parser.parse_object({}).crop.local is None
