"""Labelled images: splits that do not overlap, batches that depend on nothing but their key."""

import numpy as np
import pytest
import torch
from PIL import Image

from ser_lightning.data import ImageFolder, Shapes
from ser_lightning.data.clean import Clean
from ser_lightning.data.datasets import LabelledCrops
from ser_lightning.data.extra_views import LocalCrops, TurnedCrops
from ser_lightning.data.finetune import FinetuneDataModule
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.pipelines import CropViews
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.reading import Reader
from ser_lightning.sources.base import ImageSet, MemoryImages, Source, hold_out
from ser_lightning.sources.released import IMAGENET_VAL, imagenet_synsets


class Unlabelled(ImageSet):
    """Two images that nobody labelled."""

    labels = torch.full((2,), -1)
    class_names = ()

    def read(self, index):
        return torch.zeros(3, 8, 8, dtype=torch.uint8)


class Given(Source):
    """Two given splits."""

    def __init__(self, train, evaluation):
        self._splits = train, evaluation

    def train(self):
        return self._splits[0]

    def evaluation(self):
        return self._splits[1]


def shapes(**options):
    source = Shapes(num_train=96, num_evaluation=36, image_size=16)
    options = {"global_batch_size": 8, "image_size": 16, "num_workers": 0} | options
    data = LabelledDataModule(source, **options)
    data.setup("fit")
    return data


def crops(data, rank=0, world_size=1):
    plan = Plan(len(data.images("train")), 8, 0, 3, rank, world_size)
    return LabelledCrops(Reader(data.images("train")), plan, CropViews(), Clean(16))


def test_holdout_is_a_balanced_part_of_train_and_no_test_image():
    data = shapes(holdout_fraction=0.25)
    train, holdout = data.images("train"), data.images("holdout")
    assert sorted([*train.positions, *holdout.positions]) == list(range(96))
    counts = torch.bincount(holdout.labels, minlength=12)
    assert counts.sum() == 24
    assert counts.max() - counts.min() <= 1
    assert len(data.images("test")) == 36


def test_holdout_is_the_same_whatever_the_seed():
    first, second = (shapes(holdout_fraction=0.25, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(
        first.images("holdout").positions, second.images("holdout").positions
    )


def test_parts_are_balanced_and_known_as_parts():
    data = shapes(num_train=24, num_test=12)
    assert torch.bincount(data.images("test").labels).tolist() == [1] * 12
    assert not data.is_whole()
    assert shapes().is_whole()


def many_classes(names, num_images):
    """Images of 1000 classes in turn, all of them one image in memory."""
    labels = torch.arange(num_images) % 1000
    return MemoryImages(torch.zeros(1, 3, 8, 8).expand(num_images, -1, -1, -1), labels, names)


def opened(train, evaluation, **options):
    data = LabelledDataModule(Given(train, evaluation), num_workers=0, **options)
    data.setup("test")
    return data


def test_imagenet_is_known_by_its_classes_not_by_their_number():
    others = tuple(f"class{number:03d}" for number in range(1000))
    images = many_classes(others, 1000)
    assert opened(images, images).dataset_name == "given"
    train = many_classes(imagenet_synsets(), 1000)
    data = opened(train, many_classes(imagenet_synsets(), IMAGENET_VAL))
    assert data.dataset_name == "imagenet1k"
    assert data.reasons() == ()


def test_imagenet_with_too_few_images_is_marked_whatever_part_is_measured():
    train, test = (many_classes(imagenet_synsets(), size) for size in (1000, 2000))
    for part in ({}, {"num_test": 1000}):
        with pytest.warns(UserWarning, match="has 2,000 files, the released set has 50,000"):
            first, *others = opened(train, test, **part).reasons()
        assert "2,000" in first
        assert others == (["measured on a part of the images"] if part else [])


def test_part_of_the_training_images_is_marked_as_a_test():
    images = Shapes(num_train=96, num_evaluation=36, image_size=16).train()
    (reason,) = opened(*hold_out(images)).reasons()
    assert reason.startswith("tested on every 20th training image")
    assert shapes().reasons() == ()


def test_training_batch_depends_on_its_key_only():
    data, key = shapes(), BatchKey(1, 2)
    one, again = crops(data)(key), crops(data)(key)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    other = crops(data)(BatchKey(2, 2))
    assert not torch.equal(one.pixels, other.pixels)


def test_two_ranks_share_the_batch_of_one():
    data, key = shapes(), BatchKey(0, 3)
    whole = crops(data)(key)
    parts = [crops(data, rank, 2)(key) for rank in range(2)]
    for field in ("pixels", "label", "indices"):
        joined = torch.cat([getattr(part, field) for part in parts])
        assert torch.equal(joined, getattr(whole, field))


def test_clean_images_come_once_and_in_order():
    data = shapes(evaluation_batch_size=10)
    indices = torch.cat([batch.indices for batch in data.test_dataloader()])
    assert indices.tolist() == list(range(36))


def test_without_holdout_there_is_nothing_to_validate_on():
    assert shapes(holdout_fraction=0.0).val_dataloader() == []


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (Shapes(num_train=12, num_evaluation=12).train(), None, "no evaluation split"),
        (Unlabelled(), Unlabelled(), "one folder per class"),
    ],
)
def test_source_that_cannot_be_tested_on_is_refused(train, test, message):
    data = LabelledDataModule(Given(train, test))
    with pytest.raises(ValueError, match=message):
        data.setup("test")


@pytest.mark.filterwarnings("ignore:the training split has")
def test_a_part_of_imagenets_training_images_is_told_to_what_learns_from_them(monkeypatch):
    data = shapes()
    assert data.training_reasons() == ()
    monkeypatch.setattr(LabelledDataModule, "is_imagenet", True)
    reason = "the training split has 96 files, the released set has 1,281,167"
    assert data.training_reasons() == (reason,)


def test_holding_out_every_image_is_refused():
    with pytest.raises(ValueError, match=r"holdout_fraction 0\.99 of 12 images holds out all"):
        shapes(num_train=12, holdout_fraction=0.99).images("train")


def test_holdout_fraction_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"holdout_fraction 1\.0"):
        shapes(holdout_fraction=1.0)


def test_own_folder_is_never_official(tmp_path):
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "1.png")
    data = LabelledDataModule(ImageFolder(str(tmp_path)), num_workers=0)
    data.setup("test")
    assert data.dataset_name == data.source.dataset_name
    assert data.dataset_name.startswith("folder_")
    assert data.reasons() == ("measured on a folder of one's own, which is no released set",)


@pytest.mark.parametrize("option", [{"local": LocalCrops()}, {"turned": TurnedCrops()}])
@pytest.mark.parametrize("kind", [LabelledDataModule, FinetuneDataModule])
def test_crops_that_have_no_effect_are_refused(kind, option):
    with pytest.raises(ValueError, match=r"`data\.crop\.\w+` .* has no effect here.*null"):
        kind(Shapes(num_train=24, num_evaluation=12, image_size=16), crop=CropViews(**option))
