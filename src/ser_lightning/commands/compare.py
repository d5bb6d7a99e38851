"""`ser-fit compare RUNS...`: what runs cost and reached, in one table a row per configuration."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ser_lightning.checkpoints import CHECKPOINT_FOLDER, CONFIGURATION, last_checkpoint
from ser_lightning.commands.cost_file import UnknownCost, kept_cost
from ser_lightning.contents import plain_contents
from ser_lightning.files import write_text
from ser_lightning.reporting.compare import GroupCost, runs_table
from ser_lightning.reporting.groups import RunGroup, group_folders, told_apart, unique_folders
from ser_lightning.reporting.runs import read_configuration
from ser_lightning.reporting.summary import RunCurve, online_table
from ser_lightning.reporting.tables import ReportTable, to_markdown, to_text
from ser_lightning.results.record import record_files

_INTRODUCTION = (
    "A row is a configuration, its numbers the mean +- the sample standard deviation over its "
    "seeds. Accuracies are in percent, differences in points with their 95 % interval over the "
    "choice of test images, the same for both rows, and of seeds (Student's t); with one seed it "
    "knows nothing of the spread between seeds. GMAC are 1e9 multiply-accumulates of a forward "
    "pass per image: all views, both branches, heads, and an add-on's layers for every image."
)


def compare(args: Sequence[str]) -> None:
    """Prints tables of runs: by configuration, and what each measured while training."""
    parser = argparse.ArgumentParser("ser-fit compare", description=compare.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, as runs/moco_ser")
    parser.add_argument("--baseline", help="name of the row to compare with; default: the first")
    parser.add_argument("--output", type=Path, help="file to write the tables to, as Markdown")
    options = parser.parse_args(args)
    tables = comparison_tables(unique_folders(options.runs), options.baseline)
    print(to_text("Runs", _INTRODUCTION, tables))
    if options.output is not None:
        write_text(options.output, to_markdown("Runs", _INTRODUCTION, tables))


def comparison_tables(runs: Sequence[Path], baseline: str | None = None) -> list[ReportTable]:
    """Runs, each once, by configuration, and what each measured while training.

    The baseline is the name of the row to compare with, by default the first.

    Raises:
        ValueError: a folder is no run's, or has not been measured.
    """
    measured = [m for run, name in run_names(runs).items() if (m := _measured_curve(run, name))]
    groups = group_folders(runs)
    table = runs_table(groups, [group_cost(group) for group in groups], baseline)
    return [table, *([online_table(measured)] if measured else [])]


def run_names(runs: Sequence[Path]) -> dict[Path, str]:
    """What runs are called: by the name of their folder, or by its path where names repeat."""
    return told_apart(runs, [Path(os.path.abspath(run)).name for run in runs])


def is_measured(run: Path) -> bool:
    """Whether a folder has anything to compare: results, or an evaluation while training."""
    return bool(record_files(run)) or while_training(run) is not None


def while_training(run: Path, name: str = "") -> tuple[RunCurve, int] | None:
    """What the last checkpoint holds of the evaluation while training, and of how many classes.

    None where nothing was measured.
    """
    path = last_checkpoint(run / CHECKPOINT_FOLDER)
    stored = plain_contents(path) if path.is_file() else {}
    try:
        measured = stored.get("callbacks", {}).get("OnlineEvaluation", {})
        history = measured.get("history")
        if not history:
            return None
        metrics = [measured["baseline"], *(entry["metrics"] for entry in history)]
        steps = [0, *(int(entry["step"]) for entry in history)]
        numbers = [{k: float(v) for k, v in each.items()} for each in metrics]
        return RunCurve(name, steps, numbers), measured.get("num_classes", 0)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no measurements of ser-fit; restore it") from error


def _measured_curve(run: Path, name: str) -> RunCurve | None:
    """What was measured while training; None for a run that has other results only."""
    if measured := while_training(run, name):
        return measured[0]
    if record_files(run):
        return None
    path = last_checkpoint(run / CHECKPOINT_FOLDER)
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: {path} does not exist")
    raise ValueError(
        f"{run} has not been measured yet: its first epoch has not ended, or validation was "
        "off (`trainer.limit_val_batches`)"
    )


def group_cost(group: RunGroup) -> GroupCost:
    """What a run of the group costs, or why that is not known."""
    config = read_configuration(group.folders[0])
    if config is None:
        return GroupCost(None, None, f"{group.folders[0]} has no {CONFIGURATION}")
    try:
        return GroupCost(*kept_cost(group.folders[0], config))
    except UnknownCost as error:
        return GroupCost(None, None, f"{group.name}: {error}")
