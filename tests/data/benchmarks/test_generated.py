"""Fingerprints of generated images and of array files: whatever changes an image changes them."""

import os

import numpy as np
import torch

from ser_lightning.data.benchmarks.arrays import ArrayImages
from ser_lightning.data.benchmarks.generated import CLEAN, CorruptedImages, Reduction, Sequences
from ser_lightning.data.sources.base import MemoryImages


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


def test_fingerprints_of_arrays_follow_the_file_and_the_severity(tmp_path):
    path = tmp_path / "fog.npy"
    np.save(path, np.zeros((5, 4, 4, 3), np.uint8))
    labels = torch.zeros(5, dtype=torch.int64)
    found = {ArrayImages(path, severity, labels).fingerprint() for severity in (1, 2)}
    os.utime(path, (1, 1))
    found.add(ArrayImages(path, 1, labels).fingerprint())
    assert len(found) == 3
