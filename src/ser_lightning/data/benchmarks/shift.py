"""ImageNet-V2, ImageNet-R and ImageNet-Sketch: ImageNet's classes in other images.

Source: Recht et al. 2019, arXiv 1902.10811; Hendrycks et al. 2021, arXiv 2006.16241; Wang et al.
2019, arXiv 1905.13549.
"""

from pathlib import Path
from typing import Any

from typing_extensions import override

from ser_lightning.data.benchmarks.conditions import BenchmarkDataModule, Condition
from ser_lightning.data.benchmarks.layouts import class_images
from ser_lightning.data.sources.base import Source
from ser_lightning.data.sources.folder import FolderImages
from ser_lightning.data.sources.released import count_reasons, imagenet_r_synsets, imagenet_synsets

_V2_LAYOUT = """  {root}/0/*.jpeg ... {root}/999/*.jpeg   (folders are class ids)
  {root}/<wnid>/*.jpeg                    (or class names such as n01440764)"""
_WNID_LAYOUT = "  {root}/<wnid>/*   (class names such as {example}; {number} of them)"
NUM_IMAGES = {
    "imagenet_v2": (10_000,),
    "imagenet_r": (30_000,),
    "imagenet_sketch": (50_889, 50_000),
}
"""Images that the released sets have; two numbers are quoted for Sketch."""


def open_imagenet_v2(root: Path) -> FolderImages:
    """ImageNet-V2, whose folders are called by class id.

    Raises:
        FileNotFoundError: no images there.
        ValueError: other folders, or less than the 1000 of them.
    """
    layout = _V2_LAYOUT.format(root=root)
    synsets = imagenet_synsets()
    if not (root / synsets[0]).is_dir():
        numbers = tuple(str(number) for number in range(len(synsets)))
        images = class_images(root, numbers, layout)
        images.class_names = synsets
    else:
        images = class_images(root, synsets, layout)
    _check_number(images, len(synsets), layout)
    return images


def open_imagenet_r(root: Path) -> FolderImages:
    """ImageNet-R: 200 of ImageNet's classes; errors as `open_imagenet_v2`."""
    return _open_synsets(root, imagenet_r_synsets())


def open_imagenet_sketch(root: Path) -> FolderImages:
    """ImageNet-Sketch; errors as `open_imagenet_v2`."""
    return _open_synsets(root, imagenet_synsets())


_OPEN = {
    "imagenet_v2": open_imagenet_v2,
    "imagenet_r": open_imagenet_r,
    "imagenet_sketch": open_imagenet_sketch,
}


class ShiftDataModule(BenchmarkDataModule):
    """The test sets of ImageNet's classes that are not from ImageNet; any of the three.

    Images are prepared as ImageNet's validation images: resized, then cut.

    Args:
        source: the images that the classifier was trained on; they are not read.
        imagenet_v2: folder of ImageNet-V2, matched-frequency.
        imagenet_r: folder of ImageNet-R.
        imagenet_sketch: folder of ImageNet-Sketch.
        labelled: further arguments of LabelledDataModule.
    """

    def __init__(
        self,
        source: Source,
        imagenet_v2: str | None = None,
        imagenet_r: str | None = None,
        imagenet_sketch: str | None = None,
        **labelled: Any,
    ) -> None:
        super().__init__(source, **labelled)
        folders = {
            "imagenet_v2": imagenet_v2,
            "imagenet_r": imagenet_r,
            "imagenet_sketch": imagenet_sketch,
        }
        self.roots = {name: root for name, root in folders.items() if root is not None}
        if not self.roots:
            options = " ".join(f"--data.{name} DIR" for name in folders)
            raise ValueError(f"no folder of images is given; give any of {options}")

    @override
    def open(self) -> tuple[Condition, ...]:
        conditions = []
        for name, root in self.roots.items():
            images = _OPEN[name](Path(root).expanduser())
            reasons = count_reasons({name: len(images)}, *NUM_IMAGES[name])
            crop = self.evaluation_crop_fraction
            conditions.append(Condition(name, 0, self.part(images), crop, reasons))
        return tuple(conditions)

    @property
    @override
    def benchmark_name(self) -> str:
        return ", ".join(self.roots)  # unused: every set has a result of its own

    @property
    @override
    def dataset_name(self) -> str:
        return "imagenet1k"

    @property
    @override
    def data_root(self) -> str:
        return ", ".join(self.roots.values())


def _open_synsets(root: Path, synsets: tuple[str, ...]) -> FolderImages:
    layout = _WNID_LAYOUT.format(root=root, example=synsets[0], number=len(synsets))
    images = class_images(root, synsets, layout)
    _check_number(images, len(synsets), layout)
    return images


def _check_number(images: FolderImages, wanted: int, layout: str) -> None:
    found = len(images.labels.unique())
    if found != wanted:
        raise ValueError(
            f"{images.folder} has images of {found} classes, not of {wanted}; fetch it again, "
            f"expected\n{layout}"
        )
