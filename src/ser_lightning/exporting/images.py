"""Every image of a source in a row, with what it is called."""

import bisect
import os
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.sources.base import HeldOut, ImageSet, Part, Source, classes, folder_path
from ser_lightning.sources.folder import FileImages


class AllImages(ImageSet):
    """The images of a source, its training split first; none are held out.

    Attributes:
        names: of each image: its file below the source's folder, or split and position.
        folder: of the source, or what it is called.
    """

    def __init__(self, source: Source) -> None:
        train, evaluation = source.train(), source.evaluation()
        if evaluation is None:
            self._sets: tuple[ImageSet, ...] = (train,)
        elif isinstance(evaluation, HeldOut):
            self._sets = (evaluation.images,)
        else:
            self._sets = (train, evaluation)
        self._ends = list(accumulate(map(len, self._sets)))
        self.labels = torch.cat([images.labels for images in self._sets])
        self.class_names = train.class_names
        root = getattr(source, "root", None)
        self._root = None if root is None else folder_path(root)
        self.folder = str(self._root or source.dataset_name)
        splits = ("train", "evaluation") if len(self._sets) > 1 else ("all",)
        self.names = [
            name
            for split, images in zip(splits, self._sets, strict=True)
            for name in self._names_of(images, split)
        ]

    def summary(self, source: Source) -> str:
        """What was found, in a few lines."""
        found = f"{source.dataset_name}, {len(self):,} images, {classes(self.class_names)}"
        return "\n".join(f"data: {line}" for line in (found, *source.notes()))

    @override
    def read(self, index: int) -> Tensor:
        images, place = self._at(index)
        return images.read(place)

    @override
    def read_reduced(self, index: int, min_side: int) -> Tensor:
        images, place = self._at(index)
        return images.read_reduced(place, min_side)

    @override
    def describe(self) -> dict[str, Any]:
        return self._sets[0].describe()

    @override
    def _names(self) -> Iterable[bytes]:
        return (images.listing().encode() for images in self._sets)

    @override
    def _content(self) -> Iterable[bytes]:
        return (images.fingerprint().encode() for images in self._sets)

    def _at(self, index: int) -> tuple[ImageSet, int]:
        which = bisect.bisect_right(self._ends, index)
        return self._sets[which], index - (self._ends[which - 1] if which else 0)

    def _names_of(self, images: ImageSet, split: str) -> Sequence[str]:
        positions = np.arange(len(images))
        while isinstance(images, Part):
            positions, images = images.positions[positions], images.images
        if not isinstance(images, FileImages) or self._root is None:
            return [f"{split}/{position}" for position in positions]
        paths = [os.path.relpath(images.path(int(position)), self._root) for position in positions]
        # a name that is no text in UTF-8 could not be written to every format
        return [path.encode("utf-8", "backslashreplace").decode() for path in paths]
