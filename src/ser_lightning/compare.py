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
    print(runs_markdown([_metrics(run) for run in parser.parse_args(args).runs]))


def _metrics(run: Path) -> RunMetrics:
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
    return RunMetrics(run.name, measured["baseline"], last["metrics"], last["step"])
