"""Images in folders, in ImageNet's layout or without any.

What counts as classes and as splits is decided in `splits.py`; without classes every label is -1,
and `evaluation/online.py` leaves k-NN out.
"""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.numbers import PositiveInt, checked
from ser_lightning.sources.base import ImageSet, Source, file_state, folder_path, hold_out
from ser_lightning.sources.decode import AS_STORED, Decode, Level, read_image
from ser_lightning.sources.listing import left_out_line, list_images
from ser_lightning.sources.released import IMAGENET, imagenet_synsets
from ser_lightning.sources.splits import (
    LAYOUT,
    Splits,
    check_classes,
    check_names,
    class_folders,
    find_splits,
    first_folders,
    text_of,
)  # fmt: skip


class FileImages(ImageSet):
    """A split whose images are files."""

    decode: Decode = AS_STORED

    @abstractmethod
    def path(self, index: int) -> str:
        """The file of one image."""

    @override
    def read(self, index: int) -> Tensor:
        return read_image(self.path(index), self.decode)

    @override
    def read_reduced(self, index: int, min_side: int) -> Tensor:
        if not self.decode.reduced:
            return self.read(index)
        return read_image(self.path(index), self.decode, min_side)

    @override
    def describe(self) -> dict[str, Any]:
        return self.decode.describe()

    @override
    def _content(self) -> Iterator[bytes]:
        return (file_state(self.path(index)) for index in range(len(self)))


class FolderImages(FileImages):
    """The images below one folder, by relative paths; a class is what its folder is called."""

    def __init__(
        self,
        folder: Path,
        paths: np.ndarray,
        class_names: tuple[str, ...],
        decode: Decode = AS_STORED,
    ) -> None:
        self.folder = str(folder)
        # one block of sorted bytes: a list of a million strings would be copied into every worker
        self.paths = paths
        self.class_names = class_names
        self.decode = decode
        ids = {name: number for number, name in enumerate(class_names)}
        self.labels = torch.full((len(paths),), -1)
        for name, rows in first_folders(paths).items():
            self.labels[rows] = ids.get(text_of(name), -1)

    @override
    def path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.paths[index]))

    @override
    def _names(self) -> Iterable[bytes]:
        return self.paths.tobytes(), repr(self.decode).encode()


LOOSE = "images beside class folders"
_PACKED = (
    ".7z", ".arrow", ".bz2", ".gz", ".parquet", ".rar", ".tar", ".tfrecord", ".tgz", ".xz", ".zip",
    ".zst",
)  # fmt: skip


class _Found(NamedTuple):
    """The splits of a folder, which folders they are, and how much is in neither, by reason."""

    train: ImageSet
    evaluation: ImageSet | None
    choice: str
    left_out: Counter[str]


@checked
class ImageFolder(Source):
    """A folder of images: a tree of splits, class folders without a split, or just images.

    Folders called `train` or `training` and `val`, `valid`, `validation`, `test`, `testing`, `eval`
    or `evaluation`, in any letter case, are splits; the first one found is read. Without a folder
    for evaluation every 20th image of each class is held out for it, or the last of a class of 2
    to 19. A single class folder means that there are no labels. What was found and what was left
    out is printed at every start.

    Args:
        root: the folder.
        train: name of its folder for training, before others are looked for.
        evaluation: name of its folder for evaluation, before others are looked for.
        labels: whether class folders give labels; false reads all images without any.
        upright: whether to turn photographs as their EXIF orientation says; null turns all but the
            evaluation split of ImageNet, which published results show as it is stored.
        background: red, green and blue behind transparent areas.
        max_pixels: most pixels to decode of a file; larger files count as unreadable.
        reduced: whether JPEG photographs are decoded in a half, a quarter or an eighth of their
            size where the smallest crop keeps 1.5 times the pixels of its view on a side, which
            takes a fraction of the memory; never where all classes are ImageNet's.
    """

    def __init__(
        self,
        root: str,
        train: str = "train",
        evaluation: str = "val",
        labels: bool = True,
        upright: bool | None = None,
        background: tuple[Level, Level, Level] = AS_STORED.background,
        max_pixels: PositiveInt = AS_STORED.max_pixels,
        reduced: bool = True,
    ) -> None:
        folder_path(root)
        self.root = root
        self.train_name = train
        self.evaluation_name = evaluation
        self.has_labels = labels
        self.upright = upright
        self.decode = Decode(upright is not False, background, max_pixels, reduced)

    @override
    def prepare(self) -> None:
        path = folder_path(self.root)
        if path.is_dir():
            list_images(path)  # leaves an index for all other processes

    @override
    def train(self) -> ImageSet:
        """Opens the training split.

        Raises:
            FileNotFoundError: the folder is missing or holds no image.
            ValueError: it is not clear what is a split and what a class, or splits do not fit.
        """
        return self._open().train

    @override
    def evaluation(self) -> ImageSet | None:
        return self._open().evaluation

    @property
    @override
    def dataset_name(self) -> str:
        return self.named(IMAGENET if self.is_released else "folder")

    @property
    @override
    def is_released(self) -> bool:
        return self.train().class_names == imagenet_synsets()

    @override
    def notes(self) -> tuple[str, ...]:
        found = self._open()
        return (found.choice, *left_out_line(found.left_out))

    @cache  # noqa: B019 - of a source there are one or two
    def _open(self) -> _Found:
        root = folder_path(self.root)
        layout = LAYOUT.format(root=self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is no folder; {layout}")
        listing = list_images(root)
        if not len(listing.paths):
            others = "".join(f", {reason}: {n:,}" for reason, n in listing.left_out.items())
            is_packed = any(f"files {kind}" in listing.left_out for kind in _PACKED)
            packed = "unpack them into image files, " if is_packed else ""
            raise FileNotFoundError(
                f"{root} holds no image (.jpg .png and others){others}; {packed}{layout}"
            )
        splits = find_splits(root, listing.paths, self.train_name, self.evaluation_name)
        return self._divide(splits, listing.left_out + splits.left_out)

    def _divide(self, splits: Splits, left_out: Counter[str]) -> _Found:
        files, names, loose = splits.train, tuple[str, ...](), 0
        if self.has_labels:
            files, names, loose = class_folders(files)
        left_out += Counter({LOOSE: loose})  # which drops reasons that count nothing
        is_imagenet = bool(names) and set(names) <= set(imagenet_synsets())
        decode = replace(self.decode, reduced=self.decode.reduced and not is_imagenet)
        train = FolderImages(*files, names, decode)
        choice = f"{files.folder} is read"
        if splits.evaluation is None:
            if names:
                check_names(files, names)
            return _Found(*hold_out(train), choice, left_out)
        files = splits.evaluation
        if names:
            has_usual_names = (self.train_name, self.evaluation_name) == ("train", "val")
            root = str(splits.train.folder) if has_usual_names else ""  # others stay in force
            check_classes(files, splits.train, names, root)
            files, _, loose = class_folders(files, least=1)
            left_out += Counter({LOOSE: loose})
            if self.upright is None and is_imagenet:
                decode = replace(decode, upright=False)
        evaluation = FolderImages(*files, names, decode)
        choice += f" for training, {files.folder} for evaluation"
        return _Found(train, evaluation, choice, left_out)
