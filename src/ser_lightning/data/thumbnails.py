"""Small copies of a folder's photographs, for trials that must not wait for large files."""

import warnings
from collections import Counter
from pathlib import Path

from torchvision.transforms.v2.functional import to_pil_image

from ser_lightning.data.crops import middle
from ser_lightning.sources.base import UnreadableImage
from ser_lightning.sources.folder import ImageFolder

_HELD_OUT = 5  # every fifth image of each class


def write_thumbnails(root: str, folder: Path, size: int = 40, limit: int = 5120) -> int:
    """Writes the central squares of a folder's images below `train` and `val` of another one.

    Class folders stay; every fifth image of each class goes to `val`. Unreadable ones are left out.

    Args:
        root: the photographs, as for `ImageFolder`; of a folder with splits, the training split.
        folder: for the copies; new.
        size: side of the copies in pixels.
        limit: most images to copy, spread evenly over the folder.

    Returns:
        The number of images below `train`.

    Raises:
        ValueError: the folder has too few images to hold some out.
    """
    images = ImageFolder(root).train()
    count = min(limit, len(images))
    seen: Counter[int] = Counter()
    written: Counter[str] = Counter()
    for index in (number * len(images) // count for number in range(count)):
        try:
            image = images.read_reduced(index, 2 * size)
        except UnreadableImage as error:
            warnings.warn(f"{error}; it is left out", stacklevel=2)
            continue
        label = int(images.labels[index])
        seen[label] += 1
        split = "train" if seen[label] % _HELD_OUT else "val"
        name = images.class_names[label] if label >= 0 else ""
        path = folder / split / name / f"{index:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(middle(image, size, size)).save(path)
        written[split] += 1
    if not written["val"]:
        raise ValueError(
            f"{root} has too few images ({count} to train on) to hold every {_HELD_OUT}th of a "
            "class out for evaluation; give a folder of hundreds"
        )
    return written["train"]
