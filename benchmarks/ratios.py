"""The main ratios to named baselines, from one run of each benchmark: what `make bench` prints.

Run: python -m benchmarks.ratios [--root FOLDER] [--images FOLDER] [--only NAME ...]

`peers` needs --root, a folder with train/ and class folders of 32 px images, and lightly
(`pip install 'ser-lightning[bench]'`); `worker` needs --images, JPEG photographs. Every benchmark
tells more when run by itself: NAME is a file here. Ratios mean something on a machine with nothing
else to do; the load is printed.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.start_up import BASE, GOALS

REPOSITORY = Path(__file__).parents[1]


class Ratio(NamedTuple):
    """A figure over that of its baseline, and what it should be, in words."""

    what: str
    value: float
    goal: str = ""

    def __str__(self) -> str:
        return f"  {self.what:62}{self.value:8.2f}{f'   goal {self.goal}' if self.goal else ''}"


def of_loss(result: Any) -> Iterator[Ratio]:
    """The public formulation over the equivariance loss."""
    for dtype, row in result.items():
        goals = ("2 or more", "10 or more") if dtype == "bf16" else ("", "")
        yield Ratio(f"{dtype} time, public formulation over ours", row["speed"], goals[0])
        yield Ratio(f"{dtype} memory, the same", row["memory_saving"], goals[1])


def of_operations(result: Any) -> Iterator[Ratio]:
    """A step with SER, or with SER between crops, over one without."""
    goals = {"small": "1.75 or less", "ViT-S": "1.6 or less"}
    for size, row in result.items():
        operations, seconds = row["operations"], row["seconds"]
        ratio = operations["SER"] / operations["base"]
        yield Ratio(f"{size}: operations, SER over base", ratio, goals[size])
        between = operations["overlap"] / operations["base"]
        yield Ratio(f"{size}: operations, between crops over base", between, "1.15 or less")
        goal = "1.03 or less" if size == "small" else ""  # 1 % of the images; of ViT-S 6 %
        yield Ratio(f"{size}: time, SER over base", seconds["SER"] / seconds["base"], goal)


def of_step(result: Any) -> Iterator[Ratio]:
    """Images per second over timm's, and compiled over eager."""
    goals = {"small": "1.9 or more", "ViT-S": "1.5 or more"}
    for size, row in result.items():
        best = min(seconds for name, seconds in row.items() if name != "timm")
        yield Ratio(f"{size}: step over timm's default, eager", row["timm"] / row["eager"])
        if "compiled" in row:
            yield Ratio(f"{size}: compiled over eager", row["eager"] / row["compiled"])
        yield Ratio(f"{size}: step over timm's default", row["timm"] / best, goals[size])


def of_worker(result: Any) -> Iterator[Ratio]:
    """Images per second of a core over those of torchvision on Pillow."""
    base, worker = result["torchvision"], result["worker"]
    yield Ratio("images/s, decode and cut, over torchvision's with colours", worker / base, "4.5")
    yield Ratio("the same with colours", result["with colours"] / base, "2 or more")
    yield Ratio("the same over decoding alone", worker / result["decode"], "0.8 or more")


def of_validation(result: Any) -> Iterator[Ratio]:
    """Version 0.1.0's validation over this one's."""
    for key in ("passes", "images", "seconds"):
        yield Ratio(f"{key}, version 0.1.0 over now", result["before"][key] / result["after"][key])


def of_start_up(result: Any) -> Iterator[Ratio]:
    """Commands over imports."""
    for command, goal in GOALS.items():
        base = BASE.get(command, "import torch")
        ratio = result[command] / result[base]
        yield Ratio(f"{command} over `{base}`", ratio, f"{goal} or less")


def of_peers(result: Any) -> Iterator[Ratio]:
    """Images per second over lightly's."""
    for row in result:
        what = f"{row['objective']}, {row['threads']} threads, {row['workers']} workers: images/s"
        yield Ratio(f"{what} over lightly's", row["speed"], "2 or more")


class Benchmark(NamedTuple):
    """A module of this folder with its arguments, and the ratios in its JSON."""

    module: str
    title: str
    ratios: Callable[[Any], Iterator[Ratio]]
    arguments: tuple[str, ...] = ()


BENCHMARKS = {
    "loss": Benchmark("equivariance_loss", "equivariance loss", of_loss),
    "operations": Benchmark("operations", "training step", of_operations, ("--repeats", "5")),
    "step": Benchmark("step", "step beside timm's", of_step),
    "worker": Benchmark("worker_path", "worker path", of_worker),
    "validation": Benchmark("validation", "validation while training", of_validation),
    "start_up": Benchmark("start_up", "waiting for a command", of_start_up),
    "peers": Benchmark("peers", "training on files beside lightly's parts", of_peers),
}


def run(benchmark: Benchmark, arguments: list[str]) -> Any:
    """The JSON of one benchmark."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"benchmarks.{benchmark.module}", "--json", str(file)]
        command += [*benchmark.arguments, *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        return json.loads(file.read_text())


def why_not(name: str, root: str | None, images: str | None) -> str:
    """What a benchmark lacks; nothing if it can be run."""
    if name == "worker" and not images:
        return "no --images, in make IMAGES=folder: JPEG photographs"
    if name == "peers" and importlib.util.find_spec("lightly") is None:
        return "lightly is not installed: pip install 'ser-lightning[bench]'"
    if name == "peers" and not root:
        return "no --root, in make ROOT=folder: 32 px images in train/ and class folders"
    return ""


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--root", help="images of 32 px, for `peers`")
    parser.add_argument("--images", help="photographs, for `worker`")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument(
        "--arguments", nargs=argparse.REMAINDER, default=[], help="for the benchmarks, last"
    )
    options = parser.parse_args()
    for name in options.only:
        benchmark = BENCHMARKS[name]
        if missing := why_not(name, options.root, options.images):
            print(f"{benchmark.title}: left out, {missing}")
            continue
        folder = {"peers": options.root, "worker": options.images}.get(name)
        more = ["--root", str(Path(folder).resolve())] if folder else []
        found = run(benchmark, [*more, *options.arguments])
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        print(f"{benchmark.title} (benchmarks/{benchmark.module}.py; {load})")
        print("\n".join(map(str, benchmark.ratios(found))), flush=True)


if __name__ == "__main__":
    main()
