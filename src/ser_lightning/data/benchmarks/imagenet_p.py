"""Perturbed images: the released videos of ImageNet-P, or generated sequences.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261, and its public evaluation code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.corruptions import EXTRA_PERTURBATIONS, PERTURBATIONS, num_official_frames
from ser_lightning.data.benchmarks.conditions import BenchmarkDataModule, Condition
from ser_lightning.data.benchmarks.generated import Sequences, reduction
from ser_lightning.data.benchmarks.layouts import class_files, find_folders
from ser_lightning.data.benchmarks.videos import Videos, load_av
from ser_lightning.data.sources.base import ImageSet, Source
from ser_lightning.data.sources.released import IMAGENET_VAL, count_reasons, imagenet_synsets
from ser_lightning.numbers import PositiveInt, checked, within

ALL_PERTURBATIONS = PERTURBATIONS + EXTRA_PERTURBATIONS

_NATIVE = 224
_LAYOUT = """  {root}/<perturbation>/<wnid>/*.mp4
  {root}/<group>/<perturbation>/<wnid>/*.mp4   (the same, groups left in place)"""


def base_name(folder: str) -> str:
    """The perturbation of a folder: "gaussian_noise" for the harder "gaussian_noise_2"."""
    return folder.removesuffix("_2").removesuffix("_3")


if TYPE_CHECKING:
    Stride = int
else:
    Stride = within(int, 1, 15)  # more leave too few frames to compare


@checked
class ImageNetPDataModule(BenchmarkDataModule):
    """Images that change little from frame to frame.

    Released videos are shown as they are, without resizing or cutting. Generated sequences are
    of the images of the source's evaluation split, perturbed at their own size, or at the
    backbone's if they are larger.

    Differs: ImageNet-P's videos are compressed, generated sequences are not.

    Args:
        source: the images that the classifier was trained on.
        root: folder of released videos.
        generated: perturbs the source's images; not to be compared with released videos.
        perturbations: names of folders, such as "snow" or the harder "gaussian_noise_2"; null
            takes the 10 that the benchmark averages and the 4 further ones of the paper.
        videos_per_class: of each perturbation; null takes all. All 14 have 22 million frames.
        frame_stride: takes every so-manieth frame of a video.
        labelled: further arguments of LabelledDataModule.
    """

    def __init__(
        self,
        source: Source,
        root: str | None = None,
        generated: bool = False,
        perturbations: Sequence[str] | None = None,
        videos_per_class: PositiveInt | None = None,
        frame_stride: Stride = 1,
        **labelled: Any,
    ) -> None:
        super().__init__(source, **labelled)
        if (root is None) != generated:
            raise ValueError(
                f"root {root} with generated {generated}; give --data.root DIR for released "
                f"videos, \n{_LAYOUT.format(root='DIR')}\nor --data.generated true to perturb the "
                "images of the source"
            )
        self.root = None if root is None else Path(root).expanduser()
        self.generated = generated
        self.perturbations = tuple(perturbations or ALL_PERTURBATIONS)
        self.videos_per_class = videos_per_class
        self.frame_stride = frame_stride
        unknown = [p for p in self.perturbations if base_name(p) not in ALL_PERTURBATIONS]
        if unknown:
            raise ValueError(
                f"perturbations {', '.join(unknown)} are unknown; use some of "
                f"{', '.join(ALL_PERTURBATIONS)}"
            )

    @property
    @override
    def dataset_name(self) -> str:
        return super().dataset_name if self.generated else "imagenet1k"

    @property
    @override
    def benchmark_name(self) -> str:
        return "imagenet_p" if self.dataset_name == "imagenet1k" else self.dataset_name

    @property
    @override
    def data_root(self) -> str:
        return str(getattr(self.source, "root", "") if self.root is None else self.root)

    @override
    def open(self) -> tuple[Condition, ...]:
        conditions = self._open_generated() if self.root is None else self._open_videos(self.root)
        reasons = []
        if self.frame_stride > 1:
            reasons.append(f"every {self.frame_stride}. frame only")
        if self.videos_per_class is not None:
            reasons.append(f"{self.videos_per_class} videos per class only")
        return tuple(c._replace(reasons=c.reasons + tuple(reasons)) for c in conditions)

    @override
    def test_dataloader(self) -> DataLoader:
        return self.condition_loader([len(c.images.read(0)) for c in self.conditions])

    @override
    def describe(self) -> dict[str, Any]:
        # released videos are shown as they are
        return super().describe() if self.generated else {**super().describe(), "resize": None}

    def _open_videos(self, root: Path) -> list[Condition]:
        load_av()
        layout = _LAYOUT.format(root=root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is no folder; expected\n{layout}")
        folders = find_folders(root, self.perturbations)
        missing = [name for name in self.perturbations if name not in folders]
        if missing:
            raise FileNotFoundError(
                f"{root} lacks the folders {', '.join(missing)}; expected\n{layout}\nor name those "
                "that are there: --data.perturbations [...]"
            )
        synsets = imagenet_synsets()
        self._class_names = synsets
        sets = {
            name: Videos(
                folders[name],
                class_files(folders[name], synsets, layout, (".mp4",)),
                synsets,
                num_official_frames(base_name(name), _NATIVE),
                self.frame_stride,
            )
            for name in self.perturbations
        }
        reasons = count_reasons({name: len(v) for name, v in sets.items()}, IMAGENET_VAL)
        reasons += self.size_reasons(next(iter(sets.values())))
        return [Condition(name, 0, self._limited(v), 1.0, reasons) for name, v in sets.items()]

    def _open_generated(self) -> list[Condition]:
        images = self.source_images()
        self._class_names = images.class_names
        reduce = reduction(images, self.image_size, self.evaluation_crop_fraction)
        crop = self.evaluation_crop_fraction if reduce is None else 1.0
        reasons = ("perturbations are generated",)
        sets = {
            name: Sequences(images, name, self.seed, reduce, self.frame_stride)
            for name in self.perturbations
        }
        return [Condition(name, 0, self._limited(s), crop, reasons) for name, s in sets.items()]

    def _limited(self, images: ImageSet) -> ImageSet:
        per_class = self.videos_per_class
        return self.part(images, None if per_class is None else per_class * images.num_classes)
