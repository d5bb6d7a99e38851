"""Speed, memory and operations of training steps on a GPU, as the page docs/gpu.md.

Run: python -m benchmarks.gpu, or `make check-gpu`, which checks the results first. Medians of
interleaved repetitions; the peak is that of a matrix product in bf16 in the same run.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operations import SIZES, Size, counted, steps
from benchmarks.turns import medians
from ser_lightning.data import InvertibleViews, PartitionedDataModule, Patterns

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
NUM_WORKERS = 4
UNKNOWN = "not measured yet"
ROWS = {
    "base step, images/s": "MoCo-v3, rendering, forward and backward in bf16",
    "share of the matrix peak": "operations of the base step a second over those of a product",
    "SER over base, wall time": "the same images, with the invertible share of `operations.py`",
    "SER over base, operations": "kernels that are launched, one for each operation",
    "peak memory of SER, GiB": "of tensors, at the batch of `operations.py`",
    "images/s that the data path feeds": f"generated images, {NUM_WORKERS} workers",
}
Figures = Mapping[str, Mapping[str, float | None]]


def now(device: torch.device) -> float:
    """Seconds on a clock, when what the device was given to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: torch.device, side: int) -> float:
    """Operations a second of a product of square bf16 matrices, the best of five."""
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(5):
        start = now(device)
        matrix @ matrix
        seconds.append(now(device) - start)
    return 2 * side**3 / min(seconds)


def fed(size: Size, num_batches: int = 8) -> float:
    """Images per second that the loader of SER's batches hands over, the first batch left out."""
    num_images = (1 + num_batches) * size.batch_size
    data = PartitionedDataModule(
        Patterns(num_train=num_images, num_evaluation=12, image_size=size.image_size),
        global_batch_size=size.batch_size,
        image_size=size.image_size,
        patch_size=size.patch_size,
        invertible=InvertibleViews(ratio=size.num_invertible / size.batch_size),
        num_workers=NUM_WORKERS,
    )
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    start = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    return num_batches * size.batch_size / (time.perf_counter() - start)


def measure(
    device: torch.device, sizes: Mapping[str, Size] = SIZES, repeats: int = 9
) -> dict[str, dict[str, float | None]]:
    """Each row's figure by size; None where the device does not tell."""
    found: dict[str, dict[str, float | None]] = {name: {} for name in ROWS}
    fastest = peak(device, 8192 if device.type == "cuda" else 512)
    for label, size in sizes.items():
        pair = steps(size, device.type)
        times = medians(pair, repeats, partial(now, device))
        with FlopCounterMode(display=False) as flops:
            pair["base"]()
        counts = {name: counted(work).total() for name, work in pair.items()}
        figures: tuple[float | None, ...] = (
            size.batch_size / times["base"],
            flops.get_total_flops() / times["base"] / fastest,
            times["SER"] / times["base"],
            counts["SER"] / counts["base"],
            _memory(pair["SER"], device),
            fed(size),
        )
        for name, figure in zip(ROWS, figures, strict=True):
            found[name][label] = figure
    return found


def _memory(work: Callable[[], object], device: torch.device) -> float | None:
    """Peak of allocated GiB; None on a CPU, which does not count it."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) / 2**30


def page(figures: Figures, where: str) -> str:
    """The page in Markdown; what has no figure says so."""
    lines = [
        "# On a GPU", "",
        "`make check-gpu` on a machine with a CUDA device, at most ten minutes, checks losses and",
        "gradients of every objective and add-on against the CPU's, in float32, bf16 and fp16;",
        "compiled blocks; NCCL on the GPUs there are; exact resume; that a step does not wait for",
        "the device. Then it measures, and writes this page.", "",
        f"Measured on {where}." if where else "Nobody has run it yet.", "",
        f"| | {' | '.join(SIZES)} | what it is |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, meaning in ROWS.items():
        values = [figures.get(name, {}).get(label) for label in SIZES]
        cells = [UNKNOWN if value is None else f"{value:.4g}" for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; run it on a machine with one")
    device = torch.device("cuda")
    where = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    text = page(measure(device), where)
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
