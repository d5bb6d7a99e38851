"""Batches of images with boxes: resized and flipped together, every image once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from coco_tree import write_coco
from ser_lightning.data import Shapes, loaders
from ser_lightning.data.benchmarks import detection
from ser_lightning.data.benchmarks.detection import DetectionDataModule, resized
from ser_lightning.data.plan import BatchKey
from ser_lightning.sources import opening
from ser_lightning.sources.coco import CocoDetection

CHANNEL = {1: 0, 3: 1, 90: 2}


@pytest.fixture
def root(tmp_path):
    return str(write_coco(tmp_path))


def module(root, **options):
    sizes = {"short_sides": (48, 64), "test_short_side": 64, "long_side": 90}
    defaults = {"global_batch_size": 2, "evaluation_batch_size": 2, "num_workers": 0, **sizes}
    data = DetectionDataModule(CocoDetection(root), **{**defaults, **options})
    with pytest.warns(UserWarning, match="val2017 has 5 files, the released set has 5,000"):
        data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 48), (64, 96)), ((48, 32), (96, 64)), ((20, 80), (25, 100)), ((128, 256), (50, 100))],
)
def test_shorter_side_is_reached_unless_the_longer_one_is_too_long(size, expected):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    pixels, scale = resized(image, 64, 100)
    assert pixels.shape == (3, *expected)
    assert pixels.dtype == torch.uint8
    ratio = [expected[1] / size[1], expected[0] / size[0]]
    assert scale.tolist() == pytest.approx(ratio * 2)


def test_boxes_follow_their_objects_through_resizing_and_flips(root):
    data = module(root)
    dataset, num_steps = data.train_dataset(), data.plan().steps_per_epoch
    places, sizes = set(), set()
    for key in (BatchKey(epoch, step) for epoch in range(6) for step in range(num_steps)):
        batch = dataset[key]
        for pixels, corners, labels in zip(batch.pixels, batch.corners, batch.labels, strict=True):
            sizes.add(min(pixels.shape[1:]))
            for box, label in zip(corners.int().tolist(), labels.tolist(), strict=True):
                left, top, right, bottom = box
                colour = pixels[CHANNEL[label]].clone()
                assert colour[top + 2 : bottom - 2, left + 2 : right - 2].min() > 150
                if label != 90:  # of this colour there is one object
                    colour[max(top - 2, 0) : bottom + 3, max(left - 2, 0) : right + 3] = 0
                    assert colour.max() < 100
                if label == 1:
                    places.add(round(left / pixels.shape[-1], 1))
    assert places == {0.1, 0.6}  # at 4 of 48 pixels, flipped at 28
    assert sizes == {48, 60, 64}  # 60 x 90 where the longer side is the limit


def test_training_batch_is_a_function_of_its_key(root):
    first, again = (module(root).train_dataset()[BatchKey(1, 2)] for _ in range(2))
    other = module(root, seed=1).train_dataset()[BatchKey(1, 2)]
    assert all(map(torch.equal, first.pixels, again.pixels))
    assert all(map(torch.equal, first.corners, again.corners))
    assert not torch.equal(first.indices, other.indices) or any(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(first.pixels, other.pixels, strict=True)
    )


def test_images_without_objects_are_left_out_of_training_only(root):
    data = module(root)
    assert len(data.images("train")) == 6
    assert len(data.images("test")) == 5
    assert data.num_classes == 91
    assert data.is_whole()
    assert data.dataset_name == "coco2017"


def test_what_was_found_is_printed(root, monkeypatch):
    printed = []
    monkeypatch.setattr(opening, "rank_zero_info", printed.append)
    module(root)
    (text,) = printed
    for line in (
        "data: coco2017, 8 images to train on",
        "data: 5 images to evaluate on",
        f"data: {root}/train2017 is read for training, {root}/val2017 for evaluation",
        "boxes of 80 categories (person, bicycle, car, motorcycle, airplane, ...)",
        "images without a box to train on, left out of training: 2",
    ):
        assert line in text


def test_another_number_of_test_images_is_marked(root, monkeypatch):
    assert module(root).reasons() == ("val2017 has 5 files, the released set has 5,000",)
    assert len(module(root, num_test=3).reasons()) == 2
    monkeypatch.setattr(detection, "COCO_VAL", 5)
    data = DetectionDataModule(CocoDetection(root), num_workers=0)
    data.setup("fit")
    assert data.reasons() == ()


def change_annotations(root, split, change):
    file = Path(root) / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_categories_of_ones_own_are_marked(root):
    for split in ("train2017", "val2017"):
        change_annotations(root, split, lambda c: c["categories"][5].update(name="tram"))
    data = DetectionDataModule(CocoDetection(root), num_workers=0)
    data.setup("fit")
    assert data.reasons() == ("measured on a folder of one's own, which is no released set",)


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_split_without_an_object_is_refused(root, split):
    change_annotations(root, split, lambda c: [a.update(iscrowd=1) for a in c["annotations"]])
    message = rf"none of . images of .*{split} has a box around a single object .*; annotate some"
    with pytest.raises(ValueError, match=message):
        DetectionDataModule(CocoDetection(root), num_workers=0).setup("fit")


def test_nothing_is_held_out_and_test_images_are_not_selected_on(root):
    data = module(root)
    assert data.val_dataloader() == []
    assert len(data.images("holdout")) == 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_test_image_comes_once_over_all_ranks(root, monkeypatch, world_size):
    data, seen = module(root), []
    monkeypatch.setattr(loaders, "world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        for batch in data.test_dataloader():
            assert len(batch.pixels) == len(batch.scale) == len(batch.indices)
            seen += batch.indices.tolist()
    assert sorted(seen) == list(range(5))


def test_a_part_of_the_test_is_the_same_every_time_and_not_whole(root):
    data, again = module(root, num_test=3), module(root, num_test=3, seed=7)
    assert len(data.images("test")) == 3
    assert np.array_equal(data.images("test").names, again.images("test").names)
    assert not data.is_whole()


def test_source_without_boxes_is_refused():
    with pytest.raises(ValueError, match=r"Shapes has no boxes; use --data.source CocoDetection"):
        DetectionDataModule(Shapes(num_train=8, num_evaluation=4, image_size=16))


def test_sides_without_pixels_are_refused(root):
    with pytest.raises(ValueError, match="long_side 0 must be int >= 1"):
        module(root, long_side=0)
    with pytest.raises(ValueError, match=r"short_sides \(480, 0\) must be .*int >= 1"):
        module(root, short_sides=(480, 0))
    with pytest.raises(ValueError, match="short_sides is empty"):
        module(root, short_sides=())
