"""COCO's images and boxes, from its folders and annotation files.

Category ids are the raw ones of the files everywhere: 1 to 90 with gaps, 80 of them used.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.numbers import PositiveInt, checked
from ser_lightning.sources.base import Source, UnreadableImage, folder_path
from ser_lightning.sources.decode import AS_STORED, Decode
from ser_lightning.sources.folder import FileImages
from ser_lightning.sources.listing import absent
from ser_lightning.sources.released import coco_categories

_LAYOUT = """expected
  {root}/train2017/000000000009.jpg ...
  {root}/val2017/000000000139.jpg ...
  {root}/annotations/instances_train2017.json, instances_val2017.json"""

_MOST_CATEGORIES = 10_000
_MOST_BEYOND = 0.1  # share of boxes: more are given by other numbers


class Boxes(NamedTuple):
    """The annotated objects of an image.

    Attributes:
        corners: (n, 4) float32 left, top, right, bottom in pixels of the image file.
        labels: (n,) int64 category ids.
        crowd: (n,) bool, whether a box is around a group of objects.
        area: (n,) float32 pixels that the objects cover.
    """

    corners: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor

    def is_object(self) -> Tensor:
        """(n,) bool: whether a box is to train on, around a single object and not empty."""
        sides = self.corners[:, 2:] - self.corners[:, :2]
        return ~self.crowd & (sides > 0).all(dim=1)

    def objects(self) -> "Boxes":
        """The boxes to train on."""
        kept = self.is_object()
        return Boxes(*(values[kept] for values in self))


class CocoImages(FileImages):
    """One split of COCO; boxes of an `instances_*.json` instead of labels."""

    def __init__(
        self, folder: Path, annotations: dict[str, Any], decode: Decode = AS_STORED
    ) -> None:
        images = sorted(annotations["images"], key=lambda image: int(image["id"]))
        self.folder = str(folder)
        self.decode = decode
        # arrays: millions of small objects would be copied into every worker
        self.names = np.array([os.fsencode(image["file_name"]) for image in images])
        sizes = [(int(image["height"]), int(image["width"])) for image in images]
        self.sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        ids = [int(c["id"]) for c in annotations["categories"]]
        names = [str(c["name"]) for c in annotations["categories"]]
        self.categories = dict(zip(ids, names, strict=True))
        self.num_categories = 1 + max(ids, default=0)
        if self.num_categories > _MOST_CATEGORIES:
            raise ValueError(
                f"the largest category id is {max(ids):,}, and a detector has an output for every "
                f"number up to it; number the {len(ids)} categories from 1 on"
            )
        self.labels = torch.full((len(images),), -1)
        self.class_names = ()
        self._index_boxes([int(image["id"]) for image in images], annotations["annotations"])
        if len(set(self.names.tolist())) < len(images):
            twice, number = Counter(self.names.tolist()).most_common(1)[0]
            raise ValueError(
                f"the file {os.fsdecode(twice)} is listed as {number} images, each with a part of "
                "its boxes; give them to one"
            )
        _check_ids("category", ids, self._boxes.labels.tolist())
        if (self._boxes.labels < 1).any():
            raise ValueError("a box has a category id below 1; count from 1, 0 is the background")

    def _index_boxes(self, image_ids: list[int], annotations: list[dict[str, Any]]) -> None:
        number = {image: position for position, image in enumerate(image_ids)}
        owners = [int(a["image_id"]) for a in annotations]
        _check_ids("image", image_ids, owners)
        owner = np.array([number[image] for image in owners], dtype=np.int64)
        order = owner.argsort(kind="stable")
        borders = np.searchsorted(owner[order], np.arange(len(number) + 1))
        self._start, self._end = borders[:-1], borders[1:]
        corners = _corners([a["bbox"] for a in annotations], self.sizes[owner])
        self._boxes = Boxes(
            torch.from_numpy(corners[order]),
            torch.tensor([int(a["category_id"]) for a in annotations], dtype=torch.int64)[order],
            torch.tensor([int(a.get("iscrowd") or 0) > 0 for a in annotations]).bool()[order],
            torch.tensor([float(a["area"]) for a in annotations])[order],
        )

    def part(self, positions: np.ndarray) -> "CocoImages":
        """Some of the images, in this order; the boxes are shared."""
        chosen = copy(self)
        for name in ("names", "sizes", "_start", "_end"):
            setattr(chosen, name, getattr(self, name)[positions])
        chosen.labels = self.labels[torch.from_numpy(positions)]
        return chosen

    @property
    def is_wide(self) -> np.ndarray:
        """(N,) bool: whether images are at least as wide as high."""
        wide: np.ndarray = self.sizes[:, 1] >= self.sizes[:, 0]
        return wide

    @override
    def path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.names[index]))

    @override
    def read(self, index: int) -> Tensor:
        image = super().read(index)
        size, annotated = tuple(image.shape[1:]), tuple(self.sizes[index].tolist())
        if size != annotated:
            raise UnreadableImage(
                f"{self.path(index)}: it has {size[0]} x {size[1]} pixels, its boxes are for "
                f"{annotated[0]} x {annotated[1]}; give the images that were annotated, and "
                "--data.source.upright true if EXIF's orientation turned them then"
            )
        return image

    @override
    def read_reduced(self, index: int, min_side: int) -> Tensor:
        return self.read(index)  # boxes are in pixels of the file

    @override
    def _names(self) -> Iterable[bytes]:
        yield self.names.tobytes()
        yield np.stack([self._start, self._end]).tobytes()
        for values in self._boxes:
            yield values.numpy().tobytes()

    def boxes(self, index: int) -> Boxes:
        """All annotations of one image; there may be none."""
        start, end = self._start[index], self._end[index]
        return Boxes(*(values[start:end] for values in self._boxes))

    def with_objects(self) -> np.ndarray:
        """Positions of the images that have a box to train on (117,266 of train2017)."""
        usable = np.concatenate([[0], self._boxes.is_object().numpy().cumsum()])
        return np.flatnonzero(usable[self._end] > usable[self._start])


def _corners(boxes: Sequence[Any], sizes: np.ndarray) -> np.ndarray:
    """(n, 4) left, top, right, bottom of boxes in images of (n, 2) sizes; a ValueError if none."""
    corners = np.array(boxes, dtype=np.float32)
    rule = "a box is left, top, width, height in pixels"
    if len(boxes) and (corners.shape[1:] != (4,) or not np.isfinite(corners).all()):
        raise ValueError(
            f"the numbers of its {len(boxes)} boxes have the shape {corners.shape}, or are not "
            f"finite; {rule}"
        )
    corners = corners.reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    # a box that was dragged from another corner has negative sides
    corners = np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
    )
    beyond = (corners[:, 2:] > sizes[:, ::-1] + 2).any(axis=1)  # a few of COCO's are, by rounding
    beyond |= (corners[:, :2] < -2).any(axis=1)
    if len(boxes) and corners.max() <= 1:
        raise ValueError(
            f"the largest coordinate is {corners.max():g}, so that its boxes are shares of an "
            f"image's sides; {rule}: multiply by width and height"
        )
    if len(boxes) and beyond.mean() > _MOST_BEYOND:
        raise ValueError(
            f"{beyond.mean():.0%} of its boxes reach beyond their images, and the largest "
            f"coordinate is {corners.max():g}; {rule}"
        )
    return corners


def _check_ids(kind: str, listed: Sequence[int], used: Sequence[int]) -> None:
    """Refuses, by ValueError, ids that are listed twice, or used and not listed."""
    known = set(listed)
    if len(known) < len(listed):
        twice = Counter(listed).most_common(1)[0][0]
        raise ValueError(f"the {kind} id {twice} is listed twice; give each an id of its own")
    if unknown := sorted(set(used) - known):
        raise ValueError(
            f"{len(unknown)} {kind} ids of annotations are not listed, such as {unknown[0]}; list "
            "them, or remove their annotations"
        )


@checked
class CocoDetection(Source):
    """COCO 2017 for detection, or images and boxes of one's own in its layout.

    Args:
        root: folder of `train2017`, `val2017` and `annotations`.
        upright: whether to turn images as their EXIF orientation says, to lie under boxes that were
            drawn on them upright; the released set is for images as stored.
        max_pixels: most pixels to decode of an image; larger files count as unreadable.
    """

    def __init__(
        self, root: str, upright: bool = False, max_pixels: PositiveInt = AS_STORED.max_pixels
    ) -> None:
        folder_path(root)
        self.root = root
        self.decode = Decode(upright, max_pixels=max_pixels)

    @override
    def train(self) -> CocoImages:
        """Opens train2017; FileNotFoundError, or ValueError for a file of other annotations."""
        return self._open("train2017")

    @override
    def evaluation(self) -> CocoImages:
        train, test = self._open("train2017").categories, self._open("val2017")
        used = set(test._boxes.labels.tolist())
        for number, name in test.categories.items():
            if train.get(number, name) != name or (number in used and number not in train):
                raise ValueError(
                    f"category {number} is {train.get(number, 'none')} in train2017 and {name} in "
                    f"val2017 of {self.root}; give both files the same categories"
                )
        return test

    @property
    @override
    def dataset_name(self) -> str:
        return self.named("coco2017" if self.is_released else "coco")

    @property
    @override
    def is_released(self) -> bool:
        return self.train().categories == coco_categories()

    @override
    def notes(self) -> tuple[str, ...]:
        train, test = self.train(), self.evaluation()
        some, count = ", ".join([*train.categories.values()][:5]), len(train.categories)
        without = len(train) - len(train.with_objects())
        return (
            f"{train.folder} is read for training, {test.folder} for evaluation",
            f"boxes of {count} categories ({some}{', ...' if count > 5 else ''})",
            f"images without a box to train on, left out of training: {without:,}",
        )

    @cache  # noqa: B019 - of a source there are one or two
    def _open(self, split: str) -> CocoImages:
        root = folder_path(self.root)
        folder, file = root / split, root / "annotations" / f"instances_{split}.json"
        layout = _LAYOUT.format(root=self.root)
        if not folder.is_dir() or not file.is_file():
            place = file if folder.is_dir() else folder
            raise FileNotFoundError(f"{place} does not exist; {layout}")
        try:
            images = CocoImages(folder, json.loads(file.read_bytes()), self.decode)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            reason = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{file} holds no annotations of objects ({reason}); use COCO's instances file "
                "with images, annotations and categories"
            ) from error
        if missing := absent([images.path(index) for index in range(len(images))]):
            some = f"one of {len(missing):,} missing images of {len(images):,}"
            raise FileNotFoundError(f"{missing[0]} does not exist, {some}; {layout}")
        if not len(images):
            raise FileNotFoundError(f"{file} lists no image; {layout}")
        return images
