"""Folders of images and masks: VOC2012, ADE20K, and folders of one's own.

Sources of the layouts: the VOC2012 development kit; ADE20K's scene parsing challenge, whose masks
have 0 for everything beside its 150 classes.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from typing_extensions import override

from ser_lightning.numbers import PositiveInt, checked
from ser_lightning.sources.base import ImageSet, Source, folder_path, hold_out
from ser_lightning.sources.decode import AS_STORED, Decode, Level
from ser_lightning.sources.listing import absent, left_out_line, list_images
from ser_lightning.sources.masks import IGNORED, MAX_CLASSES, NUM_VALUES, MaskImages, Pairs
from ser_lightning.sources.splits import EVALUATION_NAMES, TRAIN_NAMES, text_of

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
ADE20K_CLASSES = 150

_LAYOUT = """expected one of
  {root}/VOCdevkit/VOC2012/JPEGImages, SegmentationClass, ImageSets/Segmentation/train.txt, val.txt
  {root}/ADEChallengeData2016/images/training, validation; annotations/training, validation
  {root}/train/images, train/masks, val/images, val/masks   (files of the same names)
  {root}/images/train, images/val, masks/train, masks/val
  {root}/images, masks                                      (every 20th image is held out)"""


@dataclass
class _Layout:
    """What a tree was recognised as; values and names are those that the layout says."""

    name: str
    base: Path
    train: Pairs
    evaluation: Pairs | None
    values: tuple[int, ...] = ()
    ignored: tuple[int, ...] = (IGNORED,)
    class_names: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)


@checked
class MaskFolder(Source):
    """Images and masks in VOC2012's layout, ADE20K's, or folders `images` and `masks`.

    Which layout it is follows from the folders. A mask has the name of its image but for the
    extension, and one number per pixel: gray levels or a palette.

    Args:
        root: the folder.
        num_classes: classes of a folder of one's own, with the values 0, 1, 2, ...; null takes
            those of `classes.txt` in it, one name a line, or else the largest value that counts.
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
    def _layout(self) -> _Layout:
        root = folder_path(self.root)
        layout = _voc2012(root) or _ade20k(root) or _own(root)
        if layout is None:
            raise FileNotFoundError(
                f"{root} has no images with masks; {_LAYOUT.format(root=self.root)}"
            )
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

    def _own_values(self, layout: _Layout) -> tuple[int, ...]:
        """The values of the classes of a folder of one's own."""
        listed, count = layout.base / "classes.txt", self.num_classes
        if self.values is not None:
            count = len(self.values)
        if count is None and listed.is_file():
            count = len(_lines(listed))
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
    names = _lines(listed) if listed.is_file() else [f"class {number}" for number in range(count)]
    if len(names) != count or len(set(names)) < count:
        raise ValueError(
            f"{listed} has {len(names)} names, {len(set(names))} of them different, for {count} "
            "classes; write one name a line, in the order of the values"
        )
    return tuple(names)


def _lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _voc2012(root: Path) -> _Layout | None:
    """The development kit, whose lists say which images have a mask: 1,464 and 1,449."""
    places = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    base = next((place for place in places if (place / "SegmentationClass").is_dir()), None)
    if base is None:
        return None
    splits = []
    for split in ("train", "val"):
        listed = base / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not listed.is_file():
            raise FileNotFoundError(f"{listed} does not exist; {_LAYOUT.format(root=root)}")
        names = _lines(listed)
        pairs = Pairs(
            np.array([os.fsencode(f"JPEGImages/{name}.jpg") for name in names], dtype=np.bytes_),
            np.array([os.fsencode(f"SegmentationClass/{n}.png") for n in names], dtype=np.bytes_),
        )
        _check_there(base, pairs, str(listed))
        splits.append(pairs)
    values = tuple(range(len(VOC_CLASSES)))
    return _Layout("voc2012", base, splits[0], splits[1], values, (IGNORED,), VOC_CLASSES)


def _ade20k(root: Path) -> _Layout | None:
    """The scene parsing challenge; `objectInfo150.txt` has the names, in its last column."""
    places = (root / "ADEChallengeData2016", root)
    base = next((p for p in places if (p / "annotations" / "training").is_dir()), None)
    if base is None:
        return None
    left_out: Counter[str] = Counter()
    train, evaluation = (
        _pairs(base, f"images/{split}", f"annotations/{split}", left_out)
        for split in ("training", "validation")
    )
    info = base / "objectInfo150.txt"
    names = [line.split("\t")[-1] for line in _lines(info)[1:]] if info.is_file() else []
    if len(set(names)) != ADE20K_CLASSES:
        names = [f"class {number}" for number in range(1, ADE20K_CLASSES + 1)]
    values = tuple(range(1, ADE20K_CLASSES + 1))
    ignored = (0, IGNORED)
    return _Layout("ade20k", base, train, evaluation, values, ignored, tuple(names), left_out)


def _own(root: Path) -> _Layout | None:
    """Folders `images` and `masks`, in splits or with splits in them, or without any."""
    left_out: Counter[str] = Counter()
    if _has_both(root):
        train, evaluation = (_pick(root / "images", n) for n in (TRAIN_NAMES, EVALUATION_NAMES))
        below = [f"/{split}" if split else split for split in (train, evaluation)]
        folders = [(f"images{b}", f"masks{b}") for b in below if b] or [("images", "masks")]
    else:
        train, evaluation = (_pick(root, names) for names in (TRAIN_NAMES, EVALUATION_NAMES))
        splits = [split for split in (train, evaluation) if split]
        whole = [split for split in splits if _has_both(root / split)]
        left_out.update(f"folders without masks {split}" for split in splits if split not in whole)
        used = [split for split in splits if split == train or split in whole] if whole else []
        folders = [(f"{split}/images", f"{split}/masks") for split in used]
    if not folders or (train is None and evaluation is not None):
        return None
    pairs = [_pairs(root, *folder, left_out) for folder in folders]
    return _Layout("masks", root, pairs[0], pairs[1] if pairs[1:] else None, left_out=left_out)


def _has_both(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _pick(folder: Path, names: tuple[str, ...]) -> str | None:
    """The first folder of some names, in any letter case; None where there is none."""
    if not folder.is_dir():
        return None
    found = {path.name.lower(): path.name for path in sorted(folder.iterdir()) if path.is_dir()}
    return next((found[name] for name in names if name in found), None)


def _pairs(base: Path, images: str, masks: str, left_out: Counter[str]) -> Pairs:
    """The images of a folder with the masks of the same names in another one."""
    for folder in (base / images, base / masks):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} does not exist; {_LAYOUT.format(root=base)}")
    listing = list_images(base / images)
    others = list_images(base / masks, distinct=False)  # images may share an empty mask
    left_out.update(listing.left_out + others.left_out)
    stems = {_stem(path): path for path in others.paths.tolist()}
    found = [_stem(path) for path in listing.paths.tolist()]
    missing = [
        path for path, s in zip(listing.paths.tolist(), found, strict=True) if s not in stems
    ]
    if missing or not found:
        some = os.fsdecode(missing[0]) if missing else "an image"
        raise FileNotFoundError(
            f"{len(missing)} of {len(found)} images of {base / images} have no mask in "
            f"{base / masks}, such as {some}; a mask has its image's name, with any extension"
        )
    for below, number, distinct in (
        (masks, len(others.paths), len(stems)),
        (images, len(found), len(set(found))),
    ):
        if distinct < number:
            raise ValueError(
                f"{base / below} has {number} files of {distinct} names, which differ by the "
                "extension alone; keep one of each"
            )
    if spare := len(set(stems) - set(found)):
        left_out["masks without an image"] += spare
    prefix = [os.fsencode(f"{folder}/") for folder in (images, masks)]
    return Pairs(
        np.array([prefix[0] + path for path in listing.paths.tolist()], dtype=np.bytes_),
        np.array([prefix[1] + stems[stem] for stem in found], dtype=np.bytes_),
    )


def _stem(path: bytes) -> str:
    return text_of(os.path.splitext(os.fsdecode(path))[0])


def _check_there(base: Path, pairs: Pairs, listed: str) -> None:
    """Refuses a list that names files which are not there."""
    files = [os.path.join(base, os.fsdecode(path)) for kind in pairs for path in kind]
    missing = absent(files)
    if missing or not files:
        what = f"{missing[0]} does not exist" if missing else f"{listed} is empty"
        raise FileNotFoundError(
            f"{what}, one of {len(missing)} files of {listed}; fetch the set again"
        )
