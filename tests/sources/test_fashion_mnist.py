"""Tests of Fashion-MNIST read from its files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ser_lightning.sources.fashion_mnist import FashionMNISTFiles, read_idx

PACKAGE = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(params=["", ".gz"])
def folder(tmp_path, request):
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("t10k", 3)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        for kind, array in (("images", images), ("labels", labels)):
            name = f"{split}-{kind}-idx{array.ndim}-ubyte{request.param}"
            content = gzip.compress(idx(array)) if request.param else idx(array)
            (tmp_path / name).write_bytes(content)
    return tmp_path


def test_both_splits_are_read(folder):
    source = FashionMNISTFiles(str(folder))
    train, evaluation = source.train(), source.evaluation()
    assert (len(train), len(evaluation)) == (7, 3)
    assert train.num_classes == 10
    assert train.labels.tolist() == list(range(7))
    assert train.labels.dtype == torch.int64
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    assert np.array_equal(train.read(5).numpy(), np.broadcast_to(pixels[5], (3, 28, 28)))


def test_missing_files_are_named_with_the_remedy(folder):
    for path in folder.glob("t10k-labels*"):
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"^t10k-labels-idx1-ubyte .*apt-get install dataset-fashion-mnist"
    ):
        FashionMNISTFiles(str(folder)).evaluation()


def test_cut_off_file_is_named(folder):
    path = next(folder.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-images.*fetch it again"):
        FashionMNISTFiles(str(folder)).train()


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"<html>not here"])
def test_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="fetch it again"):
        read_idx(path)


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [
        (4, [0] * 5, r"images \(4, 28, 28\) and labels \(5,\); fetch"),
        (0, [], r"images \(0, 28, 28\) and labels \(0,\); fetch"),
        (4, [0, 1, 25, 2], "label 25, Fashion-MNIST has 0 to 9; .* TorchvisionSet"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, count, labels, message):
    images = np.zeros((count, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array(labels, np.uint8)))
    with pytest.raises(ValueError, match=message):
        FashionMNISTFiles(str(tmp_path)).train()


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="package dataset-fashion-mnist is not installed")
def test_installed_package_is_read():
    test = FashionMNISTFiles().evaluation()
    assert test.pixels.shape == (10000, 1, 28, 28)
    assert test.labels.bincount().tolist() == [1000] * 10


def test_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "images.gz"
    content = bytearray(gzip.compress(idx(np.zeros((9, 9), np.uint8))))
    content[10] ^= 6  # the kind of the first block
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.gz is damaged .*fetch it again"):
        read_idx(path)


def test_files_are_read_once(folder):
    source = FashionMNISTFiles(str(folder))
    assert source.train() is source.train()
