"""Corrupted and perturbed images made on the fly, as image sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from typing_extensions import override

from ser_lightning.corruptions import corrupt, perturb
from ser_lightning.data.crops import MAX_ASPECT, middle
from ser_lightning.sources.base import Derived, ImageSet

CLEAN = "clean"
"""Name of the condition that is no corruption."""


class Reduction(NamedTuple):
    """How images larger than a backbone's are made smaller before anything is done to them.

    Attributes:
        size: side of the result in pixels.
        crop_fraction: share of the resized side that the result keeps.
    """

    size: int
    crop_fraction: float

    @property
    def resized(self) -> int:
        """Length of the shorter side before the middle is cut out."""
        return round(self.size / self.crop_fraction)

    def resize(self, image: Tensor) -> Tensor:
        """Resizes (3, H, W), not yet cut; bilinear, as for ImageNet-C.

        Of an image longer than `MAX_ASPECT`, so much of the middle: what moves it does not show
        its ends, and resized they would take gigabytes.
        """
        longest = MAX_ASPECT * min(image.shape[-2:])
        image = F.center_crop(image, [min(side, longest) for side in image.shape[-2:]])
        kind = InterpolationMode.BILINEAR
        resized: Tensor = F.resize(image, [self.resized], kind, antialias=True)
        return resized.contiguous()

    def middle(self, image: Tensor) -> Tensor:
        """Resizes (3, H, W) and cuts the middle out."""
        return middle(image, self.resized, self.size, "bilinear").contiguous()


def reduction(images: ImageSet, size: int, crop_fraction: float) -> Reduction | None:
    """How to reduce images to a backbone's size; None if they are not larger, by the first."""
    larger = min(images.read(0).shape[-2:]) > size
    return Reduction(size, crop_fraction) if larger else None


@dataclass(eq=False)
class CorruptedImages(Derived):
    """Images, each in all conditions at once: `read` gives (conditions, 3, H, W).

    What is drawn for an image depends on its place only.

    Attributes:
        conditions: corruption and severity; CLEAN leaves the image as it is.
        seed: of the whole set.
        reduce: what is done before; None corrupts images as large as they are.
        options: further arguments of `corrupt`.
    """

    conditions: Sequence[tuple[str, int]]
    seed: int
    reduce: Reduction | None
    options: Mapping[str, Any]

    @override
    def read(self, index: int) -> Tensor:
        image = self.images.read(index).contiguous()
        if self.reduce is not None:
            image = self.reduce.middle(image)
        return torch.stack(
            [
                image
                if name == CLEAN
                else corrupt(image, name, severity, index, self.seed, **self.options)
                for name, severity in self.conditions
            ]
        )


@dataclass(eq=False)
class Sequences(Derived):
    """Images as generated sequences, (T, 3, H, W); what is drawn depends on an image's place only.

    Attributes:
        name: of the perturbation.
        seed: of the whole set.
        reduce: images are resized before they are perturbed, and the middle is cut out after it;
            None perturbs them as large as they are.
        stride: takes every so-manieth frame, from the first one on.
    """

    name: str
    seed: int
    reduce: Reduction | None
    stride: int

    @override
    def read(self, index: int) -> Tensor:
        image, crop = self.images.read(index).contiguous(), None
        if self.reduce is not None:
            image, crop = self.reduce.resize(image), self.reduce.size
        return perturb(image, self.name, index, self.seed, crop=crop)[:: self.stride]
