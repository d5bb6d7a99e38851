"""Sets that share images are found, however they are put together."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ser_lightning.data import Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.shared_images import num_shared
from ser_lightning.sources.base import MemoryImages, Part, hold_out
from ser_lightning.sources.folder import FolderImages

positions = st.lists(st.integers(0, 11), unique=True, min_size=1)


@settings(max_examples=30, deadline=None)
@given(positions, positions, st.data())
def test_parts_share_what_their_positions_share(first, second, data):
    whole = MemoryImages(torch.zeros(12, 3, 4, 4), torch.zeros(12, dtype=torch.int64), ())
    inner = data.draw(st.lists(st.integers(0, len(first) - 1), unique=True, min_size=1))
    part = Part(Part(whole, np.array(first)), np.array(inner))  # of a part
    expected = {first[i] for i in inner} & set(second)
    assert num_shared(part, Part(whole, np.array(second))) == len(expected)
    assert num_shared((whole, np.array(first)), (whole, np.array(second))) == len(
        set(first) & set(second)
    )


@settings(max_examples=20, deadline=None)
@given(
    num_classes=st.integers(1, 4),
    per_class=st.integers(1, 45),
    holdout=st.sampled_from([0.0, 0.01, 0.5]),
    num_train=st.none() | st.integers(1, 20),
)
def test_splits_of_any_set_share_nothing(num_classes, per_class, holdout, num_train):
    data = LabelledDataModule(
        Held(num_classes, per_class), holdout_fraction=holdout, num_train=num_train
    )
    if per_class == 1:
        with pytest.raises(ValueError, match="no evaluation split"):
            data.setup("test")
        return
    data.setup("test")
    train, held_out, test = (data.images(split) for split in ("train", "holdout", "test"))
    assert num_shared(train, test) == num_shared(held_out, test) == num_shared(train, held_out) == 0
    if num_train is None:
        assert len(train) + len(held_out) + len(test) == num_classes * per_class


class Held(Shapes):
    """Images without an evaluation split, in memory."""

    def __init__(self, num_classes, per_class):
        super().__init__()
        labels = torch.arange(num_classes).repeat_interleave(per_class)
        names = tuple(str(i) for i in range(num_classes))
        whole = MemoryImages(torch.zeros(len(labels), 3, 4, 4), labels, names)
        self.splits = hold_out(whole)

    def train(self):
        return self.splits[0]

    def evaluation(self):
        return self.splits[1]


def test_links_to_a_folder_are_the_same_files(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("0.png", "1.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "a" / name)
    os.symlink(tmp_path / "a", tmp_path / "b")
    names = np.array([b"0.png", b"1.png"])
    first, second = (FolderImages(tmp_path / n, names, ()) for n in ("a", "b"))
    assert num_shared(first, second) == 2
    assert num_shared(first, (second, np.array([1]))) == 1
