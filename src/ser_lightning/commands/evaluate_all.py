"""`ser-fit evaluate-all`: every stage whose images are there, then a report."""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ser_lightning.reporting.report import write_report
from ser_lightning.runtime import options, packaged, run_folder

_OWN_IMAGES = ("knn", "linear", "mlp", "equivariance", "transformation", "diagnostics", "finetune")

_SHIFTED = {
    "imagenet-v2": "imagenet_v2",
    "imagenet-r": "imagenet_r",
    "imagenet-sketch": "imagenet_sketch",
}
_PACKAGES = {"imagenet-p": "av", "detection": "faster_coco_eval"}
_NEED_HEAD = ("imagenet-c", "imagenet-p", "shift")


class Planned(NamedTuple):
    """A stage to run.

    Attributes:
        name: of `configs/eval/<name>.yaml`.
        options: of `ser-fit evaluate`, beside configuration and checkpoint.
        skipped: why it is not run; empty if it is.
    """

    name: str
    options: tuple[str, ...] = ()
    skipped: str = ""


def plan(root: Path | None) -> list[Planned]:
    """Says which stages run, in an order in which each finds what it needs.

    Args:
        root: folder with imagenet, imagenet-c, imagenet-p, imagenet-v2, imagenet-r,
            imagenet-sketch, 3diebench and coco, as far as they are there; None for the images that
            the checkpoint was trained on, with generated corruptions and perturbations.
    """
    if root is None:
        generated = ("--data.generated", "true")
        planned = [Planned(name) for name in _OWN_IMAGES]
        planned += [Planned(name, generated) for name in ("imagenet-c", "imagenet-p")]
        others = ("shift", "3diebench", "detection")
        return planned + [Planned(name, skipped="needs --data_root FOLDER") for name in others]
    own = ("--data.source.root", str(root / "imagenet"))
    planned = [_needing(name, own[0], root / "imagenet") for name in _OWN_IMAGES]
    corrupted = _needing("imagenet-c", "--data.root", root / "imagenet-c")
    if not corrupted.skipped and (root / "imagenet").is_dir():  # the clean images of relative mCE
        corrupted = corrupted._replace(options=(*corrupted.options, *own))
    planned += [corrupted, _needing("imagenet-p", "--data.root", root / "imagenet-p")]
    present = [part for name in _SHIFTED for part in _option(name, root)]
    missing = "" if present else f"none of {', '.join(_SHIFTED)} is in {root}"
    planned.append(Planned("shift", tuple(present), missing))
    planned.append(_needing("3diebench", "--data.source.root", root / "3diebench"))
    planned.append(_needing("detection", "--data.source.root", root / "coco"))
    return [_with_package(stage) for stage in planned]


def _needing(name: str, option: str, folder: Path) -> Planned:
    if folder.is_dir():
        return Planned(name, (option, str(folder)))
    return Planned(name, skipped=f"{folder} does not exist")


def _option(name: str, root: Path) -> tuple[str, ...]:
    folder = root / name
    return (f"--data.{_SHIFTED[name]}", str(folder)) if folder.is_dir() else ()


def _with_package(stage: Planned) -> Planned:
    package = _PACKAGES.get(stage.name)
    if stage.skipped or package is None or importlib.util.find_spec(package):
        return stage
    extra = "coco" if stage.name == "detection" else "imagenet-p"
    return stage._replace(skipped=f"pip install 'ser-lightning[{extra}]' first")


def evaluate_all(args: Sequence[str]) -> None:
    """Runs all stages whose images are present, says which were skipped and why, and reports.

    Options that it does not know itself go to every stage, for example --trainer.devices 8.
    """
    parser = argparse.ArgumentParser("ser-fit evaluate-all", description=evaluate_all.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="file to evaluate")
    parser.add_argument(
        "--data_root",
        type=Path,
        help="folder with imagenet, imagenet-c, imagenet-p, imagenet-v2, imagenet-r, "
        "imagenet-sketch, 3diebench, coco; default: the images that the checkpoint was trained on",
    )
    parser.add_argument(
        "--small", action="store_true", help="shorter recipes, for small images and a CPU"
    )
    parser.add_argument("--only", nargs="+", help="names of the stages to run")
    known, others = parser.parse_known_args(args)
    stages = _wanted(plan(known.data_root), known.only, known.data_root)
    run = Path(next(iter(options(others, "--run_dir")), run_folder(known.checkpoint)))
    outcomes: dict[str, bool] = {}
    for stage in stages:
        skipped = stage.skipped or _without_head(stage.name, run, known.data_root, others)
        if skipped:
            print(f"== {stage.name}: skipped, {skipped}", flush=True)
            continue
        print(f"== {stage.name}", flush=True)
        command = [*_command(stage, known.checkpoint, known.small), *others]
        # A process of its own: launchers of several devices run the command line again.
        outcomes[stage.name] = subprocess.run(command, check=False).returncode == 0
    if any(outcomes.values()):
        files = write_report([run], run / "report")
        print(f"Report: {files.markdown}, {files.html}")
    failed = [name for name, is_done in outcomes.items() if not is_done]
    if failed:
        raise ValueError(f"these stages failed, see above: {', '.join(failed)}")
    if not outcomes:
        raise ValueError("no stage was run; see above what each of them lacks")


def _wanted(stages: list[Planned], only: list[str] | None, root: Path | None) -> list[Planned]:
    """The stages to run, or to be said why not.

    Raises:
        ValueError: there is no such folder, or no such stage.
    """
    if root is not None and not root.is_dir():
        raise ValueError(
            f"data_root {root} is no folder; give the one that holds imagenet, imagenet-c and so on"
        )
    names = [stage.name for stage in stages]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise ValueError(f"--only {' '.join(unknown)}: no such stage; use {', '.join(names)}")
    return [stage for stage in stages if only is None or stage.name in only]


def _without_head(name: str, run: Path, root: Path | None, others: list[str]) -> str:
    """Why a stage cannot run that tests the linear head; empty if it can, or tests none."""
    if name not in _NEED_HEAD or options(others, "--model.head"):
        return ""
    dataset = "" if root is None else "imagenet1k"
    heads = (run / "results").glob(f"linear-{dataset}*.safetensors")  # with other seeds too
    if any(not head.name.endswith(".hits.safetensors") for head in heads):
        return ""
    return f"no head {run / 'results'}/linear-{dataset or '*'}.safetensors; run linear first"


def _command(stage: Planned, checkpoint: Path, small: bool) -> list[str]:
    command = [sys.executable, "-m", "ser_lightning.cli", "evaluate"]
    command += ["--config", packaged(f"configs/eval/{stage.name}.yaml")]
    overlay = packaged(f"configs/eval/small/{stage.name}.yaml")
    if small and Path(overlay).is_file():
        command += ["--config", overlay]
    return [*command, "--checkpoint", str(checkpoint), *stage.options]
