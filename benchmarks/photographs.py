"""Memory and speed of a worker on large JPEG photographs, in full size and reduced.

Run: python benchmarks/photographs.py [--images FOLDER] [--count 14] [--size 224]
"""

import argparse
import multiprocessing
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ser_lightning.data import BatchKey, ImageFolder, InvertibleViews, PartitionedDataModule
from ser_lightning.data.datasets import CleanImages

WIDTH, HEIGHT = 4032, 3024
STEPS = 3


def write_photographs(folder: Path, count: int, images: Path | None) -> None:
    """Writes pictures of 12 megapixels: enlarged photographs, or smooth noise, with grain."""
    rng = np.random.default_rng(0)
    found = sorted(images.rglob("*.*")) if images else []
    for number in range(count):
        if found:
            small = Image.open(found[number % len(found)]).convert("RGB")
        else:
            small = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
        pixels = pixels + rng.integers(-6, 7, (HEIGHT, WIDTH, 1))
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number:03d}.jpg", quality=92)


def megabytes(name: str) -> float:
    """Memory of this process: VmRSS is now, VmHWM the peak since it was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def measure(folder: str, reduced: bool, is_training: bool, size: int) -> None:
    """Prints the peak beyond what the process had before, and images per second."""
    torch.set_num_threads(1)
    source = ImageFolder(folder, reduced=reduced)
    count = len(source.train())
    invertible = InvertibleViews(2 / count)
    data = PartitionedDataModule(
        source, count, invertible=invertible, image_size=size, num_workers=0
    )
    data.setup("validate")
    make: partial = (
        partial(data.training_batches(data.plan()), BatchKey(0, 0))
        if is_training
        else partial(CleanImages(data.reader(data.train_images), data.clean), np.arange(count))
    )
    before = megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.process_time()
    for _ in range(STEPS):
        make()
    speed = STEPS * count / (time.process_time() - begin)
    what = f"{'training' if is_training else 'evaluation'}, {'reduced' if reduced else 'full size'}"
    peak = megabytes("VmHWM") - before
    print(f"{what:>22}: {peak:5.0f} MB at its peak, {speed:5.1f} images per second", flush=True)


def main() -> None:
    """Measures each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="photographs to enlarge")
    parser.add_argument("--count", type=int, default=14)
    parser.add_argument("--size", type=int, default=224, help="side of the views in pixels")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        # one is held out
        write_photographs(Path(folder), arguments.count + 1, arguments.images)
        for is_training in (True, False):
            for reduced in (False, True):
                case = (folder, reduced, is_training, arguments.size)
                process = context.Process(target=measure, args=case)
                process.start()
                process.join()


if __name__ == "__main__":
    main()
