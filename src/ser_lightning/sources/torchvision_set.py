"""Any of torchvision's classification data sets, by name."""

import difflib
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor
from typing_extensions import override

from ser_lightning.files import folders_below
from ser_lightning.numbers import PositiveInt, checked
from ser_lightning.sources.base import (
    ImageSet,
    Source,
    UnreadableImage,
    file_state,
    folder_path,
    hold_out,
)
from ser_lightning.sources.decode import AS_STORED, pixel_limit

_TRAIN_SPLITS = ("train", "trainval", "train-standard")
_EVALUATION_SPLITS = ("test", "val", "valid")
_NO_SETS = ("DatasetFolder", "ImageFolder", "VisionDataset", "wrap_dataset_for_transforms_v2")
_LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "_samples")


def _to_rgb(image: Image.Image | Tensor) -> Tensor:
    """(3, H, W) uint8 image of what a torchvision data set returns."""
    if isinstance(image, Tensor):
        return image.expand(3, -1, -1)
    return pil_to_tensor(image.convert("RGB"))


def _labels(name: str, dataset: Any) -> Tensor:
    """(N,) labels of a torchvision data set, without decoding its images where it keeps a list.

    Raises:
        ValueError: a label is something else than one whole number, or None for none.
    """
    for attribute in _LABEL_ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            if attribute == "_samples":
                values = [label for _, label in values]
            if (labels := _class_ids(values)) is not None:
                return labels
    places = range(len(dataset))
    found = _class_ids([dataset[index][1] for index in places[:1]])
    if found is not None:  # else all would be decoded for nothing
        found = _class_ids([dataset[index][1] for index in places])
    if found is None:
        raise ValueError(
            f"torchvision's {name} has no class id per image; put its images into folders and use "
            "--data.source ImageFolder"
        )
    return found


def _class_ids(values: Any) -> Tensor | None:
    """(N,) int64 of a list or array, -1 for None; None where it holds more than a number each."""
    try:
        array = np.asarray(values)
        if array.dtype == object:
            array = np.asarray([-1 if value is None else value for value in values])
    except (TypeError, ValueError, RuntimeError):  # of parts that differ
        return None
    is_number = array.dtype.kind in "biu" or not array.size
    return torch.from_numpy(array.astype(np.int64)) if is_number and array.ndim == 1 else None


def _class_names(dataset: Any, labels: Tensor) -> tuple[str, ...]:
    # ImageNet's and Imagenette's synsets are the names that ImageNet's benchmarks have too
    given = (getattr(dataset, attribute, None) for attribute in ("wnids", "classes"))
    names: Sequence[Any] = next(filter(None, given), ())
    count = max(len(names), int(labels.max()) + 1 if len(labels) else 0)
    return tuple(str(names[i]) if i < len(names) else str(i) for i in range(count))


def _folders(dataset: Any) -> list[Path]:
    """Where a torchvision data set has its files; it calls its folders anything, or nothing."""
    root = Path(getattr(dataset, "root", ""))
    named = [getattr(dataset, name) for name in dir(dataset) if name.endswith("folder")]
    own = [root / name for name in named if isinstance(name, str | Path)]
    return [path for path in own if path.is_dir()] or [root] * hasattr(dataset, "root")


class TorchvisionImages(ImageSet):
    """One split of a torchvision data set, which gives pairs of an image and a class id."""

    def __init__(
        self, name: str, dataset: Any, split: str = "", max_pixels: int = AS_STORED.max_pixels
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.split = split
        self.max_pixels = max_pixels
        self.labels = _labels(name, dataset)
        self.class_names = _class_names(dataset, self.labels)

    @override
    def read(self, index: int) -> Tensor:
        try:
            with pixel_limit(self.max_pixels):
                return _to_rgb(self.dataset[index][0])
        except (OSError, ValueError, SyntaxError, RuntimeError) as error:
            raise UnreadableImage(f"{self.name}, image {index}: {error}") from error

    @override
    def _names(self) -> Iterable[bytes]:
        return (f"{self.name} {self.split}".encode(),)

    @override
    def _content(self) -> Iterator[bytes]:
        folders = {below for folder in _folders(self.dataset) for below in folders_below(folder)}
        for path in sorted(path for folder in folders for path in folder.iterdir()):
            yield os.fsencode(path) + (file_state(path) if path.is_file() else b"")


@checked
class TorchvisionSet(Source):
    """A classification data set of torchvision, such as CIFAR10, STL10, Food101 or EuroSAT.

    The test split serves for evaluation, or the validation split where there is no test split.
    From a data set without splits every 20th image of each class is held out. Images are shown as
    they are stored.

    Args:
        name: class name in torchvision.datasets.
        root: folder of the data.
        download: fetches missing files.
        train_split: name of the training split where the default does not suit, for instance
            "unlabeled" for STL10; for EMNIST, the part of the set that both splits come from.
        max_pixels: most pixels to decode of a file; larger files count as unreadable.
    """

    PLACES = (*Source.PLACES, "name", "train_split")  # the name below has them

    def __init__(
        self,
        name: str,
        root: str,
        download: bool = False,
        train_split: str | None = None,
        max_pixels: PositiveInt = AS_STORED.max_pixels,
    ) -> None:
        folder_path(root)
        self.name = name
        self.root = root
        self.download = download
        self.train_split = train_split
        self.max_pixels = max_pixels
        self._class = _dataset_class(name)
        self._opened: dict[str, TorchvisionImages] = {}
        self._parameters = _constructor_parameters(self._class)
        if train_split is not None and "split" not in self._parameters:
            raise ValueError(f"train_split {train_split!r} has no effect: {name} names no splits")
        given = {"root", "train"} | ({"split"} if train_split is not None else set())
        empty = inspect.Parameter.empty
        missing = [
            key for key, p in self._parameters.items() if p.default is empty and key not in given
        ]
        if missing == ["split"]:
            raise ValueError(
                f"torchvision's {name} needs split; name the part of the set: "
                "--data.source.train_split NAME"
            )
        if missing:
            raise ValueError(
                f"torchvision's {name} needs {', '.join(missing)}, which is not supported here; "
                "put its images into folders and use --data.source ImageFolder"
            )

    @property
    @override
    def dataset_name(self) -> str:
        return self.named("_".join(filter(None, (self.name, self.train_split))).lower())

    @override
    def prepare(self) -> None:
        if self.download:
            self.train()
            self.evaluation()

    @override
    def train(self) -> ImageSet:
        """Opens the split; FileNotFoundError, or ValueError where there is no such split."""
        splits = _TRAIN_SPLITS if self.train_split is None else (self.train_split,)
        found = self._split(True, splits)
        return hold_out(self._open())[0] if found is None else found

    @override
    def evaluation(self) -> ImageSet | None:
        found = self._split(False, _EVALUATION_SPLITS)
        return hold_out(self._open())[1] if found is None else self._as_trained(found)

    def _as_trained(self, images: TorchvisionImages) -> TorchvisionImages:
        """The images with the training split's class ids, which a folder for each split may change.

        Raises:
            ValueError: they have a class that was not trained on.
        """
        names, is_labelled = images.class_names, images.labels >= 0
        if names == tuple(map(str, range(len(names)))):  # the set has none of its own
            return images
        try:
            places = {name: place for place, name in enumerate(self.train().class_names)}
        except FileNotFoundError:  # nothing is trained on, which ids could be of
            return images
        if not places or names == tuple(places)[: len(names)]:
            return images
        ids = torch.tensor([places.get(name, -1) for name in names])[images.labels.clamp_min(0)]
        if (ids[is_labelled] < 0).any():
            unknown = ", ".join(sorted({*names} - {*places})[:5])
            raise ValueError(
                f"torchvision's {self.name} in {self.root} has images to evaluate of classes that "
                f"it has none of to train on: {unknown}; give both splits the same classes"
            )
        changed = copy(images)
        changed.labels = torch.where(is_labelled, ids, -1)
        changed.class_names = tuple(places)
        return changed

    def _split(self, train: bool, names: Sequence[str]) -> TorchvisionImages | None:
        """Opens the first split that the data set knows; None where it has no splits.

        To evaluate on, one without a single label gives way to one with labels.
        """
        if "train" in self._parameters:
            part = {} if self.train_split is None else {"split": self.train_split}
            return self._open(train=train, **part)
        if "split" not in self._parameters:
            return None
        *others, last = names
        first = None
        for split in others:
            with suppress(ValueError):  # as sets say that they have no such split
                found = self._open(split=split)
                if train or (found.labels >= 0).any():
                    return found
                first = first or found
        with suppress(*([] if first is None else [ValueError, FileNotFoundError])):
            return self._open(split=last)
        return first

    def _open(self, **options: Any) -> TorchvisionImages:
        split = repr(sorted(options.items()))
        if split not in self._opened:
            dataset = self._dataset(**options)
            self._opened[split] = TorchvisionImages(self.name, dataset, split, self.max_pixels)
        return self._opened[split]

    def _dataset(self, **options: Any) -> Any:
        if "download" in self._parameters:
            options["download"] = self.download
        if "root" in self._parameters:
            options["root"] = str(folder_path(self.root))
        try:
            return self._class(**options)
        except (RuntimeError, FileNotFoundError, URLError) as error:
            remedy = (
                "use --data.source.download true, or put the files there"
                if "download" in self._parameters and not self.download
                else _by_hand(self._class, self.root)
            )
            reason = re.sub(r"\[Errno -?\d+\] ", "", str(error)).strip()
            raise FileNotFoundError(f"{self.name} in {self.root}: {reason}\n{remedy}") from error


def _by_hand(dataset_class: Any, root: str) -> str:
    """What to put where, where nothing can be fetched, as far as the class says."""
    url, folder = (getattr(dataset_class, name, None) for name in ("url", "base_folder"))
    if url and folder:
        return f"fetch {url} where there is internet, and unpack it: {Path(root) / folder}"
    resources = getattr(dataset_class, "resources", None)
    if isinstance(resources, list) and not url:
        names = ", ".join(name for name, _ in resources)
        place = Path(root) / dataset_class.__name__ / "raw"
        return f"fetch {dataset_class.mirrors[0]}: {names} where there is internet, into {place}"
    return "put the files there by hand; torchvision's documentation says which"


def _dataset_class(name: str) -> type:
    if name not in datasets.__all__:
        close = difflib.get_close_matches(name.lower(), [n.lower() for n in datasets.__all__], n=3)
        similar = [known for known in datasets.__all__ if known.lower() in close]
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise ValueError(f"torchvision.datasets has no {name!r}{hint}")
    if name in _NO_SETS:
        raise ValueError(
            f"torchvision's {name} is no set of images, but code for one's own; read folders of "
            "images by --data.source ImageFolder"
        )
    return getattr(datasets, name)


def _constructor_parameters(dataset_class: type) -> dict[str, inspect.Parameter]:
    """The constructor's named parameters; those behind **kwargs are looked up in its parent."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    found: dict[str, inspect.Parameter] = {}
    for ancestor in dataset_class.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        _, *parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
        found = {p.name: p for p in parameters if p.kind not in variable} | found
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found
