"""Folders of images and masks: VOC2012, ADE20K, and folders of one's own; see `mask_layouts.py`."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from typing_extensions import override

from ser_lightning.numbers import PositiveInt, checked
from ser_lightning.sources.base import ImageSet, Source, folder_path, hold_out
from ser_lightning.sources.decode import AS_STORED, Decode, Level
from ser_lightning.sources.listing import left_out_line
from ser_lightning.sources.mask_layouts import Layout, find_layout, lines_of
from ser_lightning.sources.masks import IGNORED, MAX_CLASSES, NUM_VALUES, MaskImages


@checked
class MaskFolder(Source):
    """Images and masks in VOC2012's layout, ADE20K's, or folders `images` and `masks`.

    Which layout it is follows from the folders. A mask has the name of its image but for the
    extension, and one number per pixel: gray levels or a palette.

    Args:
        root: the folder.
        num_classes: classes of a folder of one's own, in whatever layout, with the values 0, 1, 2,
            ...; null takes those of `classes.txt` in it, one name a line, or else the largest value
            that counts.
        values: the value of each class where they are others, such as [0, 128] for two classes.
        ignored: values of pixels that do not count; VOC2012's and ADE20K's own are known.
        upright: whether to turn images as their EXIF orientation says, to lie under masks that were
            drawn on them upright; released sets are for images as stored.
        max_pixels: most pixels to decode of an image; larger files count as unreadable.
    """

    def __init__(
        self,
        root: str,
        num_classes: PositiveInt | None = None,
        values: tuple[Level, ...] | None = None,
        ignored: tuple[Level, ...] = (IGNORED,),
        upright: bool = False,
        max_pixels: PositiveInt = AS_STORED.max_pixels,
    ) -> None:
        folder_path(root)
        if values is not None and (num_classes is not None or len(set(values)) < len(values)):
            raise ValueError(
                f"values {list(values)} with num_classes {num_classes}: give different values, "
                "which say how many classes there are, without num_classes"
            )
        if shared := set(values or ()) & set(ignored):
            raise ValueError(
                f"{sorted(shared)} are values of classes and ignored; give other --data.source."
                "ignored, [] for none"
            )
        self.root = root
        self.num_classes = num_classes
        self.values = values
        self.ignored = tuple(ignored)
        self.decode = Decode(upright, max_pixels=max_pixels)

    @override
    def train(self) -> ImageSet:
        """Opens the training split.

        Raises:
            FileNotFoundError: no layout fits, or images have no mask.
            ValueError: names, values or sizes do not fit.
        """
        return self._open()[0]

    @override
    def evaluation(self) -> ImageSet | None:
        return self._open()[1]

    @property
    @override
    def dataset_name(self) -> str:
        return self.named(self._layout().name)

    @property
    @override
    def is_released(self) -> bool:
        return bool(self._layout().values)

    @override
    def notes(self) -> tuple[str, ...]:
        layout = self._layout()
        return (f"{layout.base} is read as {layout.name}", *left_out_line(layout.left_out))

    @cache  # noqa: B019 - of a source there are one or two
    def _layout(self) -> Layout:
        root = folder_path(self.root)
        layout = find_layout(root)
        is_usual = self.ignored in ((IGNORED,), layout.ignored)
        is_told = self.num_classes or self.values or not is_usual
        if is_told or (layout.base / "classes.txt").is_file():
            return replace(layout, name="masks", values=(), class_names=())  # of one's own
        return layout

    @cache  # noqa: B019
    def _open(self) -> tuple[ImageSet, ImageSet | None]:
        layout = self._layout()
        is_own = not layout.values
        values = self._own_values(layout) if is_own else layout.values
        names = layout.class_names or _own_names(layout.base, len(values))
        what = values, names, self.ignored if is_own else layout.ignored, self.decode
        train = MaskImages(layout.base, layout.train, *what)
        if layout.evaluation is None:
            return hold_out(train)
        return train, MaskImages(layout.base, layout.evaluation, *what)

    def _own_values(self, layout: Layout) -> tuple[int, ...]:
        """The values of the classes of a folder of one's own."""
        listed, count = layout.base / "classes.txt", self.num_classes
        if self.values is not None:
            count = len(self.values)
        if count is None and listed.is_file():
            count = len(lines_of(listed))
        if count is None:
            splits = [pairs for pairs in (layout.train, layout.evaluation) if pairs is not None]
            sets = [MaskImages(layout.base, pairs, (), (), (), self.decode) for pairs in splits]
            found = np.flatnonzero(sum(images.value_counts.sum(0) for images in sets))
            count = 1 + max((int(n) for n in found if n not in self.ignored), default=-1)
        values = self.values or tuple(range(min(count, NUM_VALUES)))
        counted = count - len({*values} & {*self.ignored})
        if counted < 2 or count > MAX_CLASSES:
            raise ValueError(
                f"the masks below {layout.base} have {counted} classes beside the ignored values "
                f"{list(self.ignored)}; there are 2 to {MAX_CLASSES}: give the value of each, for "
                "instance --data.source.values [0,255] --data.source.ignored []"
            )
        return values


def _own_names(base: Path, count: int) -> tuple[str, ...]:
    listed = base / "classes.txt"
    names = lines_of(listed) if listed.is_file() else [f"class {number}" for number in range(count)]
    if len(names) != count or len(set(names)) < count:
        raise ValueError(
            f"{listed} has {len(names)} names, {len(set(names))} of them different, for {count} "
            "classes; write one name a line, in the order of the values"
        )
    return tuple(names)
