"""Corrupted images: the released files of ImageNet-C and CIFAR-10-C, or generated ones.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261, and its public evaluation code.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.corruptions import (
    CORRUPTIONS,
    FROST_PROCEDURAL,
    NUM_SEVERITIES,
    corruption_names,
)
from ser_lightning.data.benchmarks.arrays import open_cifar_c
from ser_lightning.data.benchmarks.conditions import BenchmarkDataModule, Condition, RenderedImages
from ser_lightning.data.benchmarks.generated import CLEAN, CorruptedImages, reduction
from ser_lightning.data.benchmarks.layouts import class_images, find_folders
from ser_lightning.data.sources.base import Source
from ser_lightning.data.sources.folder import FolderImages
from ser_lightning.data.sources.released import (
    IMAGENET_VAL,
    count_reasons,
    held_out_reasons,
    imagenet_synsets,
)
from ser_lightning.numbers import checked, within

_LAYOUT = """  {root}/<corruption>/<1..5>/<wnid>/*.JPEG           (ImageNet-C)
  {root}/<group>/<corruption>/<1..5>/<wnid>/*.JPEG   (the same, groups left in place)
  {root}/<corruption>.npy and labels.npy             (CIFAR-10-C, CIFAR-100-C)"""


if TYPE_CHECKING:
    Severity = int
    Quality = int
else:
    Severity = within(int, 1, NUM_SEVERITIES)
    Quality = within(int, 1, 100)


@checked
class ImageNetCDataModule(BenchmarkDataModule):
    """Images under corruptions of several severities.

    Released files of ImageNet-C are shown as they are, without resizing or cutting; those of
    CIFAR-10-C are prepared as clean images are. Generated images are those of the source's
    evaluation split, corrupted at their own size, or at the backbone's if they are larger.

    Differs: ImageNet-C is stored as JPEG files of quality 85; generated images are not, unless
    jpeg_quality says so.

    Args:
        source: the images that the classifier was trained on.
        root: folder of released files.
        generated: corrupts the source's images; not to be compared with released files.
        corruptions: names; null takes the 15 that the benchmark averages.
        severities: 1 to 5.
        frost_dir: folder of the official photographs of ice, for generated frost; without it
            `frost_procedural` stands in its place.
        jpeg_quality: of a further encoding of generated images.
        labelled: further arguments of LabelledDataModule.
    """

    def __init__(
        self,
        source: Source,
        root: str | None = None,
        generated: bool = False,
        corruptions: Sequence[str] | None = None,
        severities: tuple[Severity, ...] = (1, 2, 3, 4, 5),
        frost_dir: str | None = None,
        jpeg_quality: Quality | None = None,
        **labelled: Any,
    ) -> None:
        super().__init__(source, **labelled)
        if (root is None) != generated:
            raise ValueError(
                f"root {root} with generated {generated}; give --data.root DIR for released files, "
                f"\n{_LAYOUT.format(root='DIR')}\nor --data.generated true to corrupt the images "
                "of the source"
            )
        if not generated and (frost_dir is not None or jpeg_quality is not None):
            raise ValueError(
                f"frost_dir {frost_dir} and jpeg_quality {jpeg_quality} have no effect on released "
                "files; remove them"
            )
        if not severities:
            raise ValueError("severities is empty; use some of 1 to 5")
        self.root = None if root is None else Path(root).expanduser()
        self.generated = generated
        self.corruptions = tuple(
            corruptions or (corruption_names(frost_dir) if generated else CORRUPTIONS)
        )
        self.severities = tuple(severities)
        self.frost_dir = frost_dir
        self.jpeg_quality = jpeg_quality
        self._is_cifar = self.root is not None and (self.root / "labels.npy").is_file()

    @property
    def is_imagenet(self) -> bool:
        """Whether the images are of ImageNet's classes, as those of the published baseline."""
        return self.dataset_name == "imagenet1k"

    @property
    @override
    def dataset_name(self) -> str:
        released = not self.generated and not self._is_cifar
        return "imagenet1k" if released else super().dataset_name

    @property
    @override
    def benchmark_name(self) -> str:
        if self._is_cifar:
            return f"cifar{self.num_classes}_c"
        return "imagenet_c" if self.is_imagenet else self.dataset_name

    @property
    @override
    def data_root(self) -> str:
        return str(getattr(self.source, "root", "") if self.root is None else self.root)

    @override
    def open(self) -> tuple[Condition, ...]:
        if self.root is None:
            return self._open_generated()
        if self._is_cifar:
            return self._open_arrays(self.root)
        return self._open_folders(self.root)

    @override
    def test_dataloader(self) -> DataLoader:
        if not self.generated:
            return super().test_dataloader()
        # every image is read once, and all corruptions of it are made
        first = self.conditions[0]
        size = self.batch_size(len(self.conditions))
        make = RenderedImages(self.images_of(first))
        return self.in_order(make, "test", (len(first.images), size))

    @override
    def describe(self) -> dict[str, Any]:
        if self.generated or self._is_cifar:
            return super().describe()
        return {**super().describe(), "resize": None}  # released ones are shown as they are

    def _open_generated(self) -> tuple[Condition, ...]:
        images = self.source_images()
        self._class_names = images.class_names
        reduce = reduction(images, self.image_size, self.evaluation_crop_fraction)
        crop = self.evaluation_crop_fraction if reduce is None else 1.0
        reasons = ("corruptions are generated", *self._severity_reasons())
        if FROST_PROCEDURAL in self.corruptions:
            reasons += ("frost is procedural",)
        pairs = [(CLEAN, 0), *self._pairs()]
        options = {"frost_dir": self.frost_dir, "jpeg_quality": self.jpeg_quality}
        part = self.part(CorruptedImages(images, pairs, self.seed, reduce, options))
        return tuple(Condition(*pair, part, crop, reasons) for pair in pairs)

    def _pairs(self) -> list[tuple[str, int]]:
        return [(name, severity) for name in self.corruptions for severity in self.severities]

    def _open_folders(self, root: Path) -> tuple[Condition, ...]:
        self._class_names = imagenet_synsets()
        leaves = self._find_leaves(root)
        layout = _LAYOUT.format(root=root)
        sets: list[FolderImages] = []
        for leaf in leaves.values():
            images = class_images(leaf, imagenet_synsets(), layout)
            if sets and np.array_equal(images.paths, sets[0].paths):
                images.paths, images.labels = sets[0].paths, sets[0].labels  # in memory once
            sets.append(images)
        counts = {"/".join(map(str, pair)): len(s) for pair, s in zip(leaves, sets, strict=True)}
        reasons = self._severity_reasons() + count_reasons(counts, IMAGENET_VAL)
        reasons += self.size_reasons(sets[0])
        conditions = [
            Condition(*pair, self.part(images), 1.0, reasons)
            for pair, images in zip(leaves, sets, strict=True)
        ]
        return (*self._clean(), *conditions)

    def _find_leaves(self, root: Path) -> dict[tuple[str, int], Path]:
        layout = _LAYOUT.format(root=root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is no folder; expected\n{layout}")
        folders = find_folders(root, self.corruptions)
        leaves = {
            (name, severity): folders.get(name, root / name) / str(severity)
            for name, severity in self._pairs()
        }
        missing = [os.path.join(*leaf.parts[-2:]) for leaf in leaves.values() if not leaf.is_dir()]
        if missing:
            some = ", ".join(missing[:5])
            raise FileNotFoundError(
                f"{root} lacks {len(missing)} of {len(leaves)} folders, such as {some}; expected\n"
                f"{layout}\nor name those that are there: --data.corruptions [...] "
                "--data.severities [...]"
            )
        return leaves

    def _open_arrays(self, root: Path) -> tuple[Condition, ...]:
        sets = open_cifar_c(root, self.corruptions, _LAYOUT.format(root=root))
        some = next(iter(sets.values()))
        self._class_names = tuple(str(label) for label in range(int(some.labels.max()) + 1))
        reasons = self._severity_reasons() + count_reasons({str(root): len(some)}, 10_000)
        clean = self.source.evaluation()
        if clean is not None and clean.num_classes != self.num_classes:
            clean = None
        images = {(CLEAN, 0): clean} if clean is not None else {}
        images |= {pair: sets[pair] for pair in self._pairs()}
        crop = self.evaluation_crop_fraction
        return tuple(Condition(*pair, self.part(i), crop, reasons) for pair, i in images.items())

    def _severity_reasons(self) -> tuple[str, ...]:
        if len(set(self.severities)) == NUM_SEVERITIES:
            return ()
        return (f"severities {list(self.severities)} only",)

    def _clean(self) -> tuple[Condition, ...]:
        """ImageNet's validation images, where the source has them."""
        try:
            images = self.source.evaluation()
        except (FileNotFoundError, ValueError):
            return ()
        if images is None or not set(images.class_names) <= set(imagenet_synsets()):
            return ()
        reasons = held_out_reasons(images) + count_reasons({CLEAN: len(images)}, IMAGENET_VAL)
        crop = self.evaluation_crop_fraction
        return (Condition(CLEAN, 0, self.part(images), crop, reasons),)
