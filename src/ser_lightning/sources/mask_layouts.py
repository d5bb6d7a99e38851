"""The layouts of folders of images and masks, and which images and masks belong together.

Sources: the VOC2012 development kit; ADE20K's scene parsing challenge, whose masks have 0 for
everything beside its 150 classes.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ser_lightning.sources.listing import absent, list_images
from ser_lightning.sources.masks import IGNORED, Pairs
from ser_lightning.sources.splits import (
    EVALUATION_NAMES,
    TRAIN_NAMES,
    first_folders,
    is_loose,
    text_of,
)

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
ADE20K_CLASSES = 150

_NO_PATHS = np.array([], dtype=np.bytes_)
_LAYOUT = """expected one of
  {root}/VOCdevkit/VOC2012/JPEGImages, SegmentationClass, ImageSets/Segmentation/train.txt, val.txt
  {root}/ADEChallengeData2016/images/training, validation; annotations/training, validation
  {root}/train/images, train/masks, val/images, val/masks   (files of the same names)
  {root}/images/train, images/val, masks/train, masks/val
  {root}/images, masks                                      (every 20th image is held out)"""


@dataclass
class Layout:
    """What a tree was recognised as; values and names are those that the layout says."""

    name: str
    base: Path
    train: Pairs
    evaluation: Pairs | None
    values: tuple[int, ...] = ()
    ignored: tuple[int, ...] = (IGNORED,)
    class_names: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)


def find_layout(root: Path) -> Layout:
    """What a tree is recognised as.

    Raises:
        FileNotFoundError: no layout fits, or images have no mask.
        ValueError: names do not fit.
    """
    layout = _voc2012(root) or _ade20k(root) or _own(root)
    if layout is None:
        raise FileNotFoundError(f"{root} has no images with masks; {_LAYOUT.format(root=root)}")
    return layout


def lines_of(file: Path) -> list[str]:
    """The lines of a text, without empty ones."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _voc2012(root: Path) -> Layout | None:
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
        names = lines_of(listed)
        pairs = Pairs(
            np.array([os.fsencode(f"JPEGImages/{name}.jpg") for name in names], dtype=np.bytes_),
            np.array([os.fsencode(f"SegmentationClass/{n}.png") for n in names], dtype=np.bytes_),
        )
        _check_there(base, pairs, str(listed))
        splits.append(pairs)
    values = tuple(range(len(VOC_CLASSES)))
    return Layout("voc2012", base, splits[0], splits[1], values, (IGNORED,), VOC_CLASSES)


def _ade20k(root: Path) -> Layout | None:
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
    names = [line.split("\t")[-1] for line in lines_of(info)[1:]] if info.is_file() else []
    if len(set(names)) != ADE20K_CLASSES:
        names = [f"class {number}" for number in range(1, ADE20K_CLASSES + 1)]
    values = tuple(range(1, ADE20K_CLASSES + 1))
    ignored = (0, IGNORED)
    return Layout("ade20k", base, train, evaluation, values, ignored, tuple(names), left_out)


def _own(root: Path) -> Layout | None:
    """Folders `images` and `masks`, in splits or with splits in them, or without any."""
    left_out: Counter[str] = Counter()
    if _has_both(root):
        train, evaluation = (_pick(root / "images", n) for n in (TRAIN_NAMES, EVALUATION_NAMES))
        paths = list_images(root / "images").paths if train or evaluation else _NO_PATHS
        for name, rows in first_folders(paths).items():
            if name not in (train, evaluation):
                left_out[f"images in {name}"] += rows.stop - rows.start
        if loose := int(is_loose(paths).sum()):
            left_out["images beside the folders"] += loose
        below = [f"/{split}" if split else split for split in (train, evaluation)]
        folders = [(f"images{b}", f"masks{b}") for b in below if b] or [("images", "masks")]
    else:
        train, evaluation = (_pick(root, names) for names in (TRAIN_NAMES, EVALUATION_NAMES))
        splits = [split for split in (train, evaluation) if split]
        whole = [split for split in splits if _has_both(root / split)]
        left_out.update(f"folders without masks {split}" for split in splits if split not in whole)
        used = [split for split in splits if split == train or split in whole] if whole else []
        for other in sorted(folder.name for folder in root.iterdir() if folder.is_dir()):
            if used and other not in splits and _has_both(root / other):
                left_out[f"images in {other}"] += len(list_images(root / other / "images").paths)
        folders = [(f"{split}/images", f"{split}/masks") for split in used]
    if not folders or (train is None and evaluation is not None):
        return None
    pairs = [_pairs(root, *folder, left_out) for folder in folders]
    return Layout("masks", root, pairs[0], pairs[1] if pairs[1:] else None, left_out=left_out)


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
