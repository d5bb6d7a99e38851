"""Seconds until the images of a folder are known, the first and the second time.

Run: python benchmarks/listing.py [--images 100000] [--classes 1000]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from ser_lightning.sources.folder import ImageFolder


def write_tree(root: Path, num_images: int, num_classes: int) -> None:
    """Writes empty files in class folders that look as if they had not changed for a day."""
    for label in range(num_classes):
        folder = root / "train" / f"class{label:04d}"
        folder.mkdir(parents=True)
        for number in range(label, num_images, num_classes):
            (folder / f"{number:07d}.jpg").touch()
    yesterday = time.time() - 86_400
    for path, _, _ in os.walk(root):
        os.utime(path, (yesterday, yesterday))


def seconds_to_start(root: Path) -> float:
    """Time to open both splits, as every process does."""
    begin = time.perf_counter()
    source = ImageFolder(str(root))
    source.train()
    source.evaluation()
    return time.perf_counter() - begin


def main() -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SER_LIGHTNING_CACHE"] = f"{folder}/cache"
        write_tree(Path(folder) / "images", arguments.images, arguments.classes)
        first, second = (seconds_to_start(Path(folder) / "images") for _ in range(2))
    print(f"{arguments.images} images in {arguments.classes} classes:")
    print(
        f"first time {first:.3f} s, second time {second:.3f} s, {first / second:.1f} times faster"
    )


if __name__ == "__main__":
    main()
