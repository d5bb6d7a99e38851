"""Any of torchvision's classification data sets, by name."""

import difflib
import inspect
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from typing_extensions import override

from ser_lightning.data.sources.base import (
    ImageSet,
    Source,
    UnreadableImage,
    folder_path,
    hold_out,
)
from ser_lightning.data.sources.decode import without_pillows_limit

_TRAIN_SPLITS = ("train", "trainval", "train-standard")
_EVALUATION_SPLITS = ("test", "val", "valid")
_LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "_samples")


def _to_rgb(image: Image.Image | Tensor) -> Tensor:
    """(3, H, W) uint8 image of what a torchvision data set returns."""
    if isinstance(image, Tensor):
        return image.expand(3, -1, -1)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _labels(dataset: Any) -> Tensor:
    """Labels of a torchvision data set, without decoding its images where it keeps a list."""
    for name in _LABEL_ATTRIBUTES:
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            if name == "_samples":
                values = [label for _, label in values]
            return torch.as_tensor(np.asarray(values, dtype=np.int64))
    return torch.tensor([int(dataset[index][1]) for index in range(len(dataset))])


def _class_names(dataset: Any, labels: Tensor) -> tuple[str, ...]:
    names: Sequence[Any] = getattr(dataset, "classes", None) or ()
    count = max(len(names), int(labels.max()) + 1 if len(labels) else 0)
    return tuple(str(names[i]) if i < len(names) else str(i) for i in range(count))


class TorchvisionImages(ImageSet):
    """One split of a torchvision data set.

    Args:
        name: the data set's name, for messages.
        dataset: gives pairs of an image and a class id.
        split: which of the data set's splits, for the fingerprint.
    """

    def __init__(self, name: str, dataset: Any, split: str = "") -> None:
        self.name = name
        self.dataset = dataset
        self.split = split
        self.labels = _labels(dataset)
        self.class_names = _class_names(dataset, self.labels)

    @override
    def read(self, index: int) -> Tensor:
        try:
            with without_pillows_limit():
                return _to_rgb(self.dataset[index][0])
        except (OSError, ValueError, SyntaxError, RuntimeError) as error:
            raise UnreadableImage(f"{self.name}, image {index}: {error}") from error

    @override
    def _names(self) -> Iterable[bytes]:
        return (f"{self.name} {self.split}".encode(),)


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
    """

    def __init__(
        self, name: str, root: str, download: bool = False, train_split: str | None = None
    ) -> None:
        folder_path(root)
        self.name = name
        self.root = root
        self.download = download
        self.train_split = train_split
        self._class = _dataset_class(name)
        self._opened: dict[str, TorchvisionImages] = {}
        self._parameters = _constructor_parameters(self._class)
        if train_split is not None and "split" not in self._parameters:
            raise ValueError(f"train_split {train_split!r} has no effect: {name} names no splits")
        given = {"root", "train"} | ({"split"} if train_split is not None else set())
        required = [
            key for key, p in self._parameters.items() if p.default is inspect.Parameter.empty
        ]
        if not set(required) <= given:
            missing = ", ".join(key for key in required if key not in given)
            raise ValueError(f"torchvision's {name} needs {missing}, which is not supported here")

    @property
    @override
    def dataset_name(self) -> str:
        part = self.train_split if "train" in self._parameters else None
        return "_".join(filter(None, (self.name, part))).lower()

    @override
    def prepare(self) -> None:
        if self.download:
            self.train()
            self.evaluation()

    @override
    def train(self) -> ImageSet:
        """Opens the training split.

        Raises:
            FileNotFoundError: files are missing.
            ValueError: the data set has no such split.
        """
        if "train" in self._parameters:
            return self._open(train=True, **self._part)
        if "split" in self._parameters:
            splits = _TRAIN_SPLITS if self.train_split is None else (self.train_split,)
            return self._open_first(splits)
        return hold_out(self._open())[0]

    @override
    def evaluation(self) -> ImageSet | None:
        if "train" in self._parameters:
            return self._open(train=False, **self._part)
        if "split" in self._parameters:
            return self._open_first(_EVALUATION_SPLITS)
        return hold_out(self._open())[1]

    @property
    def _part(self) -> dict[str, str]:
        return {} if self.train_split is None else {"split": self.train_split}

    def _open_first(self, splits: Sequence[str]) -> ImageSet:
        """Opens the first split that the data set knows; it tells by a ValueError."""
        *others, last = splits
        for split in others:
            with suppress(ValueError):
                return self._open(split=split)
        return self._open(split=last)

    def _open(self, **options: Any) -> TorchvisionImages:
        split = repr(sorted(options.items()))
        if split not in self._opened:
            self._opened[split] = TorchvisionImages(self.name, self._dataset(**options), split)
        return self._opened[split]

    def _dataset(self, **options: Any) -> Any:
        if "download" in self._parameters:
            options["download"] = self.download
        if "root" in self._parameters:
            options["root"] = str(folder_path(self.root))
        try:
            return self._class(**options)
        except (RuntimeError, FileNotFoundError) as error:
            remedy = (
                "use --data.source.download true, or put the files there"
                if "download" in self._parameters and not self.download
                else "put the files there by hand; torchvision's documentation says which"
            )
            raise FileNotFoundError(f"{self.name} in {self.root}: {error}\n{remedy}") from error


def _dataset_class(name: str) -> type:
    if name not in datasets.__all__:
        close = difflib.get_close_matches(name.lower(), [n.lower() for n in datasets.__all__], n=3)
        similar = [known for known in datasets.__all__ if known.lower() in close]
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise ValueError(f"torchvision.datasets has no {name!r}{hint}")
    return getattr(datasets, name)


def _constructor_parameters(dataset_class: type) -> dict[str, inspect.Parameter]:
    """The constructor's named parameters; those behind **kwargs are looked up in its parent."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    found: dict[str, inspect.Parameter] = {}
    for ancestor in dataset_class.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = dict(inspect.signature(vars(ancestor)["__init__"]).parameters)
        parameters.pop("self")
        for key, parameter in parameters.items():
            if parameter.kind not in variable:
                found.setdefault(key, parameter)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return found
