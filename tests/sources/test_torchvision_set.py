"""Tests of torchvision's data sets, on files that the tests write."""

import json
import os
import pickle
import socket
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from ser_lightning.sources.base import UnreadableImage
from ser_lightning.sources.torchvision_set import TorchvisionImages, TorchvisionSet


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        content = {"data": data, "labels": [3, 9, 0, 5]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return tmp_path


@pytest.fixture
def textures(tmp_path):
    """DTD's tree: splits in text files, labels in `_labels`."""
    root = tmp_path / "dtd" / "dtd"
    (root / "labels").mkdir(parents=True)
    for split, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (4, 5))):
        lines = []
        for name in ("banded", "woven"):
            for number in numbers:
                path = root / "images" / name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (6, 5), (number, 0, 0)).save(path)
                lines.append(f"{name}/{number}.jpg")
        (root / "labels" / f"{split}1.txt").write_text("\n".join(lines))
    return tmp_path


def test_set_with_train_flag_is_read(cifar):
    source = TorchvisionSet("CIFAR10", str(cifar))
    train, evaluation = source.train(), source.evaluation()
    assert (len(train), len(evaluation)) == (20, 4)
    assert train.labels.tolist() == [3, 9, 0, 5] * 5
    assert train.class_names[9] == "truck"
    expected = torch.from_numpy(train.dataset.data[7]).permute(2, 0, 1)
    assert torch.equal(train.read(7), expected)


def test_set_with_named_splits_is_read_and_evaluated_on_test(textures):
    source = TorchvisionSet("DTD", str(textures))
    train, evaluation = source.train(), source.evaluation()
    assert (len(train), len(evaluation)) == (4, 4)
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.class_names == ("banded", "woven")
    assert train.read(0).shape == (3, 5, 6)


def test_classes_of_imagenet_are_called_as_in_its_benchmarks(tmp_path):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n03888257"):
            folder = tmp_path / "imagenette2" / split / wnid
            folder.mkdir(parents=True)
            Image.new("RGB", (6, 5)).save(folder / "image.JPEG")
    train = TorchvisionSet("Imagenette", str(tmp_path)).train()
    assert train.class_names == ("n01440764", "n03888257")
    assert train.labels.tolist() == [0, 1]


def test_train_split_can_be_named(textures):
    assert len(TorchvisionSet("DTD", str(textures), train_split="val").train()) == 2


def test_sets_of_torchvision_have_names_of_their_own(cifar):
    names = [TorchvisionSet(name, "data").dataset_name for name in ("CIFAR10", "CIFAR100")]
    assert names == ["cifar10", "cifar100"]
    assert TorchvisionSet("EMNIST", "data", train_split="letters").dataset_name == "emnist_letters"
    source = TorchvisionSet("CIFAR10", str(cifar))
    assert source.train() is source.train()
    assert source.train().fingerprint() != source.evaluation().fingerprint()
    again = TorchvisionSet("CIFAR10", str(cifar)).train()
    assert again.fingerprint() == source.train().fingerprint()


def test_fingerprint_follows_files_that_are_replaced_under_their_names(cifar, textures):
    for name in ("CIFAR10", "DTD"):
        source = TorchvisionSet(name, str(cifar))
        files = [
            path for path in cifar.rglob("*") if path.suffix == ".jpg" or "batch_" in path.name
        ]
        first = source.train().fingerprint()
        for path in files:
            os.utime(path, ns=(5, 5))
        assert source.train().fingerprint() != first
        for path in files:
            os.utime(path)


def test_fingerprint_takes_files_of_any_name(textures):
    images = TorchvisionSet("DTD", str(textures)).train()
    first = images.fingerprint()
    next(textures.rglob("*.jpg")).with_name(os.fsdecode(b"caf\xe9.txt")).touch()
    assert images.fingerprint() != first


def test_larger_files_than_the_limit_are_refused_with_the_option(textures):
    images = TorchvisionSet("DTD", str(textures), max_pixels=29).train()
    with pytest.raises(UnreadableImage, match=r"DTD, image 0: .*30 pixels.*--data.source.max_pix"):
        images.read(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TorchvisionSet("DTD", str(textures), max_pixels=30).train().read(0).shape == (
            3,
            5,
            6,
        )
    with pytest.raises(ValueError, match="max_pixels 0"):
        TorchvisionSet("DTD", str(textures), max_pixels=0)


def test_set_without_splits_holds_every_twentieth_image_of_a_class_out(tmp_path):
    folder = tmp_path / "eurosat" / "2750"
    for name in ("Forest", "River"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (4, 4)).save(folder / name / f"{number}.jpg")
    source = TorchvisionSet("EuroSAT", str(tmp_path))
    assert len(source.train()) == 38
    assert source.evaluation().labels.tolist() == [0, 1]


def test_labels_are_read_from_the_images_where_no_list_is_kept():
    dataset = datasets.FakeData(6, (3, 8, 8), 4)
    images = TorchvisionImages("FakeData", dataset)
    assert images.labels.tolist() == [int(dataset[i][1]) for i in range(6)]
    assert images.read(2).shape == (3, 8, 8)


def test_labels_are_read_from_sample_lists():
    class Signs:
        _samples = (("a.png", 4), ("b.png", 1))

        def __len__(self):
            return 2

    images = TorchvisionImages("Signs", Signs())
    assert images.labels.tolist() == [4, 1]
    assert images.class_names == ("0", "1", "2", "3", "4")


def test_gray_images_get_three_channels(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.FashionMNIST, "_check_exists", lambda self: True)
    pixels = torch.arange(2 * 28 * 28).remainder(256).to(torch.uint8).reshape(2, 28, 28)
    monkeypatch.setattr(
        datasets.FashionMNIST, "_load_data", lambda self: (pixels, torch.tensor([1, 7]))
    )
    train = TorchvisionSet("FashionMNIST", str(tmp_path)).train()
    assert train.labels.tolist() == [1, 7]
    assert train.num_classes == 10
    assert torch.equal(train.read(1), pixels[1].expand(3, -1, -1))


def test_unlabelled_images_have_no_class_names_of_their_own():
    class Unlabelled:
        labels = np.array([-1, -1])

        def __len__(self):
            return 2

    assert TorchvisionImages("Unlabelled", Unlabelled()).class_names == ()


@pytest.mark.parametrize("name", ["CIFAR10", "STL10", "Food101", "OxfordIIITPet", "EuroSAT"])
def test_missing_files_name_the_download_option(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"--data\.source\.download true"):
        TorchvisionSet(name, str(tmp_path)).train()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("CIFAR10", r"fetch https://\S+/cifar-10-python\.tar\.gz .*, and unpack it: .*batches-py$"),
        ("FashionMNIST", r"fetch http://\S+/: train-images-idx3-ubyte\.gz, .*/FashionMNIST/raw$"),
        ("EuroSAT", "put the files there by hand"),
    ],
)
def test_download_without_internet_names_the_files(name, remedy, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(FileNotFoundError, match=rf"Temporary failure[^$]*\n{remedy}") as caught:
        TorchvisionSet(name, str(tmp_path), download=True).prepare()
    assert "[Errno" not in str(caught.value)


def test_prepare_without_download_opens_nothing(tmp_path):
    TorchvisionSet("CIFAR10", str(tmp_path)).prepare()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "similar"), [("cifar10", "CIFAR10"), ("Flower102", "Flowers102")])
def test_unknown_name_suggests_similar_ones(name, similar):
    with pytest.raises(ValueError, match=f"has no '{name}'; did you mean .*{similar}"):
        TorchvisionSet(name, "data")


@pytest.mark.parametrize("name", ["ImageFolder", "VisionDataset", "wrap_dataset_for_transforms_v2"])
def test_what_is_no_set_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is no set .*--data.source ImageFolder"):
        TorchvisionSet(name, "data")


def test_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'trian'.*train"):
        TorchvisionSet("STL10", str(tmp_path), train_split="trian").train()


def test_train_split_without_effect_is_refused():
    with pytest.raises(ValueError, match="has no effect"):
        TorchvisionSet("CIFAR10", "data", train_split="all")


@pytest.mark.parametrize(
    ("name", "missing"),
    [("CocoDetection", "annFile"), ("EMNIST", "split; .*train_split")],
)
def test_set_that_needs_more_is_refused(name, missing):
    with pytest.raises(ValueError, match=f"needs {missing}"):
        TorchvisionSet(name, "data")


def test_options_behind_keyword_arguments_are_found():
    assert "train" in TorchvisionSet("KMNIST", "data")._parameters
    assert "download" in TorchvisionSet("EMNIST", "data", train_split="letters")._parameters


class Labelled:
    """A data set of gray images with some attributes, whose labels are what it gives."""

    def __init__(self, labels, **attributes):
        self.given = labels
        vars(self).update(attributes)

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        return Image.new("L", (4, 4)), self.given[index]


def test_labels_are_those_of_the_images_where_a_list_holds_more():
    rows = torch.tensor([[3, 7, 7], [1, 8, 8]])  # as QMNIST's
    assert TorchvisionImages("QMNIST", Labelled([3, 1], targets=rows)).labels.tolist() == [3, 1]


def test_missing_labels_are_none():
    samples = [("a", None), ("b", None)]  # as those of FER2013's test split
    images = TorchvisionImages("FER2013", Labelled([None, None], _samples=samples))
    assert images.labels.tolist() == [-1, -1]
    assert images.class_names == ()


@pytest.mark.parametrize("label", [torch.zeros(40, dtype=torch.int64), "cat", {"a": 1}, 0.5])
def test_sets_without_a_class_id_per_image_are_refused(label):
    with pytest.raises(ValueError, match=r"CelebA has no class id per image; .*ImageFolder"):
        TorchvisionImages("CelebA", Labelled([label, label]))
    with pytest.raises(ValueError, match="no class id per image"):
        TorchvisionImages("CelebA", Labelled([1, label]))


def countries(root, **classes):
    """Country211's folders, an image of a colour of its own in each class."""
    colours = {"AD": (200, 0, 0), "AE": (0, 200, 0), "AF": (0, 0, 200)}
    for split, names in classes.items():
        for name in names:
            path = root / "country211" / split / name / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), colours[name]).save(path)
    return TorchvisionSet("Country211", str(root))


def test_class_ids_of_both_splits_are_the_training_splits(tmp_path):
    source = countries(tmp_path, train=["AD", "AE", "AF"], test=["AE", "AF"])
    train, test = source.train(), source.evaluation()
    assert test.class_names == train.class_names == ("AD", "AE", "AF")
    assert test.labels.tolist() == [1, 2]
    for index, label in enumerate(test.labels.tolist()):
        assert torch.equal(test.read(index), train.read(label))
    assert "none of 1 classes (AD)" in source.summary()


def test_class_that_was_not_trained_on_is_refused(tmp_path):
    source = countries(tmp_path, train=["AD", "AE"], test=["AE", "AF"])
    with pytest.raises(ValueError, match=r"classes that it has none of to train on: AF; give both"):
        source.evaluation()


def test_fingerprint_follows_files_behind_links(tmp_path):
    countries(tmp_path / "store", train=["AD"], test=["AD"])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "country211").symlink_to(tmp_path / "store" / "country211")
    source = TorchvisionSet("Country211", str(tmp_path / "root"))
    before = source.train().fingerprint()
    assert source.train().fingerprint() == before
    Image.new("RGB", (9, 9)).save(tmp_path / "store" / "country211" / "train" / "AD" / "0.png")
    assert source.train().fingerprint() != before


def test_split_with_labels_goes_before_one_without(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        scenes = []
        for number in range(count):
            name = f"CLEVR_{split}_{number:06}.png"
            path = tmp_path / "clevr" / "CLEVR_v1.0" / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
            scenes.append({"image_filename": name, "objects": [None] * (3 + number % 2)})
        if split != "test":
            path = tmp_path / "clevr" / "CLEVR_v1.0" / "scenes" / f"CLEVR_{split}_scenes.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"scenes": scenes}))
    test = TorchvisionSet("CLEVRClassification", str(tmp_path)).evaluation()
    assert test.labels.min() >= 0


def test_evaluation_split_needs_no_training_split_on_the_disk(tmp_path):
    test = countries(tmp_path, test=["AE", "AF"]).evaluation()
    assert (test.class_names, test.labels.tolist()) == (("AE", "AF"), [0, 1])
