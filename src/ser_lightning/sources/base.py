"""Where images come from: one interface for folders, torchvision's sets and generated ones."""

import hashlib
import inspect
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self, override

HOLDOUT_STEP = 20  # without an evaluation split, every 20th image of each class is held out


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
        """The (3, H, W) uint8 image at a position; UnreadableImage where it is damaged."""

    def read_reduced(self, index: int, min_side: int) -> Tensor:
        """Reads one image, in a half, a quarter or an eighth of its size where that is faster.

        Neither height nor width falls below `min_side`, unless the file's own is smaller. JPEG
        decoders can leave out detail. A view that is cut from it does not change visibly (by a
        level of 255 on average) while the cut has 1.5 times the view's pixels on a side.
        """
        return self.read(index)

    def listing(self) -> str:
        """SHA-256 of names, labels, classes and decoding; the same for copies on two disks."""
        kind = repr((type(self).__name__, self.class_names)).encode()
        return _sha256(kind, self.labels.numpy().tobytes(), *self._names())

    def fingerprint(self) -> str:
        """SHA-256 of the listing and the images' content, for which files' sizes and times stand.

        They are looked up at every call: replaced images change the result.
        """
        return _sha256(self.listing().encode(), *self._content())

    def describe(self) -> dict[str, Any]:
        """How files are decoded, in plain values for a record; empty where none are."""
        return {}

    def _names(self) -> Iterable[bytes]:
        """What else tells the images of a listing apart: names, and how files are decoded."""
        return ()

    def _content(self) -> Iterable[bytes]:
        """What stands for the content of files in a fingerprint."""
        return ()


class Source(ABC):
    """A data set with a training split and, where there is one, an evaluation split."""

    PLACES: ClassVar[tuple[str, ...]] = ("root", "cache", "download")
    """Options that say where files are, rather than which images there are."""

    _given: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Keeps the options that are not the usual ones: results are called by them."""
        source = super().__new__(cls)
        parameters = inspect.signature(cls.__init__).parameters
        given = dict(zip(list(parameters)[1:], args, strict=False)) | options
        source._given = {}
        for name, option in sorted(given.items()):
            value = tuple(option) if isinstance(option, list) else option
            is_plain = isinstance(value, str | int | float | tuple | Path | None)
            if is_plain and (name not in parameters or value != parameters[name].default):
                source._given[name] = value
        return source

    def prepare(self) -> None:  # noqa: B027 - most sources need nothing
        """Fetches what is missing. Called by one process per node, before the splits are opened."""

    @abstractmethod
    def train(self) -> ImageSet:
        """Opens the training split."""

    @abstractmethod
    def evaluation(self) -> ImageSet | None:
        """Opens the evaluation split; None if the data set has none."""

    @property
    def dataset_name(self) -> str:
        """What results call the data set, in lower case; it is part of their files' names."""
        return self.named(type(self).__name__.lower())

    def named(self, name: str) -> str:
        """A data set's name and all that makes it another one: folder and unusual options."""
        words = [name]
        if not self.is_released and "root" in self._given:
            path = folder_path(self._given["root"]).resolve()
            words.append(re.sub(r"[^a-z0-9]+", "_", path.name.lower()).strip("_"))
            words.append(_sha256(os.fsencode(path))[:8])
        for key, value in self._given.items():
            if key not in self.PLACES:
                text = str(value).lower() if isinstance(value, bool | None) else str(value)
                is_word = re.fullmatch(r"[a-z0-9.]+", text)
                words += [key, text if is_word else _sha256(repr(value).encode())[:8]]
        return "_".join(words)

    @property
    def is_released(self) -> bool:
        """Whether the images are a set that others measure on, rather than a user's own."""
        return True

    def notes(self) -> tuple[str, ...]:
        """What else to say at the start: which folders were read, what was left out and why."""
        return ()

    def summary(self) -> str:
        """What was found, in a few lines that are printed at every start."""
        train, evaluation = self.train(), self.evaluation()
        found = f"{len(train):,} images to train on, {classes(train.class_names)}"
        if evaluation is None:
            other = "nothing to evaluate on: no evaluation split, one image in every class"
        elif isinstance(evaluation, HeldOut):
            other = evaluation.summary()
        else:
            other = f"{len(evaluation):,} images to evaluate on"
            lacking = np.setdiff1d(train.labels, [-1, *np.unique(evaluation.labels)])
            if len(lacking):
                other += f", none of {classes([train.class_names[each] for each in lacking])}"
        lines = (f"{self.dataset_name}, {found}", other, *self.notes())
        return "\n".join(f"data: {line}" for line in lines)


@dataclass(eq=False)
class MemoryImages(ImageSet):
    """A split that lies in memory, (N, 1 or 3, H, W) uint8; one channel is shown as three."""

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    @override
    def read(self, index: int) -> Tensor:
        return self.pixels[index].expand(3, -1, -1)  # not copied

    @override
    def _names(self) -> Iterable[bytes]:
        return repr(tuple(self.pixels.shape)).encode(), self.pixels.numpy().tobytes()


@dataclass(eq=False)
class Derived(ImageSet):
    """Images that are made of another set's, with its labels and classes.

    All further fields are what the images depend on, in plain values.
    """

    images: ImageSet

    def __post_init__(self) -> None:
        self.labels = self.images.labels
        self.class_names = self.images.class_names

    def settings(self) -> tuple[Any, ...]:
        """What else the images depend on, in plain values; for a fingerprint."""
        return tuple(getattr(self, field.name) for field in fields(self)[1:])

    @override
    def describe(self) -> dict[str, Any]:
        return self.images.describe()

    @override
    def _names(self) -> Iterable[bytes]:
        return (repr((self.images.listing(), *self.settings())).encode(),)

    @override
    def _content(self) -> Iterable[bytes]:
        return (self.images.fingerprint().encode(),)


@dataclass(eq=False)
class Part(Derived):
    """Some images of a split, in the order of their positions there."""

    positions: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labels = self.labels[torch.from_numpy(self.positions)]

    @override
    def read(self, index: int) -> Tensor:
        return self.images.read(int(self.positions[index]))

    @override
    def read_reduced(self, index: int, min_side: int) -> Tensor:
        return self.images.read_reduced(int(self.positions[index]), min_side)

    @override
    def settings(self) -> tuple[Any, ...]:
        return (_sha256(self.positions.tobytes()),)


def origin(images: ImageSet, positions: np.ndarray) -> tuple[ImageSet, np.ndarray]:
    """The set that a part of it, or a part of a part, comes from, and the positions there."""
    while isinstance(images, Part):
        positions, images = images.positions[positions], images.images
    return images, positions


class HeldOut(Part):
    """Training images that are kept from training, because a data set has no evaluation split."""

    def summary(self) -> str:
        """What was held out, in a line."""
        members = torch.unique(self.images.labels, return_counts=True)[1]
        single = int((members == 1).sum())
        stay = f"; classes with a single image, which stays in training: {single:,}"
        return (
            f"{len(self):,} images held out to evaluate on: every {HOLDOUT_STEP}th of a class, or "
            f"its last{stay if single else ''}"
        )


def hold_out(images: ImageSet) -> tuple[ImageSet, HeldOut | None]:
    """The images to train on, and those held out; None where every class has a single image.

    Every 20th image of a class is held out, in the order of the set; of a class of 2 to 19 images,
    the last one; of a class with one image, none. Images without labels are one class.
    """
    order = images.labels.numpy().argsort(kind="stable")
    borders = np.flatnonzero(np.diff(images.labels.numpy()[order])) + 1
    held_out = np.zeros(len(images), dtype=bool)
    for members in np.split(order, borders):
        every = members[HOLDOUT_STEP - 1 :: HOLDOUT_STEP]
        held_out[every if len(every) else members[1:][-1:]] = True
    if not held_out.any():
        return images, None
    return Part(images, np.flatnonzero(~held_out)), HeldOut(images, np.flatnonzero(held_out))


def folder_path(root: str | os.PathLike[str] | None) -> Path:
    """The folder that `root` names, "~" included.

    Raises:
        ValueError: it names none. An empty path would be the current folder.
    """
    if root is None or not os.fspath(root).strip():
        raise ValueError(
            f"root {root!r} names no folder; give the folder of the images: --data.source.root DIR"
        )
    return Path(root).expanduser()


def file_state(path: str | Path) -> bytes:
    """Size and time of the last change of a file, which stand for its content."""
    try:
        state = os.stat(path)
    except OSError:
        return b"missing\n"
    return f"{state.st_size} {state.st_mtime_ns}\n".encode()


def classes(names: Sequence[str]) -> str:
    """How many classes there are, and the first ones, for a summary."""
    some = ", ".join([*names[:5], *["..."] * (len(names) > 5)])
    return f"{len(names):,} classes ({some})" if names else "no labels"


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
