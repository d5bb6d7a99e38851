"""Training on image files by this project beside lightly's parts, with the same ViT.

Run: python -m benchmarks.peers --root FOLDER --json result.json, where FOLDER/train has class
folders; needs `pip install 'ser-lightning[bench]'`. `--quick` only exercises the code.

Every measurement is a process of its own; the two sides take turns, as often as `--repeats` says.
Figures are medians over all windows of a few steps, the first step left out; the time to the first
step begins with the process, so it has the imports and the listing of the files. Memory is the
peak of the resident set of the training process, and of its workers together. What both sides
train is in `peer_parts.py`. Only ratios of one run mean something, on a machine with nothing else
to do, and the load that is printed says whether it had.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.peer_parts import HEADS, SIDES, Setting

REPOSITORY = Path(__file__).parents[1]
QUICK = {"batch_size": 16, "width": 32, "depth": 2, "heads": 2}


def megabytes(pid: int | str = "self") -> float:
    """The largest resident set that a process had (Linux only)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(side: str, setting: Setting, windows: int, steps: int, threads: int) -> dict[str, Any]:
    """Trains 1 + `windows` * `steps` steps in this process; images/s of each window."""
    import torch  # noqa: PLC0415 - its import is part of the first step

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ends, memory = [], {}

    def after_step() -> None:
        ends.append(time.time())
        if len(ends) == 1 + windows * steps:
            workers = multiprocessing.active_children()
            memory["megabytes"] = megabytes()
            memory["worker_megabytes"] = sum(megabytes(worker.pid or 0) for worker in workers)

    SIDES[side](setting, 1 + windows * steps, after_step)
    borders = ends[::steps]
    images = steps * setting.batch_size
    speeds = [images / (end - start) for start, end in pairwise(borders)]
    return {"images_per_second": speeds, "first_step": ends[0], **memory}


def in_a_process(side: str, setting: Setting, options: argparse.Namespace, threads: int) -> Any:
    """`measure` in a process of its own; the first step in seconds since its start."""
    what = [side, json.dumps(setting._asdict()), options.windows, options.steps, threads]
    command = [sys.executable, "-m", "benchmarks.peers", "--measure", *map(str, what)]
    paths = [str(REPOSITORY / "src"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
    start = time.time()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} with {setting} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    result["first_step"] -= start
    return result


def in_this_process(side: str, setting: Setting, options: argparse.Namespace, threads: int) -> Any:
    """`measure`, whose memory and first step then mean nothing; for `--quick`."""
    start = time.time()
    result = measure(side, setting, options.windows, options.steps, threads)
    result["first_step"] -= start
    return result


def compare(setting: Setting, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Medians of both sides, taking turns, and ratios above 1 in this project's favour."""
    run = in_this_process if options.quick else in_a_process
    rows: dict[str, list[Any]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side, found in rows.items():
            found.append(run(side, setting, options, threads))
    result: dict[str, Any] = {
        "objective": setting.objective, "threads": threads, "workers": setting.num_workers,
        "load": os.getloadavg()[0],
    }  # fmt: skip
    for side, found in rows.items():
        speeds = [speed for row in found for speed in row["images_per_second"]]
        result[side] = {"images_per_second": statistics.median(speeds), "windows": len(speeds)}
        for name in ("megabytes", "worker_megabytes", "first_step"):
            result[side][name] = statistics.median(row[name] for row in found)
    ours, peer = result["ours"], result["lightly"]
    result["speed"] = ours["images_per_second"] / peer["images_per_second"]
    memory = [side["megabytes"] + side["worker_megabytes"] for side in (peer, ours)]
    result["memory_saving"] = memory[0] / memory[1]
    result["sooner"] = peer["first_step"] / ours["first_step"]
    return result


def line(row: dict[str, Any]) -> str:
    """One setting in words."""
    ours, peer = row["ours"], row["lightly"]
    memory = " / ".join(f"{s['megabytes']:.0f}+{s['worker_megabytes']:.0f}" for s in (ours, peer))
    return (
        f"{row['objective']:12}{row['threads']:>8}{row['workers']:>8}"
        f"{ours['images_per_second']:8.1f} / {peer['images_per_second']:<8.1f}{row['speed']:6.2f}x"
        f"  {memory:>19} MB{row['memory_saving']:6.2f}x"
        f"{ours['first_step']:7.1f} / {peer['first_step']:<5.1f}{row['sooner']:6.2f}x"
        f"{row['load']:7.1f}"
    )


def fast_precision() -> str:
    """That in which this processor multiplies fastest."""
    from ser_lightning.trainer_rules import multiplies_in_bf16  # noqa: PLC0415 - not when measuring

    return "bf16" if multiplies_in_bf16() else "fp32"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--root", help="folder with train/CLASS/*.jpg of 32 px, CIFAR-10's")
    parser.add_argument("--objectives", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="default: bf16 where the processor has it"
    )
    for name in QUICK:
        parser.add_argument(f"--{name}", type=int, default=Setting._field_defaults[name])
    parser.add_argument("--windows", type=int, default=5, help="in each process")
    parser.add_argument("--steps", type=int, default=2, help="in each window")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side, in turn")
    parser.add_argument("--quick", action="store_true", help="tiny, in one process: runs the code")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        few = {"threads": [1], "workers": [0], "windows": 2, "steps": 1, "repeats": 1}
        vars(options).update(QUICK | few)
    elif options.windows * options.repeats < 5:
        parser.error(
            f"--windows {options.windows} x --repeats {options.repeats} give no median of five "
            "windows; raise one of them"
        )
    if not options.measure and not options.root:
        parser.error("--root is missing: the folder of the images, with train/ and class folders")
    return options


def main() -> None:
    """Measures every setting, prints and saves."""
    options = parse()
    if options.measure:
        side, setting, *numbers = options.measure
        print(json.dumps(measure(side, Setting(**json.loads(setting)), *map(int, numbers))))
        return
    options.precision = options.precision or fast_precision()
    print(
        f"{options.precision}; this project / lightly; ratios above 1 are in this project's favour"
    )
    print(
        f"{'objective':12}{'threads':>8}{'workers':>8}{'images/s':>15}{'':12}"
        f"{'memory + workers':>20}{'':10}{'s to first step':>20}{'load':>10}"
    )
    rows = []
    sizes = {name: vars(options)[name] for name in (*QUICK, "precision")}
    for objective in options.objectives:
        for threads in options.threads:
            for workers in options.workers:
                setting = Setting(options.root, objective, num_workers=workers, **sizes)
                rows.append(compare(setting, options, threads))
                print(line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
