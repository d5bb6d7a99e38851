"""Corrupted and perturbed images made on the fly, as image sets."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from typing_extensions import override

from ser_lightning.corruptions import corrupt, perturb
from ser_lightning.data.crops import middle
from ser_lightning.data.sources.base import Derived, ImageSet

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

    def resize(self, image: Tensor) -> Tensor:
        """Resizes (3, H, W), not yet cut; bilinear, as for ImageNet-C."""
        sides = [round(self.size / self.crop_fraction)]
        resized: Tensor = F.resize(image, sides, InterpolationMode.BILINEAR, antialias=True)
        return resized.contiguous()

    def middle(self, image: Tensor) -> Tensor:
        """Resizes (3, H, W) and cuts the middle out."""
        resized = round(self.size / self.crop_fraction)
        return middle(image, resized, self.size, "bilinear").contiguous()


def reduction(images: ImageSet, size: int, crop_fraction: float) -> Reduction | None:
    """How to reduce images to a backbone's size; None if they are not larger, by the first."""
    larger = min(images.read(0).shape[-2:]) > size
    return Reduction(size, crop_fraction) if larger else None


class CorruptedImages(Derived):
    """Images, each in all conditions at once; what is drawn for one depends on its place only.

    Args:
        images: the images.
        conditions: corruption and severity; CLEAN leaves the image as it is.
        seed: of the whole set.
        reduce: what is done before; None corrupts images as large as they are.
        options: further arguments of `corrupt`.
    """

    def __init__(
        self,
        images: ImageSet,
        conditions: Sequence[tuple[str, int]],
        seed: int,
        reduce: Reduction | None,
        options: Mapping[str, Any],
    ) -> None:
        self.images = images
        self.labels = images.labels
        self.class_names = images.class_names
        self.conditions = list(conditions)
        self.seed = seed
        self.reduce = reduce
        self.options = dict(options)

    def read(self, index: int) -> Tensor:
        """Reads an image once: (conditions, 3, H, W) uint8."""
        image = self.images.read(index).contiguous()
        if self.reduce is not None:
            image = self.reduce.middle(image)
        return torch.stack(
            [
                image if name == CLEAN else self._corrupt(image, name, severity, index)
                for name, severity in self.conditions
            ]
        )

    @override
    def settings(self) -> tuple[Any, ...]:
        return self.conditions, self.seed, self.reduce, sorted(self.options.items())

    def _corrupt(self, image: Tensor, name: str, severity: int, index: int) -> Tensor:
        return corrupt(image, name, severity, index, self.seed, **self.options)


class Sequences(Derived):
    """Images as generated sequences; what is drawn for one depends on its place only.

    Args:
        images: the images.
        name: of the perturbation.
        seed: of the whole set.
        reduce: images are resized before they are perturbed, and the middle is cut out after it;
            None perturbs them as large as they are.
        stride: takes every so-manieth frame, from the first one on.
    """

    def __init__(
        self,
        images: ImageSet,
        name: str,
        seed: int,
        reduce: Reduction | None,
        stride: int,
    ) -> None:
        self.images = images
        self.labels = images.labels
        self.class_names = images.class_names
        self.name = name
        self.seed = seed
        self.reduce = reduce
        self.stride = stride

    def read(self, index: int) -> Tensor:
        """Reads an image and perturbs it: (T, 3, H, W) uint8."""
        image = self.images.read(index).contiguous()
        if self.reduce is None:
            frames = perturb(image, self.name, index, self.seed)
        else:
            image, crop = self.reduce.resize(image), self.reduce.size
            frames = perturb(image, self.name, index, self.seed, crop=crop)
        return frames[:: self.stride]

    @override
    def settings(self) -> tuple[Any, ...]:
        return self.name, self.seed, self.reduce, self.stride
