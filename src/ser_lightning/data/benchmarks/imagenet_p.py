"""Perturbed images: the released videos of ImageNet-P, or generated sequences.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261, and its public evaluation code.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ser_lightning.corruptions import EXTRA_PERTURBATIONS, PERTURBATIONS, num_official_frames
from ser_lightning.data.benchmarks.conditions import Condition, RobustnessDataModule
from ser_lightning.data.benchmarks.generated import Sequences, reduction, sequence_length
from ser_lightning.data.benchmarks.layouts import find_folders
from ser_lightning.data.benchmarks.videos import Videos, load_av
from ser_lightning.numbers import PositiveInt, checked, within
from ser_lightning.sources.base import ImageSet, Source
from ser_lightning.sources.released import (
    IMAGENET_VAL,
    RELEASED_SIDE,
    count_reasons,
    imagenet_synsets,
)

ALL_PERTURBATIONS = PERTURBATIONS + EXTRA_PERTURBATIONS

if TYPE_CHECKING:
    Stride = int
else:
    Stride = within(int, 1, 15)  # more leave too few frames to compare


def base_name(folder: str) -> str:
    """The perturbation of a folder: "gaussian_noise" for the harder "gaussian_noise_2"."""
    return folder.removesuffix("_2").removesuffix("_3")


@checked
class ImageNetPDataModule(RobustnessDataModule):
    """Images that change little from frame to frame.

    Released videos are shown as they are, without resizing or cutting. Generated sequences are
    of the images of the source's evaluation split; at which size they are perturbed says
    RobustnessDataModule. All sequences of a perturbation are as long as that of the first image.

    Differs: ImageNet-P's videos are compressed, generated sequences are not.

    Args:
        source: the images that the classifier was trained on.
        perturbations: names of folders, such as "snow" or the harder "gaussian_noise_2"; null
            takes the 10 that the benchmark averages and the 4 further ones of the paper.
        videos_per_class: of each perturbation; null takes all. All 14 have 22 million frames.
        frame_stride: takes every so-manieth frame of a video.
        others: further arguments of RobustnessDataModule.
    """

    benchmark = "imagenet_p"
    layout = """  {root}/<perturbation>/<wnid>/*.mp4
  {root}/<group>/<perturbation>/<wnid>/*.mp4   (the same, groups left in place)"""

    def __init__(
        self,
        source: Source,
        perturbations: Sequence[str] | None = None,
        videos_per_class: PositiveInt | None = None,
        frame_stride: Stride = 1,
        **others: Any,
    ) -> None:
        super().__init__(source, **others)
        self.perturbations = tuple(dict.fromkeys(perturbations or ALL_PERTURBATIONS))
        self.videos_per_class = videos_per_class
        self.frame_stride = frame_stride
        self._lengths = {
            name: num_official_frames(base_name(name), RELEASED_SIDE) for name in self.perturbations
        }
        unknown = [p for p in self.perturbations if base_name(p) not in ALL_PERTURBATIONS]
        if unknown:
            raise ValueError(
                f"perturbations {', '.join(unknown)} are unknown; use some of "
                f"{', '.join(ALL_PERTURBATIONS)}"
            )

    @override
    def open(self) -> tuple[Condition, ...]:
        return self._open_generated() if self.root is None else self._open_videos(self.root)

    @override
    def num_frames(self, condition: Condition) -> int:
        return math.ceil(self._lengths[condition.name] / self.frame_stride)

    def _open_videos(self, root: Path) -> tuple[Condition, ...]:
        load_av()
        layout = self.layout.format(root=root)
        folders = find_folders(root, self.perturbations, layout)
        missing = [name for name in self.perturbations if name not in folders]
        if missing:
            raise FileNotFoundError(
                f"{root} lacks the folders {', '.join(missing)}; expected\n{layout}\nor name those "
                "that are there: --data.perturbations [...]"
            )
        self._class_names = synsets = imagenet_synsets()
        sets = {
            name: Videos(
                folders[name],
                self.class_files(folders[name], synsets, layout, (".mp4",)),
                synsets,
                self._lengths[name],
                self.frame_stride,
            )
            for name in self.perturbations
        }
        reasons = count_reasons({name: len(v) for name, v in sets.items()}, IMAGENET_VAL)
        reasons += self.kind_reasons(next(iter(sets.values())))
        return self._conditions(sets, 1.0, reasons)

    def _open_generated(self) -> tuple[Condition, ...]:
        images = self.source_images()
        first, size = self.first_readable(images), self.image_size
        reduce = reduction(first, size, self.evaluation_crop_fraction)
        crop = self.evaluation_crop_fraction if reduce is None else 1.0
        self._lengths = {
            name: sequence_length(name, first, reduce, size) for name in self.perturbations
        }
        sets = {
            name: Sequences(images, name, self.seed, reduce, self.frame_stride, size, length)
            for name, length in self._lengths.items()
        }
        return self._conditions(sets, crop, ("perturbations are generated",))

    def _conditions(
        self, sets: Mapping[str, ImageSet], crop: float, reasons: tuple[str, ...]
    ) -> tuple[Condition, ...]:
        per_class = self.videos_per_class
        size = None if per_class is None else per_class * len(self.class_names)
        if self.frame_stride > 1:
            reasons += (f"every {self.frame_stride}. frame only",)
        if per_class is not None:
            reasons += (f"{per_class} videos per class only",)
        return tuple(
            Condition(name, 0, self.part(images, size), crop, reasons)
            for name, images in sets.items()
        )
