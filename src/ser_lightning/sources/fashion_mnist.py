"""Fashion-MNIST straight from its four files, without a download."""

import gzip
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.sources.base import MemoryImages, Source, folder_path

CLASS_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def read_idx(path: Path) -> Tensor:
    """Reads a uint8 array in the IDX format, gzipped or not.

    The header is 0, 0, the type, the number of dimensions, then each size in four bytes,
    most significant first.

    Raises:
        ValueError: the file is no such array, or is cut off.
    """
    try:
        content = path.read_bytes()
        data = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
    if len(data) < 4 or data[:3] != bytes([0, 0, 8]):
        raise ValueError(f"{path} is no IDX file of bytes; fetch it again")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{path} is cut off within its header; fetch it again")
    shape = np.frombuffer(data[4:start], dtype=">u4").tolist()
    if len(data) != start + math.prod(shape):
        raise ValueError(
            f"{path} has {len(data)} bytes, not those of shape {shape}; fetch it again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)[start:].reshape(shape)


class FashionMNISTFiles(Source):
    """Fashion-MNIST: 60,000 + 10,000 gray images of 28 x 28 pixels in ten classes.

    Args:
        root: folder of the IDX files, gzipped or not: Debian's package dataset-fashion-mnist, or
            the folder FashionMNIST/raw that torchvision makes.
    """

    def __init__(self, root: str = "/usr/share/datasets/fashion-mnist") -> None:
        folder_path(root)
        self.root = root

    @override
    def train(self) -> MemoryImages:
        """Reads 60,000 images; FileNotFoundError, or ValueError where a file is damaged."""
        return self._read("train")

    @override
    def evaluation(self) -> MemoryImages:
        return self._read("t10k")

    @cache  # noqa: B019 - of a source there are one or two
    def _read(self, split: str) -> MemoryImages:
        images, labels = (read_idx(path) for path in self._find(split))
        if images.ndim != 3 or not len(images) or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{self.root}: {split} has images {tuple(images.shape)} and labels "
                f"{tuple(labels.shape)}; fetch the files again"
            )
        if labels.max() >= len(CLASS_NAMES):
            raise ValueError(
                f"{self.root}: {split} has the label {labels.max()}, Fashion-MNIST has 0 to "
                f"{len(CLASS_NAMES) - 1}; read other sets by --data.source TorchvisionSet"
            )
        return MemoryImages(images[:, None], labels.long(), CLASS_NAMES)

    def _find(self, split: str) -> list[Path]:
        root = folder_path(self.root)
        names = [f"{split}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        found = {n: [p for p in (root / n, root / f"{n}.gz") if p.is_file()] for n in names}
        missing = [name for name, paths in found.items() if not paths]
        if missing:
            raise FileNotFoundError(
                f"{' and '.join(missing)} (or .gz) missing in {root}. On Debian and Ubuntu: "
                "apt-get install dataset-fashion-mnist. Elsewhere: --data.source TorchvisionSet "
                "--data.source.name FashionMNIST --data.source.root data "
                "--data.source.download true"
            )
        return [paths[0] for paths in found.values()]
