"""3DIEBench: rendered objects, each from fifty sides."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.data.sources.base import Derived, Source, folder_path
from ser_lightning.data.sources.folder import FileImages
from ser_lightning.randomness import Stream, uniforms

NUM_VIEWS = 50

_LAYOUT = """expected
  {root}/<synset>/<object>/image_0.jpg ... image_49.jpg
  {splits}/train_images.npy, train_labels.npy, val_images.npy, val_labels.npy
    (the lists of objects, data/ of the SIE repository; --data.source.splits FOLDER says where)"""


class ObjectImages(FileImages):
    """All views of some objects: image i is view i % 50 of object i // 50.

    Args:
        root: folder of the data set.
        folders: (N,) the objects' folders, relative to the root, as bytes.
        object_labels: (N,) int64 class ids.
        class_names: one per class id.
    """

    def __init__(
        self, root: Path, folders: np.ndarray, object_labels: Tensor, class_names: tuple[str, ...]
    ) -> None:
        self.root = root
        self.folders = folders
        self.object_labels = object_labels
        self.labels = object_labels.repeat_interleave(NUM_VIEWS)
        self.class_names = class_names

    @override
    def path(self, index: int) -> Path:
        number, view = divmod(index, NUM_VIEWS)
        return self.root / self.folders[number].decode() / f"image_{view}.jpg"

    @override
    def _names(self) -> Iterable[bytes]:
        return (self.folders.tobytes(),)

    def objects(self, positions: np.ndarray) -> "ObjectImages":
        """All views of some of the objects."""
        return ObjectImages(
            self.root,
            self.folders[positions],
            self.object_labels[torch.from_numpy(positions)],
            self.class_names,
        )


class RandomViews(Derived):
    """One random view of every object, a function of (seed, epoch, object).

    Args:
        images: all views.
        seed: of the data path.
        epoch: which epoch's views.
    """

    images: ObjectImages

    def __init__(self, images: ObjectImages, seed: int = 0, epoch: int = 0) -> None:
        self.images = images
        self.seed = seed
        self.epoch = epoch
        self.labels = images.object_labels
        self.class_names = images.class_names

    def view(self, index: int) -> int:
        """Which of its views shows an object."""
        draw = uniforms(self.seed, Stream.AUGMENT, self.epoch, [index], 1, 1)  # crops have view 0
        return int(draw.item() * NUM_VIEWS)

    @override
    def read(self, index: int) -> Tensor:
        return self.images.read(index * NUM_VIEWS + self.view(index))

    @override
    def settings(self) -> tuple[Any, ...]:
        return self.seed, self.epoch

    def redrawn(self, seed: int, epoch: int) -> "RandomViews":
        """The same objects from other sides."""
        return RandomViews(self.images, seed, epoch)


class ThreeDIEBench(Source):
    """3DIEBench with its official split of the objects.

    Args:
        root: folder of the synsets.
        splits: folder of the lists of objects, `train_images.npy` and so on; null for the root.
    """

    def __init__(self, root: str, splits: str | None = None) -> None:
        folder_path(root)
        self.root = root
        self.splits = splits or root

    @override
    def train(self) -> ObjectImages:
        """Opens the views of the training objects.

        Raises:
            FileNotFoundError: if a list or the first object's views are missing.
            ValueError: if the lists contradict each other.
        """
        return self._open()[0]

    @override
    def evaluation(self) -> ObjectImages:
        return self._open()[1]

    def _open(self) -> tuple[ObjectImages, ObjectImages]:
        lists = [self._list(split) for split in ("train", "val")]
        names = self._class_names(
            [folder for folders, _ in lists for folder in folders],
            np.concatenate([labels for _, labels in lists]),
        )
        train, evaluation = (self._images(folders, labels, names) for folders, labels in lists)
        return train, evaluation

    def _images(
        self, folders: list[str], labels: np.ndarray, names: tuple[str, ...]
    ) -> ObjectImages:
        root = folder_path(self.root)
        encoded = np.array([folder.encode() for folder in folders])
        images = ObjectImages(root, encoded, torch.from_numpy(labels), names)
        for path in (images.path(0), images.path(NUM_VIEWS - 1)):
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist; {self._layout()}")
        return images

    def _list(self, split: str) -> tuple[list[str], np.ndarray]:
        """The folders of a split's objects, without the leading slash of the files, and labels."""
        folder = Path(self.splits).expanduser()
        files = [folder / f"{split}_{kind}.npy" for kind in ("images", "labels")]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} does not exist; {self._layout()}")
        objects, labels = (np.load(file) for file in files)
        if len(objects) != len(labels) or len(objects) == 0:
            raise ValueError(
                f"{files[0]} lists {len(objects)} objects and {files[1].name} {len(labels)} "
                "labels; take both files from the same release"
            )
        return [str(path).strip("/") for path in objects], labels.astype(np.int64)

    def _class_names(self, folders: list[str], labels: np.ndarray) -> tuple[str, ...]:
        """The synset of every label; an empty name where a label has no object."""
        names = [""] * (int(labels.max()) + 1)
        for folder, label in zip(folders, labels.tolist(), strict=True):
            synset = folder.split("/")[0]
            if names[label] not in ("", synset):
                raise ValueError(
                    f"label {label} belongs to {names[label]} and to {synset} in the lists of "
                    f"{self.splits}; take all four files from the same release"
                )
            names[label] = synset
        return tuple(names)

    def _layout(self) -> str:
        return _LAYOUT.format(root=self.root, splits=self.splits)
