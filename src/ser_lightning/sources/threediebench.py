"""3DIEBench's files: rendered objects, each from fifty sides, and its official lists of objects.

Sources: Garrido et al. 2023 (SIE), whose repository has the lists; Konstantinou et al. 2025
(EquiCaps) for 3DIEBench-T, in which objects are moved as well.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.sealed import read_array
from ser_lightning.sources.base import Source, folder_path
from ser_lightning.sources.folder import FileImages
from ser_lightning.sources.listing import absent

NUM_VIEWS = 50

NUM_LATENTS = 7
"""Numbers in a view's latents: three angles of the object in radians, the floor's hue, two angles
of the light, its hue. 3DIEBench-T adds a translation along x, y and z: 10."""

NUM_TRANSLATED = 10

_THREADS = 8  # that read latents
_LAYOUT = """expected
  {root}/<synset>/<object>/image_0.jpg ... image_49.jpg
  {splits}/train_images.npy, train_labels.npy, val_images.npy, val_labels.npy
    (the lists of objects, data/ of the SIE repository; --data.source.splits FOLDER says where)"""


class ObjectImages(FileImages):
    """All views of some objects, (N,) folders below a root: image i is view i % 50 of i // 50."""

    def __init__(
        self, root: Path, folders: np.ndarray, object_labels: Tensor, class_names: tuple[str, ...]
    ) -> None:
        self.folder = str(root)
        self.folders = folders
        self.object_labels = object_labels
        self.labels = object_labels.repeat_interleave(NUM_VIEWS)
        self.class_names = class_names

    @override
    def path(self, index: int) -> str:
        number, view = divmod(index, NUM_VIEWS)
        return os.path.join(self.folder, self.folders[number].decode(), f"image_{view}.jpg")

    @override
    def _names(self) -> Iterable[bytes]:
        return (self.folders.tobytes(),)

    def latents(self) -> np.ndarray:
        """(objects, NUM_VIEWS, L) float64 latents of all views; errors as `latents_of`."""
        paths = [self.path(index) for index in range(len(self))]
        return latents_of(self.folder, paths).reshape(len(self.folders), NUM_VIEWS, -1)

    def objects(self, positions: np.ndarray) -> "ObjectImages":
        """All views of some of the objects."""
        labels = self.object_labels[torch.from_numpy(positions)]
        return ObjectImages(Path(self.folder), self.folders[positions], labels, self.class_names)


def latents_of(folder: str, images: Sequence[str]) -> np.ndarray:
    """(N, NUM_LATENTS or NUM_TRANSLATED) float64 latents of N views, by the files of their images.

    Raises:
        FileNotFoundError: a view has no file of latents.
        ValueError: it holds something else, or views below `folder` are of different releases.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = list(pool.map(read_latents, map(latent_path, images)))
    if len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"views below {folder} have {min(map(len, rows))} and {max(map(len, rows))} latents; "
            "give a folder of one release"
        )
    return np.stack(rows)


def latent_path(image: str) -> str:
    """The file of the latents of a view, by that of its image."""
    folder, name = os.path.split(image)
    return os.path.join(folder, name.replace("image_", "latent_").replace(".jpg", ".npy"))


def read_latents(path: str) -> np.ndarray:
    """The latents of one view, (NUM_LATENTS,) or (NUM_TRANSLATED,) float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path} does not exist; the release has a file latent_<view>.npy beside every "
            "image_<view>.jpg: unpack it whole"
        )
    values = read_array(Path(path), "fetch it again")
    shapes = (NUM_LATENTS,), (NUM_TRANSLATED,)
    is_real = values.dtype.kind in "fiu" and np.isfinite(values).all()
    if values.shape not in shapes or not is_real:
        raise ValueError(
            f"{path} holds {values.dtype} of shape {values.shape}; latents are {NUM_LATENTS} "
            f"finite numbers, or {NUM_TRANSLATED} in 3DIEBench-T; fetch it again"
        )
    return values.astype(np.float64)


class ThreeDIEBench(Source):
    """3DIEBench, or 3DIEBench-T in the same layout, with the official split of the objects.

    Args:
        root: folder of the synsets.
        splits: folder of the lists of objects, `train_images.npy` and so on; null for the root.
    """

    PLACES = (*Source.PLACES, "splits")

    def __init__(self, root: str, splits: str | None = None) -> None:
        folder_path(root)
        self.root = root
        self.splits = splits or root

    @override
    def train(self) -> ObjectImages:
        """Opens the training objects; FileNotFoundError, or ValueError for unfit lists."""
        return self._open()[0]

    @override
    def evaluation(self) -> ObjectImages:
        return self._open()[1]

    @property
    @override
    def dataset_name(self) -> str:
        try:
            first = read_latents(latent_path(self.train().path(0)))
        except (OSError, ValueError):  # latents are not always needed
            first = np.empty(0)
        return self.named("3diebench_t" if len(first) == NUM_TRANSLATED else "3diebench")

    @override
    def notes(self) -> tuple[str, ...]:
        train, test = (len(images.folders) for images in self._open())
        return (
            f"{NUM_VIEWS} views of each of {train:,} and {test:,} objects in {self.root}, by the "
            f"lists of {self.splits}; other folders are left out",
        )

    @cache  # noqa: B019 - of a source there are one or two
    def _open(self) -> tuple[ObjectImages, ObjectImages]:
        lists = [self._list(split) for split in ("train", "val")]
        names = self._class_names([pair for split in lists for pair in zip(*split, strict=True)])
        sets = []
        for folders, labels in lists:
            root = folder_path(self.root)
            if missing := absent([str(root / name) for name in folders]):
                raise FileNotFoundError(
                    f"{missing[0]} does not exist, one of {len(missing):,} missing folders of "
                    f"{len(folders):,} objects; {self._layout()}"
                )
            encoded = np.array([folder.encode() for folder in folders])
            images = ObjectImages(root, encoded, torch.tensor(labels), names)
            if not any(os.path.isfile(images.path(view)) for view in range(NUM_VIEWS)):
                self._check_file(images.path(0))
            sets.append(images)
        return sets[0], sets[1]

    def _list(self, split: str) -> tuple[list[str], list[int]]:
        """The folders of a split's objects, without the leading slash of the files, and labels."""
        folder = Path(self.splits).expanduser()
        files = [folder / f"{split}_{kind}.npy" for kind in ("images", "labels")]
        for file in files:
            self._check_file(file)
        objects, labels = (read_array(file, "fetch it again") for file in files)
        if objects.ndim != 1 or labels.shape != objects.shape or not len(objects):
            raise ValueError(
                f"{files[0]} has the shape {objects.shape} and {files[1].name} {labels.shape}, "
                "not one folder and one label of each object; take both from the same release"
            )
        return [os.fsdecode(path).strip("/") for path in objects], [int(label) for label in labels]

    def _class_names(self, objects: list[tuple[str, int]]) -> tuple[str, ...]:
        """The synset of every label; an empty name where a label has no object."""
        names: dict[int, str] = {}
        for folder, label in objects:
            synset = folder.split("/")[0]
            if names.setdefault(label, synset) != synset:
                raise ValueError(
                    f"label {label} belongs to {names[label]} and to {synset} in the lists of "
                    f"{self.splits}; take all four files from the same release"
                )
        return tuple(names.get(label, "") for label in range(max(names) + 1))

    def _check_file(self, path: str | Path) -> None:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path} does not exist; {self._layout()}")

    def _layout(self) -> str:
        return _LAYOUT.format(root=self.root, splits=self.splits)
