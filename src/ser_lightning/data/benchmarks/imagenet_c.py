"""Corrupted images: the released files of ImageNet-C and CIFAR-10-C, or generated ones.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261, and its public evaluation code.
"""

import os
from collections.abc import Callable, Sequence
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
from ser_lightning.data.benchmarks.cifar_c import open_cifar_c
from ser_lightning.data.benchmarks.conditions import Condition, RobustnessDataModule
from ser_lightning.data.benchmarks.generated import CLEAN, CorruptedImages, reduction
from ser_lightning.data.benchmarks.layouts import find_folders
from ser_lightning.numbers import Percent, checked, within
from ser_lightning.sources.base import ImageSet, Source
from ser_lightning.sources.folder import FolderImages
from ser_lightning.sources.released import (
    IMAGENET_VAL,
    count_reasons,
    held_out_reasons,
    imagenet_synsets,
)

if TYPE_CHECKING:
    Severity = int
else:
    Severity = within(int, 1, NUM_SEVERITIES)


@checked
class ImageNetCDataModule(RobustnessDataModule):
    """Images under corruptions of several severities.

    Released files of ImageNet-C are shown as they are, without resizing or cutting; those of
    CIFAR-10-C are prepared as clean images are. Generated images are those of the source's
    evaluation split; at which size they are corrupted says RobustnessDataModule.

    Differs: ImageNet-C is stored as JPEG files of quality 85; generated images are not, unless
    jpeg_quality says so.

    Args:
        source: the images that the classifier was trained on.
        corruptions: names; null takes the 15 that the benchmark averages.
        severities: 1 to 5.
        frost_dir: folder of the official photographs of ice, for generated frost; without it
            `frost_procedural` stands in its place.
        jpeg_quality: of a further encoding of generated images.
        others: further arguments of RobustnessDataModule.
    """

    benchmark = "imagenet_c"
    layout = """  {root}/<corruption>/<1..5>/<wnid>/*.JPEG           (ImageNet-C)
  {root}/<group>/<corruption>/<1..5>/<wnid>/*.JPEG   (the same, groups left in place)
  {root}/<corruption>.npy and labels.npy             (CIFAR-10-C, CIFAR-100-C)"""

    def __init__(
        self,
        source: Source,
        corruptions: Sequence[str] | None = None,
        severities: tuple[Severity, ...] = (1, 2, 3, 4, 5),
        frost_dir: str | None = None,
        jpeg_quality: Percent | None = None,
        **others: Any,
    ) -> None:
        super().__init__(source, **others)
        if not self.generated and (frost_dir is not None or jpeg_quality is not None):
            raise ValueError(
                f"frost_dir {frost_dir} and jpeg_quality {jpeg_quality} have no effect on released "
                "files; remove them"
            )
        if not severities:
            raise ValueError("severities is empty; use some of 1 to 5")
        known = (*corruption_names(frost_dir, extra=True), FROST_PROCEDURAL)
        wrong = [name for name in corruptions or () if name not in known]
        if self.generated and wrong:
            raise ValueError(
                f"corruptions {', '.join(wrong)} cannot be generated; use some of "
                f"{', '.join(dict.fromkeys(known))}, and frost with frost_dir"
            )
        names = corruption_names(frost_dir) if self.generated else CORRUPTIONS
        self.corruptions = tuple(dict.fromkeys(corruptions or names))  # each once
        self.severities = tuple(dict.fromkeys(severities))
        self.frost_dir = frost_dir
        self.jpeg_quality = jpeg_quality
        self._pairs = [(name, level) for name in self.corruptions for level in self.severities]
        self._is_cifar = self.root is not None and (self.root / "labels.npy").is_file()

    @property
    @override
    def benchmark_name(self) -> str:
        return f"cifar{self.num_classes}_c" if self._is_cifar else super().benchmark_name

    @override
    def open(self) -> tuple[Condition, ...]:
        if self.root is None:
            return self._open_generated()
        layout = self.layout.format(root=self.root)
        if self._is_cifar:
            return self._open_arrays(self.root, layout)
        return self._open_folders(self.root, layout)

    @override
    def test_dataloader(self) -> DataLoader:
        return self.rendered_loader() if self.generated else super().test_dataloader()

    def _open_generated(self) -> tuple[Condition, ...]:
        images = self.source_images()
        first = self.first_readable(images)
        reduce = reduction(first, self.image_size, self.evaluation_crop_fraction)
        crop = self.evaluation_crop_fraction if reduce is None else 1.0
        reasons = ("corruptions are generated", *self._severity_reasons())
        if FROST_PROCEDURAL in self.corruptions:
            reasons += ("frost is procedural",)
        pairs = [(CLEAN, 0), *self._pairs]
        options = {"frost_dir": self.frost_dir, "jpeg_quality": self.jpeg_quality}
        made = CorruptedImages(images, pairs, self.seed, reduce, options, self.image_size)
        part = self.part(made)
        return tuple(Condition(*pair, part, crop, reasons) for pair in pairs)

    def _open_folders(self, root: Path, layout: str) -> tuple[Condition, ...]:
        self._class_names = imagenet_synsets()
        sets: dict[tuple[str, int], FolderImages] = {}
        for pair, leaf in self._find_leaves(root, layout).items():
            paths = self.class_files(leaf, imagenet_synsets(), layout)
            sets[pair] = images = FolderImages(leaf, paths, imagenet_synsets())
            first = next(iter(sets.values()))
            if np.array_equal(images.paths, first.paths):
                images.paths, images.labels = first.paths, first.labels  # in memory once
        counts = {f"{name}/{severity}": len(s) for (name, severity), s in sets.items()}
        reasons = self._severity_reasons() + count_reasons(counts, IMAGENET_VAL)
        reasons += self.kind_reasons(first)
        found = [Condition(*pair, self.part(s), 1.0, reasons) for pair, s in sets.items()]
        return (*self._clean_imagenet(), *found)

    def _find_leaves(self, root: Path, layout: str) -> dict[tuple[str, int], Path]:
        folders = find_folders(root, self.corruptions, layout)
        leaves = {
            (name, severity): folders.get(name, root / name) / str(severity)
            for name, severity in self._pairs
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

    def _open_arrays(self, root: Path, layout: str) -> tuple[Condition, ...]:
        sets = open_cifar_c(root, self.corruptions, layout)
        some = next(iter(sets.values()))
        numbers = tuple(str(label) for label in range(int(some.labels.max()) + 1))
        self._class_names = some.class_names or numbers
        reasons = self._severity_reasons() + count_reasons({str(root): len(some)}, 10_000)
        known = {*self.class_names}, {*numbers}
        clean = self._clean(lambda clean: {*clean.class_names} in known)
        images: dict[tuple[str, int], ImageSet] = {pair: sets[pair] for pair in self._pairs}
        if clean is not None:
            images = {(CLEAN, 0): clean, **images}
        crop = self.evaluation_crop_fraction
        return tuple(Condition(*pair, self.part(i), crop, reasons) for pair, i in images.items())

    def _severity_reasons(self) -> tuple[str, ...]:
        if len(self.severities) == NUM_SEVERITIES:
            return ()
        return (f"severities {list(self.severities)} only",)

    def _clean(self, fits: Callable[[ImageSet], bool]) -> ImageSet | None:
        """The source's images, where there are some and their classes are the benchmark's.

        Why they are left out is told at the start.
        """
        try:
            images = self._evaluation()
            if images is None or fits(images):
                return images
            why = f"those of {self.source.dataset_name} are not of these classes"
        except (OSError, ValueError) as error:
            why = str(error)
        self._notes = (f"no clean images: {why}",)
        return None

    def _clean_imagenet(self) -> tuple[Condition, ...]:
        """ImageNet's validation images, where the source has them."""
        synsets = set(imagenet_synsets())
        images = self._clean(
            lambda clean: clean.num_classes > 0 and synsets >= {*clean.class_names}
        )
        if images is None:
            return ()
        reasons = held_out_reasons(images) + count_reasons({CLEAN: len(images)}, IMAGENET_VAL)
        crop = self.evaluation_crop_fraction
        return (Condition(CLEAN, 0, self.part(images), crop, reasons),)
