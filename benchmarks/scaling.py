"""How cost grows: with images of a data set, with invertible images and with ranks.

Run: python -m benchmarks.scaling --json result.json; docs/scaling.md says what it was.

Measured, each point in a process of its own on one thread: an epoch's order and the parts of a
step by `data/plan.py`; the listing of a folder by `sources/`, without the time that the file
system takes, which `listing.py` measures on real files; the equivariance loss of a rank against
the candidates of all, which are made up. Straight lines are fitted to its time and memory, and the
worst departure from each is printed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

REPOSITORY = Path(__file__).parents[1]
IMAGES = {"ImageNet-1k": (1_281_167, 1_000), "ImageNet-21k": (14_197_122, 21_841)}
# images of a rank and ranks: first more images on one rank, then more ranks
LOSSES = [(3, 1), (6, 1), (12, 1), (24, 1), (48, 1), (3, 8), (3, 16), (3, 32), (3, 64), (3, 128)]
TOKENS, CHANNELS = 196, 512  # of ViT-S/16 at 224 pixels, and of SER's projector
NUM_STEPS = 100
Figures = dict[str, float]


def peak_megabytes() -> float:
    """The largest resident set so far (Linux counts it in kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure_order(num_images: int, _: int = 0) -> Figures:
    """An epoch's order, then the parts of steps, as every worker of a rank computes them."""
    from ser_lightning.data.plan import BatchKey, Plan  # noqa: PLC0415 - not in the other parts

    plan = Plan(num_images, 2048, 24, seed=0, rank=3, world_size=8)
    before, start = peak_megabytes(), time.perf_counter()
    plan.indices(BatchKey(0, 0))
    order = time.perf_counter() - start
    one, start = peak_megabytes(), time.perf_counter()
    for step in range(NUM_STEPS):
        plan.indices(BatchKey(0, step))
    parts = (time.perf_counter() - start) / NUM_STEPS
    plan.indices(BatchKey(1, 0))  # that of the next epoch, while the last one's batches are made
    megabytes = peak_megabytes() - before
    return {
        "order_seconds": order, "step_seconds": parts,
        "megabytes_of_an_epoch": one - before, "megabytes_of_two_epochs": megabytes,
    }  # fmt: skip


def measure_index(num_images: int, num_classes: int) -> Figures:
    """A folder's index the first and the second time; the walk through the folders is made up."""
    from ser_lightning.sources import listing  # noqa: PLC0415
    from ser_lightning.sources.folder import FolderImages, ImageFolder  # noqa: PLC0415

    before = peak_megabytes()
    made = made_up_folders(listing._Folder, num_images, num_classes)
    listing._walk = lambda root, known, extensions: (known or made, Counter())
    seconds = []
    with TemporaryDirectory() as folder:
        os.environ["SER_LIGHTNING_CACHE"] = f"{folder}/cache"
        for _ in range(2):
            start = time.perf_counter()
            images = ImageFolder(folder).train()
            seconds.append(time.perf_counter() - start)
            made.clear()  # the second time all is known from the file
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.json"))
    assert isinstance(images, FolderImages)
    assert len(images) == num_images
    worker = images.paths.nbytes + images.labels.nbytes
    return {
        "first_seconds": seconds[0], "second_seconds": seconds[1],
        "peak_megabytes": peak_megabytes() - before, "file_megabytes": size / 1e6,
        "megabytes_in_a_worker": worker / 1e6,
    }  # fmt: skip


def made_up_folders(kind: Callable, num_images: int, num_classes: int) -> dict:
    """Folders as a walk finds them: classes in train/ with ImageNet's kind of names, a few in val/.

    `kind` is the listing's record of one folder.
    """
    found, number = {}, 0
    for split, total in (("train", num_images), ("val", num_classes)):
        classes = [f"{split}/n{label:08d}" for label in range(num_classes)]
        found[split] = kind(1, classes, [], {}, [], [], [])
        for label, name in enumerate(classes):
            count = total // num_classes + (label < total % num_classes)
            places = [f"{name}/{name[-9:]}_{place}.JPEG" for place in range(count)]
            inodes = list(range(number, number + count))
            found[name] = kind(1, [], [], {}, sorted(places), inodes, [False] * count)
            number += count
    return {"": kind(1, ["train", "val"], [], {}, [], [], []), **found}


def measure_loss(num_images: int, num_ranks: int) -> Figures:
    """Forward and backward of one direction, candidates of all ranks without gradient."""
    import torch  # noqa: PLC0415
    import torch.nn.functional as F  # noqa: PLC0415

    from benchmarks.equivariance_loss import resident_set  # noqa: PLC0415
    from ser_lightning.regularizers import token_info_nce  # noqa: PLC0415

    torch.set_num_threads(1)
    shape = num_images * num_ranks, TOKENS, CHANNELS
    candidates = F.normalize(torch.randn(shape), dim=-1)
    anchors = candidates[:num_images].clone().requires_grad_()
    warm = anchors[:2].detach().requires_grad_()
    token_info_nce(warm, candidates[:2], 0, 0.3).backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, seconds = resident_set("VmRSS"), []
    for _ in range(3):
        start = time.perf_counter()
        token_info_nce(anchors, candidates, 0, 0.3).backward()
        seconds.append(time.perf_counter() - start)
    growth = resident_set("VmHWM") - before
    gathered = candidates.nbytes / 1e6
    return {"seconds": statistics.median(seconds), "megabytes": growth, "gathered": gathered}


PARTS: dict[str, Callable[[int, int], Figures]] = {
    "order": measure_order, "index": measure_index, "loss": measure_loss,
}  # fmt: skip


def in_a_process(part: str, *sizes: int) -> Figures:
    """One point."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--measure", part, *map(str, sizes)]
    paths = [str(REPOSITORY / "src"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    result: Figures = json.loads(done.stdout)
    return result


def line_through(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Start and slope of the straight line through points, and its worst departure as a share.

    Least squares of relative departures, so that small points count as much as large ones.
    """
    points = np.stack([np.ones(len(x)), np.array(x)], 1) / np.array(y)[:, None]
    (start, slope), *_ = np.linalg.lstsq(points, np.ones(len(y)), rcond=None)
    worst = np.abs(points @ [start, slope] - 1).max()
    return float(start), float(slope), float(worst)


def measure_all(names: list[str], losses: list[tuple[int, int]]) -> dict[str, dict[str, Figures]]:
    """Every point, by part and size, printed as it comes."""
    result: dict[str, dict[str, Figures]] = {part: {} for part in PARTS}
    points = [(part, name, IMAGES[name]) for part in ("order", "index") for name in names]
    points += [("loss", f"{images} images x {ranks} ranks", (images, ranks))
               for images, ranks in losses]  # fmt: skip
    for part, name, sizes in points:
        found = in_a_process(part, *sizes)
        result[part][name] = found
        print(
            f"{part:6}{name:24}", {key: float(f"{v:.3g}") for key, v in found.items()}, flush=True
        )
    return result


def fits(losses: list[tuple[int, int]], rows: list[Figures]) -> list[str]:
    """Straight lines: time over all pairs of images, memory over the images of more ranks.

    Memory also has a block of logits, which is smaller where all of them fit in it.
    """
    points = {
        "loss, seconds over pairs of images": [
            (own * own * ranks, row["seconds"])
            for (own, ranks), row in zip(losses, rows, strict=True)
        ],
        "loss, megabytes over candidate images of more ranks": [
            (own * ranks, row["megabytes"])
            for (own, ranks), row in zip(losses, rows, strict=True)
            if ranks > 1
        ],
    }
    sentences = []
    for name, pairs in points.items():
        if len(pairs) > 2:
            start, slope, worst = line_through(*map(list, zip(*pairs, strict=True)))
            sentences.append(f"{name}: {start:.3g} + {slope:.3g} each, off by at most {worst:.0%}")
    return sentences


def main() -> None:
    """Measures, fits, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", nargs="*", choices=list(IMAGES), default=list(IMAGES))
    parser.add_argument("--losses", type=int, default=len(LOSSES), help="points of the loss")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        part, *sizes = options.measure
        print(json.dumps(PARTS[part](*map(int, sizes))))
        return
    losses = LOSSES[: options.losses]
    result = measure_all(options.images, losses)
    for sentence in fits(losses, list(result["loss"].values())):
        print(sentence)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
