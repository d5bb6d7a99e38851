"""Tests of the interface of image sets."""

import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ser_lightning.sources.base import (
    MemoryImages,
    Part,
    Source,
    hold_out,
)
from ser_lightning.sources.coco import CocoDetection
from ser_lightning.sources.fashion_mnist import FashionMNISTFiles
from ser_lightning.sources.folder import ImageFolder
from ser_lightning.sources.shapes import Shapes
from ser_lightning.sources.threediebench import ThreeDIEBench
from ser_lightning.sources.torchvision_set import TorchvisionSet


def memory(count, channels=3):
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, channels, 2, 3)
    return MemoryImages(pixels, torch.arange(count) % 2, ("even", "odd"))


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_images_are_read_as_colour(channels):
    images = memory(5, channels)
    assert len(images) == 5
    assert images.num_classes == 2
    assert images.read(4).shape == (3, 2, 3)
    assert (images.read(4) == 4).all()


def test_part_reads_its_images_with_their_labels():
    part = Part(memory(9), np.array([7, 2]))
    assert len(part) == 2
    assert [int(part.read(i)[0, 0, 0]) for i in range(2)] == [7, 2]
    assert part.labels.tolist() == [1, 0]
    assert part.class_names == ("even", "odd")


def values(images):
    return [int(images.read(i)[0, 0, 0]) for i in range(len(images))]


def of_classes(*counts):
    """Images with a value of their own, sorted by class."""
    pixels = torch.arange(sum(counts), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 3)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return MemoryImages(pixels, labels, tuple(f"class{i}" for i in range(len(counts))))


def test_hold_out_keeps_every_twentieth_image_of_a_class_from_training():
    train, held_out = hold_out(of_classes(45, 40))
    assert values(held_out) == [19, 39, 64, 84]
    assert len(train) == 81


def test_hold_out_takes_the_last_image_of_a_small_class_and_none_of_a_single_one():
    train, held_out = hold_out(of_classes(19, 1, 2))
    assert values(held_out) == [18, 21]
    assert values(train) == [*range(18), 19, 20]
    assert "single image, which stays in training: 1" in held_out.summary()


def test_hold_out_of_single_images_holds_nothing_out():
    train, held_out = hold_out(of_classes(1, 1))
    assert len(train) == 2
    assert held_out is None


@given(st.lists(st.integers(0, 4), max_size=120), st.booleans())
@settings(max_examples=60, deadline=None)
def test_hold_out_divides_any_set_by_class(labels, has_labels):
    labels = torch.tensor(labels, dtype=torch.int64) if has_labels else -torch.ones(len(labels))
    images = MemoryImages(
        torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None], labels.long(), ()
    )
    train, held_out = hold_out(images)
    kept = values(held_out) if held_out is not None else []
    assert sorted(values(train) + kept) == list(range(len(labels)))  # none twice, none lost
    for label in labels.unique():
        count = int((labels == label).sum())
        num_held_out = int((held_out.labels == label).sum()) if held_out is not None else 0
        assert num_held_out == (count // 20 or int(count > 1))


def test_fingerprint_tells_pixels_labels_and_parts_apart():
    images = memory(9)
    other = MemoryImages(images.pixels + 1, images.labels, images.class_names)
    swapped = MemoryImages(images.pixels, 1 - images.labels, images.class_names)
    sets = [images, other, swapped, Part(images, np.array([1, 2])), Part(images, np.array([2, 1]))]
    assert len({some.fingerprint() for some in sets}) == len(sets)
    assert len({some.listing() for some in sets}) == len(sets)  # pixels are all that memory has
    assert images.fingerprint() == memory(9).fingerprint()


def test_results_of_sources_of_other_settings_have_other_names():
    sources = [
        Shapes(),
        Shapes(clutter=0.15),
        Shapes(num_evaluation=24),
        Shapes(24),
        ThreeDIEBench("here"),
        TorchvisionSet("STL10", "here"),
        TorchvisionSet("STL10", "here", train_split="train+unlabeled"),
        TorchvisionSet("CIFAR10", "here", max_pixels=10**6),
    ]
    assert [source.dataset_name for source in sources] == [
        "shapes",
        "shapes_clutter_0.15",
        "shapes_num_evaluation_24",
        "shapes_num_train_24",
        "3diebench",
        "stl10",
        "stl10_train+unlabeled",
        "cifar10_max_pixels_1000000",
    ]
    assert Shapes(4096, image_size=32, clutter=1).dataset_name == "shapes"  # all as usual
    assert pickle.loads(pickle.dumps(sources[1])).dataset_name == "shapes_clutter_0.15"
    assert Shapes(clutter=1e-5).dataset_name != Shapes(clutter=2e-5).dataset_name


class Own(Source):
    """A source that somebody wrote, without a word on names."""

    def __init__(self, root, kind="a/b", cache=None):
        self.splits = ()

    def train(self):
        return memory(4)

    def evaluation(self):
        return None

    is_released = False


def test_any_source_has_names_that_tell_folders_and_options_apart():
    sources = [Own("x"), Own("y"), Own("x", "a-b"), Own("x", kind="c")]
    assert len({source.dataset_name for source in sources}) == len(sources)
    assert all(re.fullmatch(r"own_[xy]_[a-z0-9_]+", source.dataset_name) for source in sources)
    assert Own("x", cache="elsewhere").dataset_name == Own("x", "a/b").dataset_name


class Single(Source):
    """One class without an evaluation split."""

    def __init__(self, images):
        self.splits = hold_out(images)

    def train(self):
        return self.splits[0]

    def evaluation(self):
        return self.splits[1]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (
            of_classes(40, 40),
            ["76 images to train", "2 classes (class0, class1)", "4 images held"],
        ),
        (of_classes(1, 1), ["2 images to train on", "nothing to evaluate on"]),
        (of_classes(*[2] * 7), ["7 classes (class0, class1, class2, class3, class4, ...)"]),
    ],
)
def test_summary_says_what_was_found(images, expected):
    for text in expected:
        assert text in Single(images).summary()


@pytest.mark.parametrize("root", ["", " ", None])
@pytest.mark.parametrize(
    "source",
    [
        ImageFolder,
        CocoDetection,
        ThreeDIEBench,
        FashionMNISTFiles,
        partial(TorchvisionSet, "CIFAR10"),
    ],
)
def test_empty_root_is_not_the_current_folder(source, root):
    with pytest.raises(ValueError, match=r"root .* names no folder; give"):
        source(root)


@pytest.mark.parametrize(
    ("counts", "words"), [((1, 0, 0), ", none of 2 classes (class1, class2)"), ((1, 1, 1), "")]
)
def test_classes_without_an_image_to_evaluate_on_are_named(counts, words):
    class Two(Source):
        def train(self):
            return of_classes(2, 1, 3)

        def evaluation(self):
            return of_classes(*counts)

    line = f"data: {sum(counts)} images to evaluate on{words}"
    assert Two().summary().splitlines()[1] == line
