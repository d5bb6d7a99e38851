"""Fingerprints of generated images and of array files: whatever changes an image changes them."""

import os

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from ser_lightning.corruptions import perturb
from ser_lightning.data.benchmarks import generated
from ser_lightning.data.benchmarks.cifar_c import ArrayImages
from ser_lightning.data.benchmarks.generated import (
    CLEAN,
    CorruptedImages,
    Reduction,
    Sequences,
    sequence_length,
)
from ser_lightning.sources.base import MemoryImages, UnreadableImage


def images(level):
    pixels = torch.full((2, 3, 8, 8), level, dtype=torch.uint8)
    return MemoryImages(pixels, torch.arange(2), ("a", "b"))


def test_fingerprints_of_generated_images_follow_images_and_settings():
    sets = [
        CorruptedImages(images(5), [(CLEAN, 0)], 0, None, {}, 8),
        CorruptedImages(images(6), [(CLEAN, 0)], 0, None, {}, 8),
        CorruptedImages(images(5), [("fog", 1)], 0, None, {}, 8),
        CorruptedImages(images(5), [(CLEAN, 0)], 1, None, {}, 8),
        CorruptedImages(images(5), [(CLEAN, 0)], 0, Reduction(4, 1.0), {}, 4),
        CorruptedImages(images(5), [(CLEAN, 0)], 0, None, {"jpeg_quality": 85}, 8),
        Sequences(images(5), "tilt", 0, None, 1, 8, 31),
        Sequences(images(5), "tilt", 0, None, 2, 8, 31),
    ]
    assert len({some.fingerprint() for some in sets}) == len(sets)
    assert (
        sets[0].fingerprint()
        == CorruptedImages(images(5), [(CLEAN, 0)], 0, None, {}, 8).fingerprint()
    )


@pytest.mark.parametrize("size", [(40, 200_000), (200_000, 40)])
def test_extremely_long_images_are_cut_before_they_are_resized(monkeypatch, size):
    shapes = []

    def recorded(image, *args, **options):
        shapes.append(tuple(image.shape))
        return perturb(image, *args, **options)

    monkeypatch.setattr(generated, "perturb", recorded)
    pixels = torch.randint(0, 256, (1, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, *size)
    long = MemoryImages(pixels, torch.zeros(1, dtype=torch.int64), ("a",))
    frames = Sequences(long, "translate", 0, Reduction(32, 0.5), 1, 32, 16).read(0)
    assert shapes == [(3, *np.minimum(np.multiply(size, 64 / 40), 16 * 64).astype(int))]
    assert frames.shape[1:] == (3, 32, 32)
    assert (frames[0] == pixels[0, :, :1, :1]).all()


def test_sequences_of_long_images_that_are_cut_show_the_same_middle():
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 10, 170), dtype=np.uint8))
    pixels = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = MemoryImages(pixels, torch.zeros(1, dtype=torch.int64), ("a",))
    reduce = Reduction(16, 0.5)
    frames = Sequences(images, "translate", 0, reduce, 1, 16, 16).read(0).int()
    assert max(pixels.shape[-2:]) > 16 * min(pixels.shape[-2:])
    resized = F.resize(pixels[0], [reduce.resized], antialias=True).contiguous()
    expected = perturb(resized, "translate", 0, 0, crop=16).int()
    assert (frames - expected).abs().max() <= 1


def test_fingerprints_of_arrays_follow_the_file_and_the_severity(tmp_path):
    path = tmp_path / "fog.npy"
    np.save(path, np.zeros((5, 4, 4, 3), np.uint8))
    labels = torch.zeros(5, dtype=torch.int64)
    found = {ArrayImages(path, severity, labels).fingerprint() for severity in (1, 2)}
    os.utime(path, (1, 1))
    found.add(ArrayImages(path, 1, labels).fingerprint())
    assert len(found) == 3


def of_sizes(*sizes):
    """A gray square image of each size."""

    class Sized(MemoryImages):
        def read(self, index):
            return torch.full((3, sizes[index], sizes[index]), 90, dtype=torch.uint8)

    labels = torch.zeros(len(sizes), dtype=torch.int64)
    return Sized(torch.zeros(len(sizes), 3, 1, 1, dtype=torch.uint8), labels, ("a",))


def test_each_larger_image_is_corrupted_at_the_backbones_size():
    made = CorruptedImages(of_sizes(30, 80), [("fog", 1)], 0, None, {}, 32)
    assert [made.read(i).shape[1:] for i in (0, 1)] == [(3, 30, 30), (3, 32, 32)]


@pytest.mark.parametrize("kind", ["corruption", "perturbation"])
def test_too_small_image_is_named_and_counts_as_unreadable(kind):
    source = of_sizes(30, 12)
    if kind == "corruption":
        made = CorruptedImages(source, [("fog", 1)], 0, None, {}, 32)
    else:
        made = Sequences(source, "rotate", 0, None, 1, 32, 31)
    with pytest.raises(UnreadableImage, match=r"image 1 has 12 x 12 pixels, .* need 16 a side"):
        made.read(1)


def test_sequences_are_as_long_as_the_first_or_are_refused():
    assert sequence_length("translate", of_sizes(34).read(0), None, 64) == 16
    cut = Sequences(of_sizes(34, 60), "translate", 0, None, 1, 64, 16)
    assert torch.equal(cut.read(1), perturb(of_sizes(60).read(0), "translate", 1, 0)[:16])
    short = Sequences(of_sizes(60, 34), "translate", 0, None, 1, 64, 31)
    message = r"image 1 of 34 x 34 pixels gives 16 frames of translate instead of 31.*leave trans"
    with pytest.raises(UnreadableImage, match=message):
        short.read(1)
