"""`ser-fit compare RUNS...`: what the online evaluation of several runs measured, in one table."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ser_lightning.reporting import RunMetrics, runs_markdown
from ser_lightning.runtime import CHECKPOINT_FOLDER, last_checkpoint, load_checkpoint


def compare(args: Sequence[str]) -> None:
    """Prints a Markdown table of runs, each number next to that of its random initialisation."""
    parser = argparse.ArgumentParser("ser-fit compare", description=compare.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, as runs/moco_ser")
    runs = parser.parse_args(args).runs
    names = [run.name for run in runs]
    names = names if len(set(names)) == len(names) else [str(run) for run in runs]
    print(runs_markdown([_metrics(*pair) for pair in zip(runs, names, strict=True)]))


def _metrics(run: Path, name: str) -> RunMetrics:
    path = last_checkpoint(run / CHECKPOINT_FOLDER)
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: {path} does not exist")
    measured = load_checkpoint(path)["callbacks"].get("OnlineEvaluation", {})
    if not measured.get("history"):
        raise ValueError(
            f"{run} has not been measured yet: its first epoch has not ended, or validation was "
            "off (`trainer.limit_val_batches`)"
        )
    last = measured["history"][-1]
    return RunMetrics(name, measured["baseline"], last["metrics"], last["step"])
