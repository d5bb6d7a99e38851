"""Pairs of views of 3DIEBench's objects, and what the two differ by.

Source: SIE's public code, which draws a new pair of each object in every epoch.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import override

from ser_lightning.data.benchmarks.threediebench import ThreeDIEBenchDataModule
from ser_lightning.data.datasets import balanced_subset
from ser_lightning.numbers import checked
from ser_lightning.randomness import Stream, uniforms
from ser_lightning.sources.base import Source, folder_path
from ser_lightning.sources.folder import FileImages
from ser_lightning.sources.opening import open_source
from ser_lightning.sources.released import BENCH3D_VAL, count_reasons
from ser_lightning.sources.threediebench import NUM_VIEWS, ObjectImages, latents_of

_VIEW = re.compile(r"image_(\d+)\.jpg")


def drawn_pairs(seed: int, epoch: int, objects: np.ndarray, num_views: np.ndarray) -> np.ndarray:
    """Two different views of each of (N,) objects, of which there are (N,) many: (N, 2) numbers.

    Every ordered pair is equally likely; an object's pair depends on (seed, epoch, object) alone.
    """
    draws = uniforms(seed, Stream.AUGMENT, epoch, objects, 2, 2)  # crops have 0, single views 1
    first = (draws[:, 0] * num_views).astype(np.int64)
    others = 1 + (draws[:, 1] * (num_views - 1)).astype(np.int64)
    return np.stack([first, (first + others) % num_views], 1)


class ViewPairs(FileImages):
    """One pair of views of every object, the same for every seed: images 2i and 2i + 1."""

    def __init__(
        self, root: str, folders: list[str], views: list[list[int]], labels: Tensor, names: Any
    ) -> None:
        self.folder = root
        counts = np.array([len(numbers) for numbers in views])
        pairs = drawn_pairs(0, 0, np.arange(len(folders)), counts)
        self.files = np.array([
            os.fsencode(os.path.join(folder, f"image_{numbers[view]}.jpg"))
            for folder, numbers, pair in zip(folders, views, pairs, strict=True)
            for view in pair
        ])  # fmt: skip
        self.labels = labels.repeat_interleave(2)
        self.class_names = names

    @override
    def path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.files[index]))

    @override
    def _names(self) -> Iterable[bytes]:
        return (self.files.tobytes(),)

    def latents(self) -> np.ndarray:
        """(objects, 2, L) float64 latents of the views; errors as `latents_of`."""
        paths = [self.path(index) for index in range(len(self))]
        return latents_of(self.folder, paths).reshape(len(self) // 2, 2, -1)


def out_of_range_pairs(root: str, test: ObjectImages) -> ViewPairs:
    """Pairs of those test objects that a folder of other angles has views of.

    Source of the layout: 3DIEBench-OOD (Ghaemi et al. 2025, seq-JEPA), which is 3DIEBench's with
    angles beyond a quarter turn; how many views an object has is not stated, so they are listed.

    Raises:
        FileNotFoundError: there is no such folder, or no test object with two views in it.
    """
    place, folders, views, rows = folder_path(root), [], [], []
    for row, name in enumerate(test.folders):
        folder = os.fsdecode(name)
        if not (place / folder).is_dir():
            continue
        files = (_VIEW.fullmatch(file) for file in os.listdir(place / folder))
        found = sorted(int(match[1]) for match in files if match)
        if len(found) > 1:
            folders.append(folder)
            views.append(found)
            rows.append(row)
    if not folders:
        raise FileNotFoundError(
            f"{place} has no two views of a test object, such as "
            f"{place / os.fsdecode(test.folders[0])}/image_0.jpg and image_1.jpg; give the folder "
            "of 3DIEBench-OOD's synsets, with the objects of val_images.npy"
        )
    return ViewPairs(str(place), folders, views, test.object_labels[rows], test.class_names)


@checked
class ViewPairsDataModule(ThreeDIEBenchDataModule):
    """3DIEBench in pairs: all views of the training objects, one pair of every test object.

    Nothing is selected, so nothing is held out.
    Differs: SIE draws test pairs anew in every epoch; here they are the same for every seed.

    Args:
        source: `ThreeDIEBench`, of 3DIEBench or 3DIEBench-T.
        out_of_range: folder of 3DIEBench-OOD, whose views of the test objects are measured too.
        options: as `LabelledDataModule`; `num_train` and `num_test` count objects.

    Attributes:
        beyond: pairs of that folder, after `setup`; None without it.
    """

    beyond: ViewPairs | None = None

    def __init__(self, source: Source, out_of_range: str | None = None, **options: Any) -> None:
        super().__init__(source, **options)
        self.holdout_fraction = 0.0
        self.out_of_range = out_of_range

    @override
    def setup(self, stage: str) -> None:
        if self._splits:
            return
        train, test = open_source(self.source)
        assert isinstance(train, ObjectImages)
        assert isinstance(test, ObjectImages)
        self._marks = count_reasons({"the test split": len(test)}, BENCH3D_VAL)
        train = train.objects(balanced_subset(train.object_labels, self.num_train, 0))
        test = test.objects(balanced_subset(test.object_labels, self.num_test, 2))
        folders = [os.fsdecode(folder) for folder in test.folders]
        views = [list(range(NUM_VIEWS))] * len(folders)
        pairs = ViewPairs(test.folder, folders, views, test.object_labels, test.class_names)
        self._splits = {"train": train, "holdout": train.objects(np.arange(0)), "test": pairs}
        if self.out_of_range is not None:
            self.beyond = out_of_range_pairs(self.out_of_range, test)
