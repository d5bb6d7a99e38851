"""Fingerprints of generated images and of array files: whatever changes an image changes them."""

import os

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from ser_lightning.corruptions import perturb
from ser_lightning.data.benchmarks import generated
from ser_lightning.data.benchmarks.cifar_c import ArrayImages
from ser_lightning.data.benchmarks.generated import CLEAN, CorruptedImages, Reduction, Sequences
from ser_lightning.sources.base import MemoryImages


def images(level):
    pixels = torch.full((2, 3, 8, 8), level, dtype=torch.uint8)
    return MemoryImages(pixels, torch.arange(2), ("a", "b"))


def test_fingerprints_of_generated_images_follow_images_and_settings():
    sets = [
        CorruptedImages(images(5), [(CLEAN, 0)], 0, None, {}),
        CorruptedImages(images(6), [(CLEAN, 0)], 0, None, {}),
        CorruptedImages(images(5), [("fog", 1)], 0, None, {}),
        CorruptedImages(images(5), [(CLEAN, 0)], 1, None, {}),
        CorruptedImages(images(5), [(CLEAN, 0)], 0, Reduction(4, 1.0), {}),
        CorruptedImages(images(5), [(CLEAN, 0)], 0, None, {"jpeg_quality": 85}),
        Sequences(images(5), "tilt", 0, None, 1),
        Sequences(images(5), "tilt", 0, None, 2),
    ]
    assert len({some.fingerprint() for some in sets}) == len(sets)
    assert (
        sets[0].fingerprint() == CorruptedImages(images(5), [(CLEAN, 0)], 0, None, {}).fingerprint()
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
    frames = Sequences(long, "translate", 0, Reduction(32, 0.5), 1).read(0)
    assert shapes == [(3, *np.minimum(np.multiply(size, 64 / 40), 16 * 64).astype(int))]
    assert frames.shape[1:] == (3, 32, 32)
    assert (frames[0] == pixels[0, :, :1, :1]).all()


def test_sequences_of_long_images_that_are_cut_show_the_same_middle():
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 10, 170), dtype=np.uint8))
    pixels = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = MemoryImages(pixels, torch.zeros(1, dtype=torch.int64), ("a",))
    reduce = Reduction(16, 0.5)
    frames = Sequences(images, "translate", 0, reduce, 1).read(0).int()
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
