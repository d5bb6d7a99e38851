"""ImageNet-V2, ImageNet-R and ImageNet-Sketch: ImageNet's classes in other images.

Source: Recht et al. 2019, arXiv 1902.10811; Hendrycks et al. 2021, arXiv 2006.16241; Wang et al.
2019, arXiv 1905.13549.
"""

from pathlib import Path
from typing import Any

from typing_extensions import override

from ser_lightning.data.benchmarks.conditions import BenchmarkDataModule, Condition
from ser_lightning.sources.base import Source
from ser_lightning.sources.folder import FolderImages
from ser_lightning.sources.released import count_reasons, imagenet_r_synsets, imagenet_synsets

_V2_LAYOUT = """  {root}/0/*.jpeg ... {root}/999/*.jpeg   (folders are class ids)
  {root}/<wnid>/*.jpeg                    (or class names such as n01440764)"""
_EASIER_V2 = ("threshold0.7", "top-images")  # in the names of its other two sets
_WNID_LAYOUT = "  {root}/<wnid>/*   (class names such as {example}; {number} of them)"
NUM_IMAGES = {
    "imagenet_v2": (10_000,),
    "imagenet_r": (30_000,),
    "imagenet_sketch": (50_889, 50_000),
}
"""Images that the released sets have; two numbers are quoted for Sketch."""


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
        folders = dict(zip(NUM_IMAGES, (imagenet_v2, imagenet_r, imagenet_sketch), strict=True))
        self.roots = {name: root for name, root in folders.items() if root is not None}
        if not self.roots:
            options = " ".join(f"--data.{name} DIR" for name in folders)
            raise ValueError(f"no folder of images is given; give any of {options}")

    @override
    def open(self) -> tuple[Condition, ...]:
        self._class_names = imagenet_synsets()
        conditions = []
        for name, root in self.roots.items():
            folder = Path(root).expanduser()
            images = self._images(name, folder)
            reasons = count_reasons({name: len(images)}, *NUM_IMAGES[name])
            if name == "imagenet_v2" and any(kind in folder.resolve().name for kind in _EASIER_V2):
                reasons += (f"{folder.resolve().name} is another set than matched-frequency",)
            crop = self.evaluation_crop_fraction
            conditions.append(Condition(name, 0, self.part(images), crop, reasons))
        return tuple(conditions)

    @property
    @override
    def benchmark_name(self) -> str:
        return ", ".join(self.roots)  # of all; every set has a result of its own

    @property
    @override
    def data_root(self) -> str:
        return ", ".join(self.roots.values())

    def _images(self, name: str, root: Path) -> FolderImages:
        """One set.

        Raises:
            FileNotFoundError: no images there.
            ValueError: other folders than those of its classes, or fewer.
        """
        synsets = imagenet_r_synsets() if name == "imagenet_r" else imagenet_synsets()
        layout = _V2_LAYOUT if name == "imagenet_v2" else _WNID_LAYOUT
        layout = layout.format(root=root, example=synsets[0], number=len(synsets))
        folders = synsets
        if name == "imagenet_v2" and not (root / synsets[0]).is_dir():
            folders = tuple(str(number) for number in range(len(synsets)))
        images = FolderImages(root, self.class_files(root, folders, layout), folders)
        images.class_names = synsets
        found = len(images.labels.unique())
        if found != len(synsets):
            raise ValueError(
                f"{images.folder} has images of {found} classes, not of {len(synsets)}; fetch it "
                f"again, expected\n{layout}"
            )
        return images
