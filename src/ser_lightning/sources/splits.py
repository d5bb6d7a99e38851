"""Which folders of a tree are splits, and which are classes, told from the paths of its images."""

import os
import unicodedata
from collections import Counter
from collections.abc import Container, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

TRAIN_NAMES = ("train", "training")
EVALUATION_NAMES = ("val", "valid", "validation", "test", "testing", "eval", "evaluation")
_MOST_LOOSE = 0.1  # share of images beside class folders that are left out; more are refused

LAYOUT = """expected
  {root}/train/<class>/*.jpg and {root}/val/<class>/*.jpg   (ImageNet; or test, in any case)
  {root}/<class>/*.jpg                                     (every 20th of a class is held out)
  {root}/*.jpg                                             (no labels)"""


class Images(NamedTuple):
    """Image files: (N,) sorted paths, as bytes, relative to a folder."""

    folder: Path
    paths: np.ndarray


class Splits(NamedTuple):
    """The images to train on, those to evaluate on, and how many lie elsewhere, by place."""

    train: Images
    evaluation: Images | None
    left_out: Counter[str]


def first_folders(paths: np.ndarray) -> dict[str, slice]:
    """Which of sorted paths lie in which first folder; those in none are left out."""
    inside = np.flatnonzero(np.char.find(paths, b"/") >= 0)
    found = {}
    position = 0
    while position < len(inside):
        name = bytes(paths[inside[position]]).partition(b"/")[0]
        rows = _rows(paths, name)
        found[os.fsdecode(name)] = rows
        position = int(np.searchsorted(inside, rows.stop))
    return found


def text_of(name: str) -> str:
    r"""The text of a folder's or file's name, by which classes and pairs are told apart and shown.

    "é" may be one letter or an "e" with an accent, which is how macOS stores it; it is one letter
    here. Bytes that are no UTF-8 and line breaks are written out, as "caf\xe9".
    """
    text = unicodedata.normalize("NFC", os.fsencode(name).decode(errors="backslashreplace"))
    return "".join(_written_out(sign) for sign in text)


def _written_out(sign: str) -> str:
    is_break = unicodedata.category(sign) in ("Cc", "Zl", "Zp")
    return sign.encode("unicode_escape").decode() if is_break else sign


def find_splits(root: Path, paths: np.ndarray, train: str, evaluation: str) -> Splits:
    """Finds the folders for training and evaluation; without the first, all images are trained on.

    The named ones go before `TRAIN_NAMES` and `EVALUATION_NAMES`. A folder that holds nothing but
    another one with folders stands for that one, above the splits and in them.

    Raises:
        FileNotFoundError: a folder that was named is missing, or a split holds no image.
        ValueError: it is not clear whether a folder is a split or a class, or a named one is not
            below the root.
    """
    wanted = [os.path.relpath(root / name, root) for name in (train, evaluation)]
    for name in wanted:
        if name.split(os.sep)[0] == os.pardir:
            raise ValueError(
                f"{root / name} is not below {root}; give the folder that holds both splits: "
                "--data.source.root DIR"
            )
    while True:
        folders = first_folders(paths)
        names = (
            _pick(root, folders, wanted[0], TRAIN_NAMES),
            _pick(root, folders, wanted[1], EVALUATION_NAMES),
        )
        inside = None if any(names) else _only_folder(Images(root, paths))
        if inside is None:
            break
        root, paths = inside
    defaults = TRAIN_NAMES[0], EVALUATION_NAMES[0]
    for given, found, default in zip(wanted, names, defaults, strict=True):
        if given not in (found, default):
            some = ", ".join(sorted(folders)[:5]) or "no folders"
            raise FileNotFoundError(f"{root / given} is no folder; {root} has {some}")
    return _divide(root, paths, *names)


def _divide(root: Path, paths: np.ndarray, train: str | None, evaluation: str | None) -> Splits:
    if train is None:
        if evaluation is not None:
            raise ValueError(
                f"{root} has a folder {evaluation} for evaluation, but none for training; move the "
                f"class folders into {root / TRAIN_NAMES[0]}, or give --data.source.root "
                f"{root / evaluation} to train on its images"
            )
        return Splits(Images(root, paths), None, Counter())
    places = [Path(name) for name in (train, evaluation) if name is not None]
    if len(places) > 1 and any(a.is_relative_to(b) for a, b in (places, places[::-1])):
        raise ValueError(
            f"{root / places[0]} for training and {root / places[1]} for evaluation share images; "
            "name two folders of which neither holds the other: --data.source.train and "
            "--data.source.evaluation"
        )
    splits = [
        Images(root / name, _below(paths, name)) for name in (train, evaluation) if name is not None
    ]
    for split in splits:
        if not len(split.paths):
            raise FileNotFoundError(
                f"{split.folder} holds no image that is not in another folder; put images there, "
                f"or remove the folder; {LAYOUT.format(root=root)}"
            )
    rest = np.ones(len(paths), dtype=bool)
    for name in filter(None, (train, evaluation)):
        rest[_rows(paths, os.fsencode(name))] = False
    others = paths[rest]
    folders = first_folders(others).items()
    left_out = Counter({f"images in {name}": rows.stop - rows.start for name, rows in folders})
    if evaluation is None and left_out and not first_folders(splits[0].paths):
        raise ValueError(
            f"{root} has the folder {train} beside {len(left_out)} others with images, each of "
            f"which may be a class; for classes, move all of them into {root / TRAIN_NAMES[0]}; "
            f"to train on one folder, give --data.source.root {root / train}"
        )
    if loose := int(is_loose(others).sum()):
        left_out["images beside the folders"] = loose
    inner = _innermost(splits[0])
    known = set(map(text_of, first_folders(inner.paths)))
    return Splits(inner, _innermost(splits[1], known) if evaluation else None, left_out)


def _innermost(images: Images, classes: Container[str] = ()) -> Images:
    """Steps into folders that hold nothing but another one with folders, which is no class."""
    while (inside := _only_folder(images)) and text_of(inside.folder.name) not in classes:
        if not first_folders(inside.paths):
            break
        images = inside
    return images


def _only_folder(images: Images) -> Images | None:
    """The folder in which all images lie; None for several, or for images beside it."""
    folders = first_folders(images.paths)
    if len(folders) != 1 or is_loose(images.paths).any():
        return None
    (name,) = folders
    return Images(images.folder / name, _below(images.paths, name))


def class_folders(images: Images, least: int = 2) -> tuple[Images, tuple[str, ...], int]:
    """The images with a class, the classes, and how many images beside them are left out.

    Classes are the first folders; of fewer than `least`, all images are without any.

    Raises:
        ValueError: too many images lie outside of class folders.
    """
    names = tuple(sorted({text_of(folder) for folder in first_folders(images.paths)}))
    if len(names) < least:
        return images, (), 0
    loose = is_loose(images.paths)
    if loose.mean() > _MOST_LOOSE:
        raise ValueError(
            f"{images.folder} has {int(loose.sum()):,} images outside of class folders and "
            f"{int((~loose).sum()):,} in {len(names)} of them; sort them into class folders, or "
            "read all without labels: --data.source.labels false"
        )
    return Images(images.folder, images.paths[~loose]), names, int(loose.sum())


def check_names(images: Images, classes: Sequence[str]) -> None:
    """Refuses classes that are splits: `train2017` and `val2017`, or `train` and `test` in each."""
    pairs = list(product(TRAIN_NAMES, EVALUATION_NAMES))
    first = next(iter(first_folders(images.paths)))
    known = {name.casefold(): name for name in classes}
    for name, (train, evaluation) in product(known, pairs):
        other = known.get(name.replace(train, evaluation))
        if train in name and other is not None:
            raise ValueError(
                f"{images.folder} has the folders {known[name]} and {other}, which would be "
                f'classes; if they are splits, give --data.source.train "{known[name]}" '
                f'--data.source.evaluation "{other}", else rename one'
            )
    inside = {name.casefold() for name in first_folders(_below(images.paths, first))}
    if any(inside.issuperset(pair) for pair in pairs):
        raise ValueError(
            f"{images.folder / first} has folders for training and for evaluation, and would be "
            f"one class; put them above the classes, as {images.folder / TRAIN_NAMES[0] / first}, "
            f"or train on one: --data.source.root {images.folder / first}"
        )


def check_classes(images: Images, train: Images, known: tuple[str, ...], root: str = "") -> None:
    """Refuses images to evaluate whose class was not trained on.

    `root` is the folder of which a part could be held out in their place; "" for none.
    """
    classes = first_folders(images.paths)
    hold_out = f", or hold out a part of those: --data.source.root {root}" if root else ""
    if not classes:
        raise ValueError(
            f"{images.folder} has {len(images.paths):,} images outside of class folders, "
            f"{train.folder} has classes; sort the images into the same class folders{hold_out}"
        )
    if unknown := sorted({text_of(folder) for folder in classes} - set(known)):
        raise ValueError(
            f"{images.folder} has classes that {train.folder} has not: {', '.join(unknown[:5])}; "
            f"use the same class folders in both{hold_out}"
        )


def _pick(root: Path, folders: dict[str, slice], given: str, usual: tuple[str, ...]) -> str | None:
    """The folder of a split: those with images go first, then the given name, then exact ones."""
    if given not in usual and (root / given).is_dir():
        return given
    present = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    for names in (sorted(folders), present):
        for wanted in (given, *usual):
            if wanted in names:
                return wanted
            for name in names:
                if name.casefold() == wanted.casefold():
                    return name
    return None


def _rows(paths: np.ndarray, folder: bytes) -> slice:
    """Where the paths below a folder are; "0" comes after "/"."""
    first, last = (int(np.searchsorted(paths, folder + end)) for end in (b"/", b"0"))
    return slice(first, last)


def _below(paths: np.ndarray, folder: str) -> np.ndarray:
    """The paths below a folder, relative to it."""
    name = os.fsencode(folder)
    chosen = np.ascontiguousarray(paths[_rows(paths, name)])
    letters = chosen.view(np.uint8).reshape(-1, chosen.itemsize)[:, len(name) + 1 :]
    return np.ascontiguousarray(letters).view(f"S{max(1, letters.shape[1])}").ravel()


def is_loose(paths: np.ndarray) -> np.ndarray:
    """Which of some paths lie in no folder."""
    return np.char.find(paths, b"/") < 0
