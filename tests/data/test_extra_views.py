"""Views that an add-on asks for: plain, rotated, and pairs that share their draws."""

import numpy as np
import pytest
import torch

from ser_lightning.batch import ViewNeeds
from ser_lightning.data import (
    BatchKey,
    CropViews,
    InvertibleViews,
    LocalCrops,
    PartitionedDataModule,
    PhotometricRecipe,
    RotatedCrops,
    Shapes,
    crops,
    replay,
)
from ser_lightning.data.clean import Clean
from ser_lightning.data.datasets import CleanImages, TrainingViews
from ser_lightning.data.draws import Canvas, Draws
from ser_lightning.data.extra_views import TurnedCrops
from ser_lightning.data.pipelines import ExtraViews
from ser_lightning.data.plan import Plan
from ser_lightning.data.reading import Reader
from ser_lightning.data.render import to_device
from ser_lightning.sources.base import ImageSet

SIZE, PATCH = 16, 4
ROTATED = RotatedCrops(size=8)
ALL = ViewNeeds(plain=True, rotated=True, paired=True)
KEY = BatchKey(1, 1)


class Pictures(ImageSet):
    """Noise; by default the sizes differ from image to image."""

    def __init__(self, count=40, size=None):
        self.labels = torch.arange(count) % 4
        self.class_names = ("a", "b", "c", "d")
        self.size = size

    def read(self, index):
        height, width = (self.size, self.size) if self.size else (20 + index, 40 - index // 3)
        rng = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8)


def module(**options):
    defaults = {
        "source": Shapes(num_train=64, num_evaluation=16, image_size=20),
        "global_batch_size": 16,
        "crop": CropViews(local=LocalCrops(num=2, size=8)),
        "invertible": InvertibleViews(0.25),
        "image_size": SIZE,
        "patch_size": PATCH,
        "num_workers": 0,
        "rotated": ROTATED,
        "evaluation_crop_fraction": 0.8,
    }
    return PartitionedDataModule(**{**defaults, **options})


def training(rank=0, world_size=1, paired=False, images=None):
    images = images or Pictures()
    crop = CropViews(local=LocalCrops(num=2, size=8))
    return TrainingViews(
        Reader(images),
        Plan(len(images), 16, 4, 0, rank, world_size),
        crop,
        InvertibleViews(0.25),
        Canvas(SIZE, PATCH),
        ExtraViews(Clean(SIZE, 0.8), ROTATED),
        paired,
    )


def drawn(view):
    """All that was drawn for a view, (B, 19)."""
    return torch.cat([field.reshape(len(field), -1) for field in to_device(view.record)], dim=1)


def emitted(**options):
    data = module(**options)
    data.setup("fit")
    return data.on_after_batch_transfer(data.train_dataset()[KEY], 0)


def views_of(batch):
    return (*batch.crop, *batch.invertible, *batch.extra)


def assert_views_equal(views, others):
    for view, other in zip(views, others, strict=True):
        assert torch.equal(view.pixels, other.pixels)
        for field, same in zip(view.record, other.record, strict=True):
            assert torch.equal(field, same)


def test_a_batch_has_no_extra_views_unless_they_are_needed():
    assert emitted().extra == ()


@pytest.mark.parametrize("needs", [{"plain": True}, {"rotated": True}, {"plain": 1, "rotated": 1}])
def test_extra_views_leave_the_others_bit_identical(needs):
    before, after = emitted(), emitted(needs=ViewNeeds(**needs))
    assert len(after.extra) == needs.get("plain", 0) + 4 * needs.get("rotated", 0)
    assert all(len(view.pixels) == len(after.crop[0].pixels) == 12 for view in after.extra)
    assert_views_equal((*before.crop, *before.invertible), (*after.crop, *after.invertible))
    assert torch.equal(before.indices, after.indices)


def test_plain_view_is_the_image_that_evaluation_sees():
    images = Pictures()
    batches = training(images=images)
    data = module(needs=ViewNeeds(plain=True))
    batch = data.on_after_batch_transfer(batches(KEY), 0)
    indices = batch.indices[:12].numpy()
    seen = CleanImages(Reader(images), Clean(SIZE, 0.8))(indices)
    assert torch.equal(batch.extra[0].pixels, seen.pixels)
    assert batch.extra[0].element is None


def test_record_of_the_plain_view_says_what_is_shown_and_that_nothing_is_changed():
    class Centred(Pictures):
        def read(self, index):
            image = torch.zeros(3, 40, 60, dtype=torch.uint8)
            image[:, 4:36, 14:46] = 255  # 32 of 40 pixels
            return image

    data = module(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    (plain, *_) = data.on_after_batch_transfer(training(images=Centred())(KEY), 0).extra
    record = plain.record
    assert record.box.tolist() == [[4, 14, 32, 32]] * 12
    assert record.source_size.tolist() == [[40, 60]] * 12
    assert plain.pixels[:, :, 1:-1, 1:-1].min() > 0.99
    unchanged = {"brightness": 1, "contrast": 1, "saturation": 1}
    for name in ("flip", "jitter", "hue", "gray", "blur_sigma", "solarize", *unchanged):
        assert (getattr(record, name) == unchanged.get(name, 0)).all(), name
    assert (replay(record, [Centred().read(0)] * 12, SIZE) == 1).all()  # nothing beyond the box


def test_rotated_views_are_quarter_turns_of_one_small_crop():
    views = emitted(needs=ViewNeeds(rotated=True)).extra
    assert len(views) == 4
    for turns, view in enumerate(views):
        assert view.pixels.shape == (12, 3, 8, 8)
        assert torch.equal(view.pixels, torch.rot90(views[0].pixels, turns, (-2, -1)))
        assert not view.element.flip.any()
        assert view.element.quarter_turns.tolist() == [turns] * 12
        assert view.element.grid == (2, 2)
        assert all(map(torch.equal, view.record, views[0].record))


def test_rotated_crop_is_made_again_from_its_record():
    batch = emitted(needs=ViewNeeds(rotated=True), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    view, images = batch.extra[0], Shapes(num_train=64, image_size=20).train()
    sources = [images.read(int(index)) for index in batch.indices[:12]]
    made = replay(view.record, sources, 8)
    torch.testing.assert_close(made, view.pixels, rtol=0, atol=1e-5)  # measured: 6e-7


def test_rotated_crops_have_essls_area_flips_and_colours():
    images = [torch.zeros(3, 200, 200, dtype=torch.uint8)] * 400
    draws, crop = Draws(0, BatchKey(0, 0), np.arange(400)), CropViews()
    extra, one = ExtraViews(rotated=RotatedCrops()), draws.take(np.arange(1))
    (host,) = extra.make(images[:1], one, Canvas(224, 16), crop)
    assert host.pixels.shape[-1] == 96
    extra = ExtraViews(rotated=RotatedCrops(size=4))
    (host,) = extra.make(images, draws, Canvas(224, 4), crop)
    area = host.record.box[:, 2] * host.record.box[:, 3] / 200**2
    assert 0.05 * 0.97 < area.min() < 0.06
    assert 0.13 < area.max() < 0.14 * 1.03
    assert host.record.flip.mean() == pytest.approx(0.5, abs=0.1)  # 4 standard deviations
    assert RotatedCrops().view == PhotometricRecipe(p_blur=0.1)
    assert (host.record.blur_sigma > 0).mean() == pytest.approx(0.1, abs=0.06)


def test_rotated_crop_has_draws_of_its_own():
    batch = training()(KEY)
    factors = [view.record.brightness for view in (*batch.crop, batch.extra[1])]
    assert len(np.unique(factors)) == 5 * 12


@pytest.mark.parametrize("paired", [False, True])
def test_two_ranks_hold_the_views_of_one(paired):
    data = module()
    whole = data.on_after_batch_transfer(training(paired=paired)(KEY), 0)
    parts = [data.on_after_batch_transfer(training(rank, 2, paired)(KEY), 0) for rank in range(2)]
    for view, *halves in zip(views_of(whole), *map(views_of, parts), strict=True):
        assert torch.equal(torch.cat([half.pixels for half in halves]), view.pixels)
        for field, *shares in zip(view.record, *(half.record for half in halves), strict=True):
            assert torch.equal(torch.cat(shares), field)


def test_batches_do_not_depend_on_workers():
    data = module(num_workers=2, needs=ALL)
    data.setup("fit")
    for step, loaded in enumerate(data.train_dataloader()):
        direct = data.train_dataset()[BatchKey(0, step)]
        rendered = [data.on_after_batch_transfer(host, 0) for host in (loaded, direct)]
        assert_views_equal(*map(views_of, rendered))
        assert len(rendered[0].extra) == 5


def test_pairs_share_the_draws_of_the_even_image_in_every_view_of_the_crop_sub_batch():
    images = Pictures(size=30)
    unpaired, paired = (training(paired=p, images=images)(KEY) for p in (False, True))
    assert torch.equal(unpaired.indices, paired.indices)
    for before, after in zip(
        (*unpaired.crop, *unpaired.extra), (*paired.crop, *paired.extra), strict=True
    ):
        assert torch.equal(drawn(after)[::2], drawn(after)[1::2])
        assert torch.equal(drawn(after)[::2], drawn(before)[::2])
        assert torch.equal(after.pixels[::2], before.pixels[::2])
        assert not torch.equal(after.pixels[::2], after.pixels[1::2])
    for view in unpaired.crop:
        assert (drawn(view)[::2] != drawn(view)[1::2]).any(1).all()
    for before, after in zip(unpaired.invertible, paired.invertible, strict=True):
        assert torch.equal(drawn(before), drawn(after))
        assert torch.equal(before.pixels, after.pixels)


def test_pairs_of_unequal_images_show_the_same_part_of_them():
    images = [torch.zeros(3, *size, dtype=torch.uint8) for size in ((375, 500), (500, 375)) * 8]
    draws = np.repeat(np.random.default_rng(0).random((8, crops.NUM_UNIFORMS + 1)), 2, axis=0)
    where = CropViews().place(images, draws, (0.08, 1.0), paired=True)
    shares = where.box / np.tile(where.source_size, 2)
    assert np.abs(shares[::2] - shares[1::2]).max() <= 1 / 375
    assert (where.box[:, 2:] >= 1).all()
    assert (where.box[:, :2] + where.box[:, 2:] <= where.source_size).all()
    alone = CropViews().place(images, draws, (0.08, 1.0))
    assert np.array_equal(alone.box[::2], where.box[::2])  # the even image's own
    assert np.abs(alone.box - where.box).max() > 10


def test_odd_crop_sub_batch_cannot_form_pairs():
    data = module(global_batch_size=15, invertible=None, needs=ViewNeeds(paired=True))
    message = r"crop sub-batch has 15 images, .* pairs .*; make it even with another `data\.global"
    with pytest.raises(ValueError, match=message):
        data.setup("fit")
    module(global_batch_size=15, invertible=None).setup("fit")


def test_rotated_size_that_is_no_multiple_of_the_patch_is_refused_where_it_is_needed():
    message = r"`data\.rotated\.size` 96 is not a multiple of the patch size 7; use 98"
    options = {"crop": None, "image_size": 21, "patch_size": 7, "rotated": None}
    with pytest.raises(ValueError, match=message):
        module(needs=ViewNeeds(rotated=True), **options)
    assert module(**options).rotated == RotatedCrops()


def test_angle_that_turns_no_crop_is_refused():
    message = r"`data\.crop\.turned\.angle` 0 turns no crop; .* null for quarter turns, or set"
    with pytest.raises(ValueError, match=message):
        TurnedCrops(angle=0.0)
    assert (TurnedCrops().degrees(np.array([0.3])) == 90).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "^RotatedCrops: size 0 must be int >= 1"),
        (
            {"scale": (0.3, 0.2)},
            r"^RotatedCrops: scale \(0.3, 0.2\) must be \[a, b\] with 0 < a <= b",
        ),
    ],
)
def test_impossible_rotated_crops_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RotatedCrops(**options)
