"""Tests of the small copies of a folder's photographs."""

import pytest
from PIL import Image

from ser_lightning.data import ImageFolder
from ser_lightning.data.thumbnails import write_thumbnails


# ImageFolder itself holds one image of each class out, which no copy is made of
def folder_of(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = (10 * number, 0, 0)
            Image.new("RGB", (60 + number, 50), colour).save(root / name / f"{number:03}.png")
    return str(root)


def test_copies_have_one_size_and_keep_their_classes(tmp_path):
    root = folder_of(tmp_path / "photos", {"cat": 19, "dog": 19, "rat": 4})
    assert write_thumbnails(root, tmp_path / "small", size=24) == 33
    copies = ImageFolder(str(tmp_path / "small"))
    train, evaluation = copies.train(), copies.evaluation()
    assert train.class_names == ("cat", "dog", "rat")
    assert train.labels.bincount().tolist() == [15, 15, 3]
    assert evaluation.labels.bincount().tolist() == [3, 3]
    assert {train.read(index).shape for index in range(33)} == {(3, 24, 24)}


def test_images_without_classes_have_no_labels(tmp_path):
    write_thumbnails(folder_of(tmp_path / "photos", {"": 21}), tmp_path / "small")
    train = ImageFolder(str(tmp_path / "small")).train()
    assert train.class_names == ()
    assert (train.labels == -1).all()


def test_limit_spreads_over_the_folder(tmp_path):
    root = folder_of(tmp_path / "photos", {"cat": 20, "dog": 20})
    assert write_thumbnails(root, tmp_path / "small", limit=10) == 8
    train = ImageFolder(str(tmp_path / "small")).train()
    assert train.labels.bincount().tolist() == [4, 4]


def test_unreadable_image_is_left_out_with_a_word(tmp_path):
    root = folder_of(tmp_path / "photos", {"": 19})
    (tmp_path / "photos" / "000.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"000\.png.*left out"):
        assert write_thumbnails(root, tmp_path / "small") == 14


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="too few images"):
        write_thumbnails(folder_of(tmp_path / "photos", {"": 3}), tmp_path / "small")
