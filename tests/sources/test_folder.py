"""Tests of images in folders."""

import os
import re
import tempfile
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from ser_lightning.sources.base import Part, UnreadableImage
from ser_lightning.sources.folder import ImageFolder


def save(path, value=(200, 30, 60), size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def imagenet(tmp_path):
    for split, names in (("train", ("ant", "bee", "cat")), ("val", ("cat", "ant"))):
        for name in names:
            for number in (2, 1):
                save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_imagenet_layout_has_two_splits_with_the_same_class_ids(imagenet):
    source = ImageFolder(str(imagenet))
    train, evaluation = source.train(), source.evaluation()
    assert train.class_names == evaluation.class_names == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert evaluation.labels.tolist() == [0, 0, 2, 2]
    assert train.labels.dtype == torch.int64
    assert train.path(3) == str(imagenet / "train" / "bee" / "2.png")
    assert train.read(3).shape == (3, 8, 12)


def test_images_in_deeper_folders_belong_to_the_first_one(imagenet):
    save(imagenet / "train" / "bee" / "more" / "deep.JPEG")
    train = ImageFolder(str(imagenet)).train()
    assert train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_class_folders_without_split_hold_every_twentieth_image_out(tmp_path):
    for name in ("a", "b"):
        for number in range(20):
            save(tmp_path / name / f"{number:02d}.png")
    source = ImageFolder(str(tmp_path))
    assert len(source.train()) == 38
    assert source.evaluation().labels.tolist() == [0, 1]
    assert source.evaluation().num_classes == 2


def test_train_folder_without_evaluation_folder_is_held_out_from(tmp_path):
    for number in range(40):
        save(tmp_path / "train" / "ab"[number % 2] / f"{number:02d}.png")
    source = ImageFolder(str(tmp_path))
    assert len(source.train()) == 38
    assert len(source.evaluation()) == 2


@pytest.mark.parametrize("folder", ["", "only", "one/two"])
def test_images_without_class_folders_have_no_labels(tmp_path, folder):
    for number in range(3):
        save(tmp_path / folder / f"{number}.png")
    source = ImageFolder(str(tmp_path))
    assert source.train().labels.tolist() == [-1] * 2
    assert source.evaluation().labels.tolist() == [-1]
    assert source.train().num_classes == source.evaluation().num_classes == 0


def write_classes(folder, counts):
    for name, count in counts.items():
        for number in range(count):
            save(folder / name / f"{number:03d}.png", size=(1, 1))
    return folder


def found(source):
    """Images to train on, to evaluate on and left out."""
    evaluation = source.evaluation()
    lost = sum(source._open().left_out.values())
    return len(source.train()), len(evaluation) if evaluation is not None else 0, lost


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [("train", "test"), ("Train", "Val"), ("training", "validation"), ("TRAIN", "TEST")],
)
def test_tree_of_splits_is_evaluated_on_its_own_split(tmp_path, train, evaluation):
    write_classes(tmp_path / train, {"ant": 3, "bee": 3})
    write_classes(tmp_path / evaluation, {"ant": 1, "bee": 2})
    source = ImageFolder(str(tmp_path))
    assert source.train().class_names == source.evaluation().class_names == ("ant", "bee")
    assert found(source) == (6, 3, 0)
    summary = source.summary()
    assert f"{tmp_path / train} is read for training, {tmp_path / evaluation} for evalu" in summary
    assert "6 images to train on, 2 classes (ant, bee)" in summary
    assert "3 images to evaluate on" in summary


def test_other_folders_beside_splits_are_counted(imagenet):
    write_classes(imagenet, {"test": 4, "extra": 2})
    save(imagenet / "cover.png")
    (imagenet / "notes.txt").write_text("no image")
    source = ImageFolder(str(imagenet))
    assert found(source) == (6, 4, 8)
    for text in ("in test: 4", "in extra: 2", "beside the folders: 1", "files .txt: 1"):
        assert text in source.summary()
    assert len(ImageFolder(str(imagenet), evaluation="test", labels=False).evaluation()) == 4


def test_named_folder_that_is_missing_is_refused(imagenet):
    with pytest.raises(FileNotFoundError, match=r"dev is no folder; .* has train, val"):
        ImageFolder(str(imagenet), evaluation="dev").train()


def test_named_folder_may_lie_deeper(tmp_path):
    write_classes(tmp_path / "Data" / "CLS" / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "Data" / "CLS" / "val", {"a": 1, "b": 1})
    named = ImageFolder(str(tmp_path), "Data/CLS/train", "Data/CLS/val")
    assert found(named) == (4, 2, 0)
    assert found(ImageFolder(str(tmp_path))) == (4, 2, 0)  # a lone folder stands for its content
    assert ImageFolder(str(tmp_path)).train().read(3).shape == (3, 1, 1)


@pytest.mark.parametrize("name", ["{}/", "./{}", "{root}/{}", "../{root.name}/{}"])
def test_named_folder_may_be_written_as_any_path_to_it(tmp_path, name):
    for split in ("my train", "my dev"):
        write_classes(tmp_path / split, {"ant": 1, "bee": 2})
    names = [name.format(split, root=tmp_path) for split in ("my train", "my dev")]
    assert found(ImageFolder(tmp_path, *names)) == (3, 3, 0)


def test_named_folder_beside_the_root_is_refused(imagenet):
    source = ImageFolder(str(imagenet / "train"), evaluation="../val")
    with pytest.raises(ValueError, match=r"train/../val is not below .*--data.source.root DIR"):
        source.train()


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [("train2017", "val2017"), ("seg_train", "seg_test"), ("Training_Set", "Test_Set")],
)
def test_splits_under_other_names_are_no_classes(tmp_path, train, evaluation):
    for name in (train, evaluation, "others"):
        write_classes(tmp_path / name, {"ant": 1, "bee": 1})
    with pytest.raises(ValueError, match=f'source.train "{train}" .*evaluation "{evaluation}"'):
        ImageFolder(str(tmp_path)).train()
    assert found(ImageFolder(str(tmp_path), train, evaluation)) == (2, 2, 2)
    assert found(ImageFolder(str(tmp_path), labels=False)) == (5, 1, 0)


def test_splits_within_classes_are_refused(tmp_path):
    for name in ("bottle", "cable"):
        write_classes(tmp_path / name, {"train": 2, "test": 1})
    with pytest.raises(
        ValueError, match=r"bottle has folders for .*, as .*train/bottle, or train on one: "
    ):
        ImageFolder(str(tmp_path)).train()
    assert found(ImageFolder(str(tmp_path / "bottle"))) == (2, 1, 0)


def test_evaluation_folder_without_a_training_folder_is_refused(tmp_path):
    write_classes(tmp_path, {"test": 2, "cat": 2})
    with pytest.raises(ValueError, match=r"test for evaluation, but none for training; move"):
        ImageFolder(str(tmp_path)).train()


def test_training_folder_that_may_be_a_class_is_refused(tmp_path):
    write_classes(tmp_path, {"train": 2, "car": 2, "bus": 2})
    with pytest.raises(ValueError, match=r"train beside 2 others .* may be a class; for classes"):
        ImageFolder(str(tmp_path)).train()


def test_empty_evaluation_folder_is_refused(tmp_path):
    write_classes(tmp_path, {"train/a": 2, "train/b": 2})
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"val holds no image .* or remove the folder"):
        ImageFolder(str(tmp_path)).train()


def test_a_few_loose_images_are_left_out_and_counted(tmp_path):
    write_classes(tmp_path, {"a": 10, "b": 10})
    save(tmp_path / "loose.png")
    source = ImageFolder(str(tmp_path))
    assert source.train().class_names == ("a", "b")
    assert found(source) == (18, 2, 1)
    assert "left out: images beside class folders: 1" in source.summary()


def test_many_loose_images_are_refused_and_the_remedy_reads_all_without_labels(tmp_path):
    write_classes(tmp_path, {"a": 1, "b": 1, ".": 1})
    with pytest.raises(ValueError, match=r"1 images outside of class folders.*labels false"):
        ImageFolder(str(tmp_path)).train()
    source = ImageFolder(str(tmp_path), labels=False)
    assert source.train().labels.tolist() == [-1] * 2
    assert found(source) == (2, 1, 0)


def test_own_photographs_are_upright_and_released_ones_as_stored(tmp_path):
    rotated = Image.Exif()
    rotated[ExifTags.Base.Orientation] = 6
    for name in ("n01440764", "n01443537"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 2)).save(tmp_path / split / name / "1.jpg", exif=rotated)
    upright, stored = (3, 4, 2), (3, 2, 4)

    def shapes(**options):
        source = ImageFolder(str(tmp_path), **options)
        return source.train().read(0).shape, source.evaluation().read(0).shape

    assert shapes() == (upright, stored)
    assert shapes(upright=True) == (upright, upright)
    assert shapes(upright=False) == (stored, stored)
    assert ImageFolder(str(tmp_path)).evaluation().describe()["upright"] is False
    (tmp_path / "train" / "n01443537").rename(tmp_path / "train" / "own")
    (tmp_path / "val" / "n01443537").rename(tmp_path / "val" / "own")
    assert shapes() == (upright, upright)


def test_settings_of_decoding_are_used_and_described(tmp_path):
    save(tmp_path / "a.png", (0, 0, 0, 0), mode="RGBA")
    images = ImageFolder(str(tmp_path), background=(1, 2, 3)).train()
    assert images.read(0)[:, 0, 0].tolist() == [1, 2, 3]
    assert images.describe() == {
        "upright": True,
        "background": [1, 2, 3],
        "max_pixels": 178_956_970,
        "reduced": True,
    }
    with pytest.raises(UnreadableImage, match="max_pixels"):
        ImageFolder(str(tmp_path), max_pixels=3).train().read(0)


def test_reduced_images_of_a_part_are_those_of_the_folder(tmp_path):
    for number in range(2):
        save(tmp_path / f"{number}.jpg", size=(64, 32))
    assert ImageFolder(str(tmp_path)).train().read_reduced(0, 16).shape == (3, 16, 32)


def test_fingerprint_follows_files_and_settings(tmp_path):
    path = write_classes(tmp_path, {"a": 2, "b": 1}) / "a" / "000.png"

    def fingerprint(**options):
        return ImageFolder(str(tmp_path), **options).train().fingerprint()

    first, images = fingerprint(), ImageFolder(str(tmp_path)).train()
    assert fingerprint() == images.fingerprint() == first
    changed = {first, fingerprint(upright=False), fingerprint(background=(0, 0, 0))}
    os.utime(path, ns=(5, 5))
    assert images.listing() == ImageFolder(str(tmp_path)).train().listing()
    changed |= {images.fingerprint()}
    save(path, size=(9, 9))  # another image under the same name
    os.utime(path, ns=(5, 5))
    changed |= {images.fingerprint()}
    path.unlink()
    changed |= {images.fingerprint()}
    assert len(changed) == 6


def test_two_folders_have_two_names(tmp_path):
    names = set()
    for name in ("one/My Photos", "two/My Photos", "three"):
        save(tmp_path / name / "a.png")
        names.add(ImageFolder(str(tmp_path / name)).dataset_name)
    assert len(names) == 3
    assert all(re.fullmatch(r"folder_(my_photos|three)_[0-9a-f]{8}", name) for name in names)
    (tmp_path / "link").symlink_to(tmp_path / "three")
    assert ImageFolder(str(tmp_path / "link")).dataset_name in names
    assert not ImageFolder(str(tmp_path / "three")).is_released


def test_other_settings_of_a_folder_have_other_names_and_identities(imagenet):
    write_classes(imagenet / "test", {"ant": 2, "cat": 2})
    options = [{}, {"evaluation": "test"}, {"labels": False}, {"upright": False}]
    sources = [ImageFolder(str(imagenet), **given) for given in options]
    first, *others = (source.dataset_name for source in sources)
    ends = ["_evaluation_test", "_labels_false", "_upright_false"]
    assert others == [first + end for end in ends]
    assert len({source.evaluation().listing() for source in sources}) == len(sources)


names = st.sampled_from(["train", "Train", "TRAINING", "val", "Test", "validation", "eval"])
classes = st.dictionaries(st.sampled_from(["ant", "bee", "cat", "d.e"]), st.integers(1, 23))


@given(
    splits=st.dictionaries(names, classes, max_size=3),
    own=classes,
    loose=st.integers(0, 3),
    others=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_any_tree_is_read_once_and_counted_or_refused(splits, own, loose, others):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        total = loose + others
        for parent, counts in (*((root / name, of) for name, of in splits.items()), (root, own)):
            write_classes(parent, counts)
            total += sum(counts.values())
        write_classes(root, {".": loose, "ant": 0})
        for number in range(others):
            (root / f"{number}.heic").write_bytes(b"")
        source = ImageFolder(folder)
        try:
            train, evaluation = source.train(), source.evaluation()
        except (ValueError, FileNotFoundError):
            return  # what it says is tested above
        assert sum(found(source)) == total
        read = [
            os.path.realpath(file(images, i))
            for images in (train, evaluation)
            if images
            for i in range(len(images))
        ]
        assert len(set(read)) == len(read)
        if train.num_classes:
            parts = [Path(path).parent.name for path in read]
            labels = [*train.labels, *(evaluation.labels if evaluation is not None else ())]
            assert [train.class_names[label] for label in labels] == parts
        assert not {name.casefold() for name in train.class_names} & {"train", "val", "test"}


def file(images, index):
    """The file of an image, through the parts of a set."""
    while isinstance(images, Part):
        index, images = int(images.positions[index]), images.images
    return images.path(index)


def test_other_files_and_hidden_files_are_left_out(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "._a.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert len(ImageFolder(str(tmp_path)).train()) == 1


def test_names_beyond_ascii_are_read(tmp_path):
    save(tmp_path / "stra\u00dfe" / "\u5716.png")
    images = ImageFolder(str(tmp_path)).train()
    assert images.read(0).shape == (3, 8, 12)


def test_missing_folder_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; expected\n.*<class>"):
        ImageFolder(str(tmp_path / "nowhere")).train()


def test_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no image \(\.jpg .*expected\n.*<class>"):
        ImageFolder(str(tmp_path)).train()


@pytest.mark.parametrize("name", ["train.zip", "shard-000.tar", "0000.parquet", "a.tar.gz"])
def test_folder_of_packed_images_says_to_unpack_them(name, tmp_path):
    (tmp_path / name).write_bytes(b"packed")
    with pytest.raises(FileNotFoundError, match=r"files \.\w+: 1; unpack them into image files"):
        ImageFolder(str(tmp_path)).train()


def test_unknown_evaluation_class_is_named(imagenet):
    save(imagenet / "val" / "dog" / "1.png")
    with pytest.raises(ValueError, match=r"has classes that .* has not: dog.*source.root .*train"):
        ImageFolder(str(imagenet)).train()


def test_unsorted_evaluation_folder_is_refused(imagenet):
    save(imagenet / "val" / "loose.png")
    with pytest.raises(ValueError, match="images outside of class folders"):
        ImageFolder(str(imagenet)).evaluation()


@pytest.mark.parametrize("content", [b"", b"this is no image"])
def test_damaged_file_is_named_when_it_is_read_from_the_folder(tmp_path, content):
    save(tmp_path / "a.jpg")
    save(tmp_path / "c.jpg")
    (tmp_path / "b.jpg").write_bytes(content)
    images = ImageFolder(str(tmp_path)).train()
    assert images.read(0).shape == (3, 8, 12)
    with pytest.raises(UnreadableImage, match=r"b\.jpg: "):
        images.read(1)


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [("train", "train"), ("train", "train/n01"), ("train", "./train/"), ("train/n01", "train")],
)
def test_splits_that_share_images_are_refused(imagenet, train, evaluation):
    folders = sorted(path.name for path in (imagenet / "train").iterdir())
    names = [name.replace("n01", folders[0]) for name in (train, evaluation)]
    source = ImageFolder(str(imagenet), train=names[0], evaluation=names[1], labels=False)
    with pytest.raises(ValueError, match=r"share images; .*--data.source.evaluation"):
        source.train()


@pytest.mark.parametrize("splits", [("train/train", "val/val"), ("train/a/b", "val"), ("train/x",)])
def test_folders_that_hold_nothing_but_another_one_are_no_classes_in_splits_too(tmp_path, splits):
    for split in splits:
        for name in ("cat", "dog"):
            for number in range(2):
                save(tmp_path / split / name / f"{number}.png")
    source = ImageFolder(str(tmp_path))
    assert source.train().class_names == source.evaluation().class_names == ("cat", "dog")
    assert source.evaluation().labels.unique().tolist() == [0, 1]


def test_single_class_to_evaluate_stays_a_class_and_single_folders_of_images_stay_without(tmp_path):
    for name in ("train/cat", "train/dog", "val/cat/old"):
        save(tmp_path / name / "1.png")
    assert ImageFolder(str(tmp_path)).evaluation().labels.tolist() == [0]
    save(tmp_path / "other" / "train" / "only" / "1.png")
    assert ImageFolder(str(tmp_path / "other")).train().labels.tolist() == [-1]


def test_class_is_the_same_however_its_accents_are_written(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    for split, name in zip(("train", "val"), names, strict=True):
        for folder in (name, "tea"):
            save(tmp_path / split / folder / "1.png")
    for source in (ImageFolder(str(tmp_path)), ImageFolder(str(tmp_path), "val", "train")):
        assert source.train().class_names == source.evaluation().class_names == (names[0], "tea")
        assert source.train().labels.tolist() == source.evaluation().labels.tolist() == [0, 1]


def test_class_is_a_line_of_text_whatever_its_folders_name(tmp_path):
    folders = (b"caf\xe9", b"caf\xea", b"two\nlines", b"$\\frac$")
    for folder in folders:
        for split in (b"train", b"val"):
            save(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), split, folder, b"1.png"))))
    source = ImageFolder(str(tmp_path))
    names = source.evaluation().class_names
    assert set(names) == {"caf\\xe9", "caf\\xea", "two\\nlines", "$\\frac$"}
    assert source.train().labels.tolist() == source.evaluation().labels.tolist()
    assert source.train().labels.unique().numel() == 4
    for index, label in enumerate(source.train().labels):
        assert (
            os.fsencode(source.train().path(index)).split(b"/")[-2]
            == folders[["caf\\xe9", "caf\\xea", "two\\nlines", "$\\frac$"].index(names[label])]
        )
