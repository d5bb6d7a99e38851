"""What a worker does for an image of two views, beside torchvision's transforms on Pillow images.

Run: python -m benchmarks.worker_path --images FOLDER --json result.json

One thread, JPEG photographs, views of 224 pixels, MoCo-v3's recipe. The baseline has torchvision's
transforms as they are usually written. This project's workers decode and cut; colours are changed
where the model is, which for training on a CPU is the processor too. Processor seconds, medians of
passes over the same number of images that take turns; only ratios of one run mean something.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from benchmarks.turns import medians
from ser_lightning.data import BatchKey, CropViews, ImageFolder, PartitionedDataModule
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, HostBatch, render
from ser_lightning.sources.decode import read_image

BATCH = 20


def torchvisions(files: list[Path], size: int) -> Callable[[], object]:
    """Two views of each file by transforms of Pillow images."""

    def blurred(image: Image.Image) -> Image.Image:  # as in MoCo-v3's code; v2's is slower
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    def view(p_blur: float, p_solarize: float) -> v2.Compose:
        return v2.Compose([
            v2.RandomResizedCrop(size, CropViews().scale),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.Lambda(blurred)], p_blur),
            v2.RandomApply([v2.RandomSolarize(128, 1.0)], p_solarize),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ])  # fmt: skip

    views = view(1.0, 0.0), view(0.1, 0.2)

    def run() -> object:
        for file in files:
            image = Image.open(file).convert("RGB")
            _ = [made(image) for made in views]
        return None

    return run


def passes(folder: str, count: int, size: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name; each over `count` images."""
    data = PartitionedDataModule(
        ImageFolder(folder, reduced=False), BATCH, image_size=size, num_workers=0
    )
    data.setup("fit")
    batches = data.train_dataset()
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())[:count]

    def hosts() -> list[HostBatch]:
        made = [batches[BatchKey(0, step)] for step in range(count // BATCH)]
        return [batch for batch in made if isinstance(batch, HostBatch)]

    return {
        "torchvision": torchvisions(files, size),
        "decode": lambda: [read_image(file) for file in files],
        "worker": hosts,
        "with colours": lambda: [render(batch, data.patch_size) for batch in hosts()],
    }


def main() -> None:
    """Times and prints images per second of one core."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--root", "--images", dest="images", required=True, help="JPEG photographs")
    parser.add_argument("--count", type=int, default=100, help="images of a pass")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    named = passes(options.images, options.count, options.size)
    seconds = medians(named, options.repeats, time.process_time)
    result = {name: options.count / each for name, each in seconds.items()}
    for name, speed in result.items():
        print(f"{name:14}{speed:8.0f} images/s/core {speed / result['torchvision']:6.2f}x")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
