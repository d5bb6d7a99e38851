"""Corrupted and perturbed images made on the fly, as image sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from typing_extensions import override

from ser_lightning.corruptions import corrupt, num_official_frames, perturb
from ser_lightning.corruptions.corrupted import MIN_SIDE
from ser_lightning.corruptions.tables import native_size
from ser_lightning.data.crops import MAX_ASPECT, middle
from ser_lightning.sources.base import Derived, ImageSet, UnreadableImage

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


def reduction(first: Tensor, size: int, crop_fraction: float) -> Reduction | None:
    """How to bring images to a backbone's size; None if the first of them is not larger."""
    larger = min(first.shape[-2:]) > size
    return Reduction(size, crop_fraction) if larger else None


def limited(image: Tensor, size: int) -> Tensor:
    """The middle (3, size, size) of a larger image, of its whole shorter side; others as given."""
    return Reduction(size, 1.0).middle(image) if min(image.shape[-2:]) > size else image


def _read(images: ImageSet, index: int, reduce: Reduction | None) -> Tensor:
    """An image that may be changed; UnreadableImage where it is too small and is not resized."""
    image = images.read(index).contiguous()
    height, width = image.shape[-2:]
    if reduce is None and min(height, width) < MIN_SIDE:
        raise UnreadableImage(
            f"image {index} has {height} x {width} pixels, of which corruptions and perturbations "
            f"need {MIN_SIDE} a side"
        )
    return image


def sequence_length(name: str, image: Tensor, reduce: Reduction | None, size: int) -> int:
    """Frames that the sequence of an image (3, H, W) has; see `Sequences`."""
    height, width = image.shape[-2:]
    side = size if reduce is not None else min(height, width, size)
    return num_official_frames(name, native_size(side, side))


@dataclass(eq=False)
class CorruptedImages(Derived):
    """Images, each in all conditions at once: `read` gives (conditions, 3, H, W).

    What is drawn for an image depends on its place only.

    Attributes:
        conditions: corruption and severity; CLEAN leaves the image as it is.
        seed: of the whole set.
        reduce: what is done before; None corrupts images as large as they are, but for `size`.
        options: further arguments of `corrupt`.
        size: of the backbone's images; larger ones that nothing reduces are `limited` to it.
    """

    conditions: Sequence[tuple[str, int]]
    seed: int
    reduce: Reduction | None
    options: Mapping[str, Any]
    size: int

    @override
    def settings(self) -> tuple[Any, ...]:
        return self.conditions, self.seed, self.reduce, self.options  # as in records, without size

    @override
    def read(self, index: int) -> Tensor:
        image = _read(self.images, index, self.reduce)
        image = limited(image, self.size) if self.reduce is None else self.reduce.middle(image)
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
            None perturbs them as large as they are, but for `size`.
        stride: takes every so-manieth frame, from the first one on.
        size: of the backbone's images; larger ones that nothing reduces are `limited` to it.
        num_frames: of every sequence, before the stride: longer ones are cut.
    """

    name: str
    seed: int
    reduce: Reduction | None
    stride: int
    size: int
    num_frames: int

    @override
    def settings(self) -> tuple[Any, ...]:
        return self.name, self.seed, self.reduce, self.stride  # as in records

    @override
    def read(self, index: int) -> Tensor:
        image, crop = _read(self.images, index, self.reduce), None
        count = sequence_length(self.name, image, self.reduce, self.size)
        if count < self.num_frames:
            height, width = image.shape[-2:]
            raise UnreadableImage(
                f"image {index} of {height} x {width} pixels gives {count} frames of {self.name} "
                f"instead of {self.num_frames} as the first one; give images of one size, or leave "
                f"{self.name} out of --data.perturbations"
            )
        if self.reduce is not None:
            image, crop = self.reduce.resize(image), self.reduce.size
        else:
            image = limited(image, self.size)
        frames = perturb(image, self.name, index, self.seed, self.num_frames, crop=crop)
        return frames[:: self.stride]
