"""The array files of CIFAR-10-C and CIFAR-100-C."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.corruptions import NUM_SEVERITIES
from ser_lightning.sealed import read_array
from ser_lightning.sources.base import ImageSet, file_state
from ser_lightning.sources.released import CIFAR_CLASSES


@cache
def _array(path: Path) -> np.ndarray:
    """The pixels of a file, on disk until they are read; not part of what workers are sent."""
    return read_array(path, "fetch it again", mmap_mode="r")


class ArrayImages(ImageSet):
    """One severity of a corruption, 1 to 5: a fifth of a file. Labels are ids; CIFAR's have names.

    The .npy file has (5 N, H, W, 3) uint8 images, severity after severity, and (5 N,) labels.
    """

    def __init__(
        self, path: Path, severity: int, labels: Tensor, class_names: tuple[str, ...] = ()
    ) -> None:
        self.path = path
        self.first = (severity - 1) * (len(labels) // NUM_SEVERITIES)
        self.labels = labels[self.first : self.first + len(labels) // NUM_SEVERITIES]
        self.class_names = class_names

    @override
    def read(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(_array(self.path)[self.first + index])).permute(2, 0, 1)

    @override
    def _names(self) -> Iterable[bytes]:
        return (f"{self.path.name} {self.first}".encode(),)

    @override
    def _content(self) -> Iterable[bytes]:
        return (file_state(self.path),)


def open_cifar_c(
    root: Path, corruptions: Sequence[str], layout: str
) -> dict[tuple[str, int], ArrayImages]:
    """Opens `<corruption>.npy` and `labels.npy` of a folder: images by corruption and severity.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has another shape.
    """
    ids = read_array(root / "labels.npy", "fetch it again")
    is_list = ids.ndim == 1 and ids.dtype.kind in "iu"
    if not is_list or not len(ids) or len(ids) % NUM_SEVERITIES or ids.min() < 0:
        raise ValueError(
            f"{root / 'labels.npy'} holds {ids.dtype} of shape {ids.shape}; it must be class ids "
            f"from 0 on, {NUM_SEVERITIES} times as many as a severity has images; fetch it again"
        )
    labels = torch.from_numpy(ids.astype(np.int64))
    names = CIFAR_CLASSES.get(int(labels.max()) + 1, ())
    found = {}
    for name in corruptions:
        path = root / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; expected\n{layout}")
        array = _array(path)
        if array.ndim != 4 or array.shape[::3] != (len(labels), 3) or array.dtype != np.uint8:
            raise ValueError(
                f"{path} holds {array.dtype} of shape {array.shape}, for {len(labels)} labels; it "
                f"must be uint8 ({len(labels)}, height, width, 3), fetch it again"
            )
        for severity in range(1, NUM_SEVERITIES + 1):
            found[name, severity] = ArrayImages(path, severity, labels, names)
    return found
