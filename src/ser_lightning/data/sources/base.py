"""Where images come from: one interface for folders, torchvision's sets and generated ones."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

HOLDOUT_STEP = 20  # without an evaluation split, every 20th image is held out


class UnreadableImage(Exception):  # noqa: N818 - the name says what it is about
    """An image that cannot be decoded; the message names the file and the reason."""


class ImageSet(ABC):
    """One split of a data set.

    Attributes:
        labels: (N,) int64 class ids, -1 where there is none.
        class_names: one name per class id; empty without labels.
    """

    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return len(self.class_names)

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Reads one image.

        Args:
            index: position in the split.

        Returns:
            (3, H, W) uint8 image.

        Raises:
            UnreadableImage: the image is damaged.
        """


class Source(ABC):
    """A data set with a training split and, where there is one, an evaluation split."""

    def prepare(self) -> None:  # noqa: B027 - most sources need nothing
        """Fetches what is missing. Called by one process per node, before the splits are opened."""

    @abstractmethod
    def train(self) -> ImageSet:
        """Opens the training split."""

    @abstractmethod
    def evaluation(self) -> ImageSet | None:
        """Opens the evaluation split; None if the data set has none."""


class MemoryImages(ImageSet):
    """A split that lies in memory.

    Args:
        pixels: (N, 1 or 3, H, W) uint8 images; one channel is shown as three.
        labels: (N,) int64 class ids.
        class_names: one name per class id.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> None:
        self.pixels = pixels
        self.labels = labels
        self.class_names = class_names

    def read(self, index: int) -> Tensor:
        """Shows one image, (3, H, W) uint8, without copying it."""
        return self.pixels[index].expand(3, -1, -1)


class Part(ImageSet):
    """Some images of a split.

    Args:
        images: the whole split.
        positions: which images, in which order.
    """

    def __init__(self, images: ImageSet, positions: np.ndarray) -> None:
        self.images = images
        self.positions = positions
        self.labels = images.labels[torch.from_numpy(positions)]
        self.class_names = images.class_names

    def read(self, index: int) -> Tensor:
        """Reads one image of the part."""
        return self.images.read(int(self.positions[index]))


def hold_out(images: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """Splits a set without an evaluation split: every 20th image is kept from training.

    Args:
        images: all images, in a fixed order.

    Returns:
        The images to train on, and those held out; None with fewer than 20 images.
    """
    held_out = np.arange(len(images)) % HOLDOUT_STEP == HOLDOUT_STEP - 1
    if not held_out.any():
        return images, None
    return Part(images, np.flatnonzero(~held_out)), Part(images, np.flatnonzero(held_out))
