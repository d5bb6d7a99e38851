"""Speed of the generated corruptions next to the public package imagecorruptions-imaug.

Run: python benchmarks/corruptions.py --json result.json

Milliseconds per 224 px image and severity, mean of the five severities, of which each is the
median of the repetitions; both packages take turns in one process with one thread. Without the
public package, which is no dependency of this project, only the own figures are printed. Frost is
measured with generated files of the size of the official photographs, for the own code only: the
public package brings its own. Only ratios of one run mean something, on a machine with nothing
else to do.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ser_lightning.corruptions import (
    EXTRA_CORRUPTIONS,
    FROST_FILES,
    NUM_SEVERITIES,
    corrupt,
    corruption_names,
)

SIDE = 224
PHOTOGRAPH = (1000, 700)  # width and height
Corruption = Callable[[str, int, int], Any]


def image() -> torch.Tensor:
    """A smooth random colour image (3, H, W) uint8 with some noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")[0]
    noise = torch.randn(3, SIDE, SIDE, generator=generator)
    return (255 * smooth + 4 * noise).clamp(0, 255).to(torch.uint8)


def photographs(folder: Path) -> None:
    """Files in place of the official photographs of ice."""
    pixels = np.random.default_rng(0).integers(0, 256, (*PHOTOGRAPH[::-1], 3), dtype=np.uint8)
    for name in FROST_FILES:
        Image.fromarray(pixels).save(folder / name)


def public_package(pixels: np.ndarray) -> Corruption | None:
    """The public package's function, compiled and on one thread; None if it is not installed."""
    try:
        package = importlib.import_module("imagecorruptions")
        importlib.import_module("cv2").setNumThreads(1)
    except ImportError:
        return None

    def run(name: str, severity: int, index: int) -> Any:
        np.random.seed(index)  # noqa: NPY002  the package draws from the global generator
        return package.corrupt(pixels, corruption_name=name, severity=severity)

    return run


def milliseconds(function: Corruption, name: str, severity: int, index: int) -> float:
    """Of one call."""
    start = time.perf_counter()
    function(name, severity, index)
    return 1000 * (time.perf_counter() - start)


def measure(functions: dict[str, Corruption], name: str, repeats: int) -> dict[str, float]:
    """Mean over severities of the median of interleaved calls, per function."""
    medians: dict[str, list[float]] = {key: [] for key in functions}
    for severity in range(1, NUM_SEVERITIES + 1):
        measured: dict[str, list[float]] = {key: [] for key in functions}
        for repetition in range(repeats + 1):
            for key, function in functions.items():
                value = milliseconds(function, name, severity, repetition)
                if repetition:  # the first one fills caches and compiles
                    measured[key].append(value)
        for key, values in measured.items():
            medians[key].append(statistics.median(values))
    return {key: statistics.mean(values) for key, values in medians.items()}


def report(results: dict[str, dict[str, float]], has_other: bool) -> None:
    """Prints a line per corruption and the sums over those that both have."""
    print(f"milliseconds per {SIDE} px image, mean of {NUM_SEVERITIES} severities, 1 thread")
    print(f"{'':20}{'own':>10}" + (f"{'imaug':>10}{'ratio':>10}" if has_other else ""))
    for name, row in results.items():
        line = f"{name:20}{row['own']:10.2f}"
        if "imaug" in row:
            line += f"{row['imaug']:10.2f}{row['imaug'] / row['own']:10.2f}"
        print(line)
    official = [row for name, row in results.items() if name not in EXTRA_CORRUPTIONS]
    print(f"{'sum of the 15':20}{sum(row['own'] for row in official):10.2f}")
    if not has_other:
        print("imagecorruptions-imaug: not installed")
        return
    shared = [row for row in official if "imaug" in row]
    own, other = (sum(row[key] for row in shared) for key in ("own", "imaug"))
    print(f"{f'sum of {len(shared)} of both':20}{own:10.2f}{other:10.2f}{other / own:10.2f}")


def main() -> None:
    """Parses the command line, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions, at least 3")
    parser.add_argument("--extra", action="store_true", help="also the four extra corruptions")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    if options.repeats < 3:
        parser.error(f"--repeats {options.repeats} gives no median; use at least 3")
    torch.set_num_threads(1)
    pixels = image()
    other = public_package(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder))

        def own(name: str, severity: int, index: int) -> torch.Tensor:
            return corrupt(pixels, name, severity, index, 0, frost_dir=folder)

        for name in corruption_names(folder, extra=options.extra):
            functions: dict[str, Corruption] = {"own": own}
            if other is not None and name != "frost":
                functions["imaug"] = other
            results[name] = measure(functions, name, options.repeats)
    report(results, other is not None)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
