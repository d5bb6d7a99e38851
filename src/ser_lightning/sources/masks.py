"""Images with a mask each, which names the class of every pixel.

Where images and masks lie, and what the values of a mask mean, is told in
`mask_layouts.py` and `mask_folder.py`.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from ser_lightning.sources.base import ImageSet, origin
from ser_lightning.sources.decode import AS_STORED, Decode, pixel_limit, shown_size, stretched
from ser_lightning.sources.folder import FileImages

IGNORED = 255
"""The class of pixels that do not count."""

NUM_VALUES = 256
MAX_CLASSES = 254
_UNKNOWN = 254  # what is none of the classes
_THREADS = 8  # that read masks, most of whose time is spent in Pillow


class Pairs(NamedTuple):
    """Files of a split: (N,) bytes, images and their masks, relative to a folder."""

    images: np.ndarray
    masks: np.ndarray


class MaskImages(FileImages):
    """Images, and (H, W) masks of the size they are shown in; whole images have no labels."""

    def __init__(
        self,
        folder: Path,
        pairs: Pairs,
        values: Sequence[int],
        class_names: tuple[str, ...],
        ignored: Sequence[int],
        decode: Decode = AS_STORED,
    ) -> None:
        self.folder = str(folder)
        self.pairs = pairs
        self.class_names = class_names
        self.decode = decode
        self.labels = torch.full((len(pairs.images),), -1)
        self.table = np.full(NUM_VALUES, _UNKNOWN, dtype=np.uint8)  # from values to classes
        self.table[list(values)] = np.arange(len(values))
        self.table[list(ignored)] = IGNORED

    @override
    def path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.pairs.images[index]))

    def mask_path(self, index: int) -> str:
        """The file of one mask."""
        return os.path.join(self.folder, os.fsdecode(self.pairs.masks[index]))

    def mask(self, index: int) -> Tensor:
        """(H, W) uint8 classes of an image's pixels, `IGNORED` where they do not count."""
        with pixel_limit(None):
            return torch.from_numpy(self.table[read_mask(self.mask_path(index))])

    @override
    def read_reduced(self, index: int, min_side: int) -> Tensor:
        return self.read(index)  # the mask has the pixels of the file

    @cached_property
    def value_counts(self) -> np.ndarray:
        """(N, 256) int64 pixels of each image by the value that its mask has there.

        Reads every mask.

        Raises:
            ValueError: a mask cannot be read, or is not as large as its image.
        """
        with pixel_limit(None), ThreadPoolExecutor(_THREADS) as pool:
            return np.stack(list(pool.map(self._count, range(len(self)))))

    def _count(self, index: int) -> np.ndarray:
        path, mask = self.path(index), read_mask(self.mask_path(index))
        try:
            with Image.open(path) as image:
                height, width = shown_size(image, self.decode)
        except Exception:  # what an unreadable image means, `on_bad_image` decides
            height, width = mask.shape
        if mask.shape != (height, width):
            raise ValueError(
                f"{self.mask_path(index)} has {mask.shape[1]} x {mask.shape[0]} pixels and its "
                f"image {path} {width} x {height}; a mask has a value for every pixel as stored, "
                "or as EXIF's orientation turns the image: --data.source.upright true"
            )
        return np.bincount(mask.ravel(), minlength=NUM_VALUES)

    @override
    def _names(self) -> Iterable[bytes]:
        return (*(files.tobytes() for files in self.pairs), self.table.tobytes())


def read_mask(path: str | Path) -> np.ndarray:
    """(H, W) uint8 values of a mask: gray levels, or numbers of the colours of a palette.

    Raises:
        ValueError: the file cannot be read, or its pixels are colours or too large.
    """
    try:
        with Image.open(path) as image:
            mode, (factor, is_inverted) = image.mode, stretched(image)
            values = ~np.asarray(image) if is_inverted else np.asarray(image)
            values = values if factor == 1 else values // factor
    except Exception as error:  # damaged files make decoders raise almost anything
        raise ValueError(f"{path}: {error}; repair the mask, or remove it and its image") from error
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise ValueError(
            f"{path} is a picture of mode {mode}; a mask has one number per pixel, as gray levels "
            "or as a palette, in PNG for instance"
        )
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < NUM_VALUES:
        raise ValueError(
            f"{path} has values from {values.min()} to {values.max()}; a mask has 0 to 255, of "
            f"which at most {MAX_CLASSES} are classes"
        )
    return values.astype(np.uint8)


def mask_of(images: ImageSet, index: int) -> Tensor:
    """(H, W) uint8 mask of an image of a set or of a part of it."""
    whole, positions = origin(images, np.array([index]))
    assert isinstance(whole, MaskImages)
    return whole.mask(int(positions[0]))


def class_counts(images: ImageSet) -> Tensor:
    """(classes,) int64 pixels of each class in all masks of a set, which are read and checked.

    Raises:
        ValueError: a mask does not fit its image, or has a value that is no class, or no pixel
            counts.
    """
    whole, rows = origin(images, np.arange(len(images)))
    assert isinstance(whole, MaskImages)
    found = whole.value_counts[rows]
    wrong = (found > 0) & (whole.table == _UNKNOWN)
    if wrong.any():
        row, value = np.argwhere(wrong)[0]
        known = np.flatnonzero(whole.table < _UNKNOWN)
        raise ValueError(
            f"{whole.mask_path(rows[row])} has the value {value}, which is none of the "
            f"{len(known)} classes ({known[0]} to {known[-1]}); give --data.source.num_classes, "
            "--data.source.values or, for pixels that do not count, --data.source.ignored"
        )
    totals, num_classes = found.sum(0), len(whole.class_names)
    if not totals[whole.table < _UNKNOWN].any():
        raise ValueError(
            f"all pixels of {len(rows)} masks below {whole.folder} are of the ignored values "
            f"{np.flatnonzero(whole.table == IGNORED).tolist()}; give others: --data.source.ignored"
        )
    counts = [totals[whole.table == number].sum() for number in range(num_classes)]
    return torch.tensor(counts, dtype=torch.int64)
