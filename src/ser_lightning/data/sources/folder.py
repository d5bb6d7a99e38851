"""Images in folders, in ImageNet's layout or without any."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ser_lightning.data.sources.base import ImageSet, Source, UnreadableImage, hold_out

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm",
)  # fmt: skip

_LAYOUT = """expected
  {root}/{train}/<class>/*.jpg and {root}/{evaluation}/<class>/*.jpg   (ImageNet)
  {root}/<class>/*.jpg                                     (every 20th image is held out)
  {root}/*.jpg                                             (no labels)"""


def _to_rgb(image: Image.Image) -> Tensor:
    if image.mode.startswith("I"):  # 16 bits, as in microscopy
        levels = np.clip(np.asarray(image), 0, 2**16 - 1) >> 8
        return torch.from_numpy(levels.astype(np.uint8)).expand(3, -1, -1)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save 8 or 16 bits")
    if image.mode == "P":  # its transparent colours have a meaning only there
        image = image.convert("RGBA")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_image(path: str) -> Tensor:
    """Reads an image file of any of `EXTENSIONS`; 16-bit images keep their upper 8 bits.

    Args:
        path: the file.

    Returns:
        (3, H, W) uint8 image.

    Raises:
        UnreadableImage: the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except Exception as error:  # damaged files make decoders raise almost anything
        raise UnreadableImage(f"{path}: {error or type(error).__name__}") from error


class FolderImages(ImageSet):
    """The images below one folder.

    Args:
        folder: the folder.
        paths: image files relative to it, sorted.
        class_names: names of the class folders; empty if the images have no labels.
    """

    def __init__(self, folder: Path, paths: list[str], class_names: tuple[str, ...]) -> None:
        self.folder = str(folder)
        # one block of bytes: a list of a million strings would be copied into every worker
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.class_names = class_names
        ids = {name: number for number, name in enumerate(class_names)}
        self.labels = torch.tensor([ids.get(_class_of(path), -1) for path in paths])

    def path(self, index: int) -> str:
        """The file of one image."""
        return os.path.join(self.folder, os.fsdecode(self.paths[index]))

    def read(self, index: int) -> Tensor:
        """Reads and decodes one image."""
        return read_image(self.path(index))


def _class_of(path: str) -> str:
    """The first folder of a relative path; empty for a file that lies in no folder."""
    head, separator, _ = path.partition(os.sep)
    return head if separator else ""


def list_images(folder: Path) -> list[str]:
    """Lists image files below a folder, sorted, relative to it; hidden files are left out."""
    found = []
    for directory, _, names in os.walk(folder, followlinks=True):
        found += [
            os.path.relpath(os.path.join(directory, name), folder)
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)


def _class_names(paths: list[str]) -> tuple[str, ...]:
    """Class folders in sorted order; none if images lie outside of them or in a single one."""
    names = sorted({_class_of(path) for path in paths})
    return tuple(names) if len(names) > 1 and "" not in names else ()


class ImageFolder(Source):
    """A folder of images: ImageNet's layout, class folders without a split, or just images.

    Without a folder for evaluation every 20th image of the sorted list is held out for it. A
    single class folder, or images outside of class folders, means that there are no labels.

    Args:
        root: the folder.
        train: name of its folder for training; if it is missing, root itself is listed.
        evaluation: name of its folder for evaluation.
    """

    def __init__(self, root: str, train: str = "train", evaluation: str = "val") -> None:
        self.root = root
        self.train_name = train
        self.evaluation_name = evaluation
        self._splits: tuple[ImageSet, ImageSet | None] | None = None

    def train(self) -> ImageSet:
        """Opens the training split.

        Raises:
            FileNotFoundError: the folder is missing or holds no image.
            ValueError: the evaluation folder does not fit to the training folder.
        """
        return self._open()[0]

    def evaluation(self) -> ImageSet | None:
        """Opens the evaluation split; fails as `train` does."""
        return self._open()[1]

    def _open(self) -> tuple[ImageSet, ImageSet | None]:
        if self._splits is None:
            root = Path(self.root).expanduser()
            train, evaluation = root / self.train_name, root / self.evaluation_name
            if train.is_dir() and evaluation.is_dir():
                images = self._list(train)
                self._splits = images, self._list_evaluation(evaluation, images)
            else:
                self._splits = hold_out(self._list(train if train.is_dir() else root))
        return self._splits

    def _list(self, folder: Path) -> FolderImages:
        layout = _LAYOUT.format(
            root=self.root, train=self.train_name, evaluation=self.evaluation_name
        )
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder; {layout}")
        paths = list_images(folder)
        if not paths:
            kinds = " ".join(EXTENSIONS)
            raise FileNotFoundError(f"{folder} holds no image ({kinds}); {layout}")
        return FolderImages(folder, paths, _class_names(paths))

    def _list_evaluation(self, folder: Path, train: FolderImages) -> FolderImages:
        images = self._list(folder)
        if train.class_names:
            unknown = {_class_of(os.fsdecode(path)) for path in images.paths}
            unknown -= set(train.class_names)
            if "" in unknown:
                raise ValueError(
                    f"{folder} holds images outside of class folders, {train.folder} has classes; "
                    "sort the images into the same class folders"
                )
            if unknown:
                raise ValueError(
                    f"{folder} has classes that {train.folder} has not: "
                    f"{', '.join(sorted(unknown)[:5])}; use the same class folders in both"
                )
        paths = [os.fsdecode(path) for path in images.paths]
        return FolderImages(folder, paths, train.class_names)
