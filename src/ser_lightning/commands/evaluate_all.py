"""`ser-fit evaluate-all`: every stage whose images are there, then a report."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ser_lightning.commands.evaluate import folder_options
from ser_lightning.commands.stored_images import (
    data_of_checkpoint,
    is_pretrained,
    refuse_two_folders,
    require_checkpoint,
    results_folder,
)
from ser_lightning.data import Source
from ser_lightning.data.labelled import LABELS_REMEDY
from ser_lightning.evaluation import stages  # noqa: F401 - so that they are known
from ser_lightning.evaluation.stage import Stage, stage_classes
from ser_lightning.reporting.report import write_report
from ser_lightning.runtime.class_help import find_class
from ser_lightning.runtime.configuration import given_options, options, packaged


class Planned(NamedTuple):
    """A stage, options of `ser-fit evaluate` for its images, and why it is not run, if so."""

    stage: type[Stage]
    options: tuple[str, ...] = ()
    skipped: str = ""


def plan(root: Path | None) -> list[Planned]:
    """Says which stages run, in an order in which each finds what it needs.

    On the data sets that are in a folder; None stands for the images that the checkpoint was
    trained on, from which some are generated.
    """
    return [_planned(stage, root) for stage in _stages()]


def _stages() -> list[type[Stage]]:
    """The stages that have a configuration, but for other recipes of the same.

    Own images come first, heads before what tests them, and short stages before training.
    """
    usual = (stage for stage in stage_classes() if not stage.is_alternative)

    def place(stage: type[Stage]) -> tuple[object, ...]:
        is_own = stage.folders == Stage.folders
        return not is_own, is_own and stage.needs_head, stage.trains, stage.name

    return sorted((stage for stage in usual if Path(_config(stage)).is_file()), key=place)


def _planned(stage: type[Stage], root: Path | None) -> Planned:
    given: list[str] = []
    if root is not None:
        given = folder_options(stage.folders, root)
        if not given:
            missing = " and ".join(str(root / name) for name, _ in stage.folders)
            return Planned(stage, skipped=f"{missing} does not exist")
        given += folder_options(stage.further_folders, root)
    elif stage.can_generate:
        given = ["--data.generated", "true"]
    elif stage.folders != Stage.folders:
        return Planned(stage, skipped="needs --data_root FOLDER")
    # what it generates itself needs no package
    reads = root is not None or stage.folders == Stage.folders
    remedy = stage.lacking() if reads else ""
    return Planned(stage, tuple(given), f"{remedy} first" if remedy else "")


def evaluate_all(args: Sequence[str]) -> None:
    """Runs all stages whose images are present, says which were skipped and why, and reports.

    Options that it does not know itself go to every stage, for example --trainer.devices 8.
    """
    parser = argparse.ArgumentParser(
        "ser-fit evaluate-all", description=evaluate_all.__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="file to evaluate, or timm's name"
    )
    sets = ", ".join(dict.fromkeys(name for stage in _stages() for name, _ in stage.folders))
    root = f"folder with {sets}; default: the images that the checkpoint was trained on"
    small = "shorter recipes, for small images and a CPU"
    images = "folder of images to measure in place of those that the checkpoint was trained on"
    parser.add_argument("--data_root", type=Path, help=root)
    parser.add_argument("--images", help=images)
    parser.add_argument("--small", action="store_true", help=small)
    parser.add_argument("--only", nargs="+", help="names of the stages to run")
    known, others = parser.parse_known_args(args)
    if known.images is not None and known.data_root is not None:
        parser.error("--images is one folder of images, --data_root one of data sets; give one")
    if known.images is not None:
        refuse_two_folders(known.images, others, "--data.source.root")
        others += ["--data.source.root", known.images]
    require_checkpoint(known.checkpoint)
    wanted = _wanted(plan(known.data_root), known.only, known.data_root)
    run = Path(
        given_options(others).get("run_dir")
        or results_folder(known.checkpoint, is_pretrained(others))
    )
    unlabelled = _without_labels(known.checkpoint, known.data_root, others)
    outcomes: dict[str, bool] = {}
    for planned in wanted:
        name = planned.stage.name
        needs_classes = planned.stage.needs_labels and planned.stage.folders == Stage.folders
        skipped = planned.skipped or (unlabelled if needs_classes else "")
        skipped = skipped or _without_head(planned.stage, run, known.data_root, others)
        if skipped:
            print(f"== {name}: skipped, {skipped}", flush=True)
            continue
        print(f"== {name}", flush=True)
        command = [*_command(planned, known.checkpoint, known.small), *others]
        # A process of its own: launchers of several devices run the command line again.
        outcomes[name] = subprocess.run(command, check=False).returncode == 0
    if any(outcomes.values()):
        files = write_report([run], run / "report")
        print(f"Report: {files.markdown}, {files.html}")
    failed = [name for name, is_done in outcomes.items() if not is_done]
    if failed:
        raise ValueError(f"these stages failed, see above: {', '.join(failed)}")
    if not outcomes:
        raise ValueError("no stage was run; see above what each of them lacks")


def _wanted(planned: list[Planned], only: list[str] | None, root: Path | None) -> list[Planned]:
    """The stages to run, or to be said why not.

    Raises:
        ValueError: there is no such folder, or no such stage.
    """
    if root is not None and not root.is_dir():
        raise ValueError(
            f"data_root {root} is no folder; give the one that holds imagenet, imagenet-c and so on"
        )
    names = [each.stage.name for each in planned]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise ValueError(f"--only {' '.join(unknown)}: no such stage; use {', '.join(names)}")
    return [each for each in planned if only is None or each.stage.name in only]


def _without_labels(checkpoint: Path, root: Path | None, others: list[str]) -> str:
    """Why stages cannot run that need classes; empty if they can, or if they will say it."""
    named = given_options(others)
    if any(name.startswith("data.source") and name != "data.source.root" for name in named):
        return ""
    folder = named.get("data.source.root", None if root is None else str(root / "imagenet"))
    given = [] if folder is None else ["--data.source.root", folder]
    stored = data_of_checkpoint(checkpoint, folder, [*others, *given]).get("source")
    source = find_class(Source, stored["class_path"]) if stored else None
    if stored is None or source is None:
        return ""
    try:
        images = source(**stored["init_args"]).train()
    except (ImportError, TypeError, ValueError, OSError):
        return ""
    if len(images) and int(images.labels.min()) >= 0:
        return ""
    return f"it needs classes, and the images have none; {LABELS_REMEDY}"


def _without_head(stage: type[Stage], run: Path, root: Path | None, others: list[str]) -> str:
    """Why a stage cannot run that tests the linear head; empty if it can, or tests none."""
    if not stage.needs_head or options(others, "--model.head"):
        return ""
    dataset = "" if root is None else "imagenet1k"
    heads = (run / "results").glob(f"linear-{dataset}*.safetensors")  # with other seeds too
    if any(not head.name.endswith(".hits.safetensors") for head in heads):
        return ""
    return f"no head {run / 'results'}/linear-{dataset or '*'}.safetensors; run linear first"


def _config(stage: type[Stage], folder: str = "configs/eval") -> str:
    return packaged(f"{folder}/{stage.name}.yaml")


def _command(planned: Planned, checkpoint: Path, small: bool) -> list[str]:
    command = [sys.executable, "-m", "ser_lightning", "evaluate"]
    command += ["--config", _config(planned.stage)]
    overlay = _config(planned.stage, "configs/eval/small")
    if small and Path(overlay).is_file():
        command += ["--config", overlay]
    return [*command, "--checkpoint", str(checkpoint), *planned.options]
