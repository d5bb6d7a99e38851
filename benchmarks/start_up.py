"""How long one waits for a command, beside `import torch` and `import torch, lightning`.

Run: python -m benchmarks.start_up --repeats 5 --json result.json

Every command is a process of its own, all in turn. The run that is reported on is made here, once:
a configuration with results. Times are medians; only ratios of one run mean something, on a machine
with nothing else to do, and the load that is printed says whether it had. `--stages` shows instead
what passes between a command and its first step, in one process, by calling the pieces.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.turns import medians

CONFIG = ["--config", "configs/moco_ser.yaml"]
GOALS = {"--help": 0.5, "--version": 0.5, "report": 0.5, "compare": 0.5, "fit --print_config": 1.0}
BASE = {"fit --print_config": "import torch, lightning"}  # of the others `import torch`


def commands(run: Path, folder: Path) -> dict[str, list[str]]:
    """What is timed, by name; the arguments of python."""
    fit, out = ["-m", "ser_lightning"], str(folder / "out")
    return {
        "import torch": ["-c", "import torch"],
        "import torch, lightning": ["-c", "import torch, lightning"],
        "--help": [*fit, "--help"],
        "--version": [*fit, "--version"],
        "report": [*fit, "report", str(run), "--output_dir", out],
        "compare": [*fit, "compare", str(run)],
        "look": [*fit, "look", str(run), "--output", str(folder / "look.html")],
        "fit --print_config": [*fit, "fit", *CONFIG, "--print_config"],
    }


def make_run(folder: Path) -> None:
    """A run of two steps on generated images, with a result."""
    tiny = ["fit", *CONFIG, "--config", "configs/small_photos.yaml", "--run_dir", str(folder)]
    tiny += ["--data.source", "Shapes", "--data.source.num_train", "64"]
    tiny += ["--data.source.num_evaluation", "32", "--data.global_batch_size", "32"]
    tiny += ["--data.invertible.ratio", "0.0625", "--model.warmup_epochs", "0"]
    tiny += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    knn = ["evaluate", "--config", "configs/eval/knn.yaml", "--trainer.accelerator", "cpu"]
    knn += ["--checkpoint", str(folder / "checkpoints" / "last.ckpt")]
    for verb in (tiny, knn):
        subprocess.run(
            [sys.executable, "-m", "ser_lightning", *verb], check=True, stdout=subprocess.DEVNULL
        )


def run(arguments: list[str]) -> None:
    """A process, whose output nobody reads."""
    quiet = subprocess.DEVNULL
    subprocess.run([sys.executable, *arguments], check=True, stdout=quiet, stderr=quiet)


def measure(repeats: int) -> dict[str, float]:
    """Median seconds of each command."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder / "run")
        named = commands(folder / "run", folder)
        works = {command: partial(run, arguments) for command, arguments in named.items()}
        return medians(works, repeats, num_warm=0)


def stages(arguments: list[str]) -> dict[str, float]:
    """Seconds of processor time from a command `fit` to its first step, by stage."""
    clock, found = time.process_time, {}
    start = clock()
    import lightning as L  # noqa: PLC0415 - its import is what is timed

    found["import torch, lightning"], start = clock() - start, clock()
    from ser_lightning.commands.fit import SERCommandLine  # noqa: PLC0415 - the same

    found["import this package"], start = clock() - start, clock()
    marks: dict[str, float] = {}

    class Marks(L.Callback):
        """Notes when the parts of a fit begin."""

        def on_sanity_check_start(self, *_: object) -> None:
            marks.setdefault("set up: list files, build", clock())

        def on_sanity_check_end(self, *_: object) -> None:
            marks.setdefault("measure the random init", clock())

        def on_train_batch_start(self, *_: object) -> None:
            marks.setdefault("first batch", clock())

        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            marks.setdefault("first step", clock())
            raise KeyboardInterrupt

    class Marked(SERCommandLine):
        """The command line with these marks."""

        def fit(self, **rest: object) -> None:
            marks["parse, build"] = clock()
            self.trainer.callbacks.append(Marks())  # type: ignore[attr-defined]
            super().fit(**rest)

    with TemporaryDirectory() as folder, redirect_stdout(StringIO()), suppress(SystemExit):
        Marked(["fit", *arguments, "--run_dir", f"{folder}/run"])
    for stage, mark in sorted(marks.items(), key=lambda item: item[1]):
        found[stage], start = mark - start, mark
    return found


def main() -> None:
    """Times and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--stages", nargs=argparse.REMAINDER, help="arguments of fit: --config FILE ..."
    )
    options = parser.parse_args()

    def show(name: str, value: float, note: str = "") -> None:
        print(f"{name:28}{value:8.2f} s{note}")

    if options.stages is not None:
        result = stages(options.stages)
        for name, value in result.items():
            show(name, value)
    else:
        result = measure(options.repeats)
        for name, value in result.items():
            base = BASE.get(name, "import torch")
            goal = f", goal {GOALS[name]}" if name in GOALS else ""
            show(name, value, f"  {value / result[base]:.2f} of {base}{goal}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
