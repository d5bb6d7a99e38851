"""What a stage hands to its figure where numbers do not do: a few images and what was found."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class MaskPicture(NamedTuple):
    """One image with its mask.

    Attributes:
        image: (3, H, W) uint8.
        truth: (H, W) uint8 classes, 255 where a pixel does not count.
        predicted: (H, W) classes by what predicted them, in the order to be shown.
    """

    image: Tensor
    truth: Tensor
    predicted: Mapping[str, Tensor]


class MaskPictures(NamedTuple):
    """Some images of a set, and the names of its classes."""

    pictures: tuple[MaskPicture, ...]
    class_names: tuple[str, ...]
