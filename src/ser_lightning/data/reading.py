"""Reading images a few at a time, and what an unreadable one means.

How a file is decoded, and which way up, is in `sources/decode.py`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ser_lightning.randomness import Stream, generator
from ser_lightning.sources.base import ImageSet, UnreadableImage, origin

OnBadImage = Literal["skip", "fail"]
T = TypeVar("T")

MAX_BAD_SHARE = 0.01
MIN_BAD = 10
"""So many unreadable images beyond the share end no run: the first ones may be met by chance."""

HANDFUL = 2**24
"""Bytes of decoded images that are held before their views are made; one image may have more."""


class NothingReadError(Exception):
    """None of a batch's images can be read, and they are to be left out."""


class Handful(NamedTuple):
    """Decoded images of some rows of a batch.

    Attributes:
        images: uint8 (3, H, W), of any sizes.
        rows: (B,) the rows of the batch that they are for.
        positions: (B,) where they came from.
    """

    images: list[Tensor]
    rows: np.ndarray
    positions: np.ndarray


class Reader:
    """Reads images by position; each worker has one of its own, which remembers unreadable ones.

    Args:
        images: one split of a source.
        on_bad_image: "fail" raises; "skip" trains on another image instead, and leaves it out of
            an evaluation.
        max_bad_share: share of unreadable images that ends a run all the same.

    Attributes:
        bad: positions of the unreadable images that were met.
    """

    def __init__(
        self,
        images: ImageSet,
        on_bad_image: OnBadImage = "fail",
        max_bad_share: float = MAX_BAD_SHARE,
    ) -> None:
        self.images = images
        self.on_bad_image = on_bad_image
        self.max_bad_share = max_bad_share
        self.bad: set[int] = set()
        self._num_read = 0

    def read(
        self, position: int, of: int | None = None, min_side: int | None = None
    ) -> Tensor | None:
        """Reads one image; None if it cannot be read and is to be skipped.

        Args:
            position: which image.
            of: size of the set whose share is counted; by default the images read so far, which
                stand for the whole where the order is random.
            min_side: height and width that suffice; None for the full size.

        Raises:
            UnreadableImage: it cannot be read and `on_bad_image` is "fail", or too many cannot.
            ValueError: the source gave something else than an image.
        """
        if position in self.bad:
            return None
        self._num_read += 1
        try:
            if min_side is None:
                image = self.images.read(position)
            else:
                image = self.images.read_reduced(position, min_side)
        except UnreadableImage as error:
            if self.on_bad_image == "fail":
                raise UnreadableImage(
                    f"{error}; repair or remove it, or do without such images: "
                    "--data.on_bad_image skip"
                ) from error
            self.bad.add(position)
            warnings.warn(f"{error}; it is skipped", stacklevel=2)
            self._check_share(error, min(self._num_read, len(self.images)) if of is None else of)
            return None
        self._check_image(image, position)
        return image

    def replaced(
        self, position: int, seed: int, epoch: int, min_side: int | None = None
    ) -> tuple[Tensor, int]:
        """Reads one image, or the first of `others` where it cannot be read; and its position."""
        image, others = self.read(position, min_side=min_side), self.others(position, seed, epoch)
        while image is None:
            position = next(others)
            image = self.read(position, min_side=min_side)
        return image, position

    def others(self, position: int, seed: int, epoch: int) -> Iterator[int]:
        """Positions, drawn from all over the set, of what may stand in for an image.

        Which ones depends on (seed, epoch, position) alone.
        """
        draws = generator(seed, Stream.REPLACEMENT, epoch, position)
        while True:
            yield int(draws.integers(len(self.images)))

    def handfuls(
        self,
        positions: np.ndarray,
        replace: tuple[int, int] | None = None,
        pairs: bool = False,
        min_side: int | None = None,
    ) -> Iterator[Handful]:
        """Reads the images of a batch, as many at a time as fit into `HANDFUL`.

        Args:
            positions: (B,) of the images.
            replace: seed and epoch, which others stand in for unreadable ones; None leaves them
                out.
            pairs: whether images 2i and 2i + 1 belong together.
            min_side: as `read`.
        """
        images: list[Tensor] = []
        rows: list[int] = []
        found: list[int] = []
        size = 0
        for row, wanted in enumerate(positions.tolist()):
            if replace is None:
                image, position = self.read(wanted, len(self.images), min_side), wanted
            else:
                image, position = self.replaced(wanted, *replace, min_side)
            if image is None:
                continue
            images.append(image)
            rows.append(row)
            found.append(position)
            size += image.nbytes
            if size >= HANDFUL and not (pairs and len(rows) % 2):
                yield Handful(images, np.array(rows), np.array(found))
                # dropped before the next one is read
                images, rows, found, size, image = [], [], [], 0, None
        if rows:
            yield Handful(images, np.array(rows), np.array(found))

    def _check_image(self, image: Any, position: int) -> None:
        """Refuses what a source of one's own may give in place of uint8 (3, H, W)."""
        is_tensor = isinstance(image, Tensor)
        if is_tensor and image.dtype == torch.uint8 and image.ndim >= 3 and image.shape[-3] == 3:
            return  # several of a place, as all corruptions of one, are a stack of them
        kind = type(image).__name__
        found = f"{image.dtype} of shape {tuple(image.shape)}" if is_tensor else kind
        images, (at,) = origin(self.images, np.array([position]))
        raise ValueError(
            f"{type(images).__name__} read {found} as image {at}; `read` must return a torch.uint8 "
            "tensor (3, H, W) with values 0 to 255: torchvision's `pil_to_tensor` makes one of a "
            "picture, `(255 * image).round().to(torch.uint8)` one of values 0 to 1"
        )

    def _check_share(self, error: UnreadableImage, of: int) -> None:
        """Refuses to go on where more images are bad than allowed."""
        num_bad = len(self.bad)
        images, _ = origin(self.images, np.arange(0))
        folder = getattr(images, "folder", type(images).__name__)
        if num_bad == len(self.images):
            raise UnreadableImage(
                f"none of the {num_bad} images that are read from {folder} can be read; the last "
                f"one: {error}. Repair them, or give this part of the set (training, held-out or "
                "test images) more"
            )
        if num_bad > MIN_BAD + self.max_bad_share * of:
            raise UnreadableImage(
                f"{num_bad} of {of} images of {folder} cannot be read, more than "
                f"the share of {self.max_bad_share}; the last one: {error}. Repair or remove them, "
                "or allow more: --data.max_bad_share"
            )


def made(
    handfuls: Iterator[Handful], make: Callable[[Handful], T]
) -> tuple[T, np.ndarray, np.ndarray]:
    """Makes a batch of handfuls, each of which is dropped before the next one is read.

    `make` gives a structure that `joined` knows. With the batch come the (B,) rows that it has, and
    the (B,) positions they came from.

    Raises:
        NothingReadError: there are no images.
    """
    parts = []
    for handful in handfuls:
        parts.append((make(handful), handful.rows, handful.positions))
        del handful  # before the next one is read
    if not parts:
        raise NothingReadError
    made_of, rows, positions = zip(*parts, strict=True)
    return joined(made_of), np.concatenate(rows), np.concatenate(positions)


def joined(parts: Sequence[Any]) -> Any:
    """Puts structures of the same kind together, row after row, tuples field by field.

    Lists have one entry per row; of what has no rows, all parts have the same.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, list):
        return [entry for part in parts for entry in part]
    if isinstance(first, tuple):
        fields = [joined(field) for field in zip(*parts, strict=True)]
        return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)
    return first
