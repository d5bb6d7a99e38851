"""`ser-fit evaluate-all`: every stage whose images are there, then a report."""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ser_lightning.reporting.report import write_report
from ser_lightning.runtime import packaged, run_folder

_OWN_IMAGES = ("knn", "linear", "mlp", "equivariance", "transformation", "diagnostics", "finetune")
_SHIFTED = {
    "imagenet-v2": "imagenet_v2",
    "imagenet-r": "imagenet_r",
    "imagenet-sketch": "imagenet_sketch",
}
_PACKAGES = {"imagenet-p": "av", "detection": "faster_coco_eval"}


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
        own = [Planned(name) for name in _OWN_IMAGES]
        return [*own, Planned("imagenet-c", generated), Planned("imagenet-p", generated)]
    planned = [_needing(name, "--data.source.root", root / "imagenet") for name in _OWN_IMAGES]
    planned += [_needing(name, "--data.root", root / name) for name in ("imagenet-c", "imagenet-p")]
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
    failed = []
    for stage in plan(known.data_root):
        if known.only and stage.name not in known.only:
            continue
        if stage.skipped:
            print(f"== {stage.name}: skipped, {stage.skipped}", flush=True)
            continue
        print(f"== {stage.name}", flush=True)
        command = [*_command(stage, known.checkpoint, known.small), *others]
        # A process of its own: launchers of several devices run the command line again.
        if subprocess.run(command, check=False).returncode:
            failed.append(stage.name)
    run = run_folder(known.checkpoint)
    files = write_report([run], run / "report")
    print(f"Report: {files.markdown}, {files.html}")
    if failed:
        raise ValueError(f"these stages failed, see above: {', '.join(failed)}")


def _command(stage: Planned, checkpoint: Path, small: bool) -> list[str]:
    command = [sys.executable, "-m", "ser_lightning.cli", "evaluate"]
    command += ["--config", packaged(f"configs/eval/{stage.name}.yaml")]
    overlay = packaged(f"configs/eval/small/{stage.name}.yaml")
    if small and Path(overlay).is_file():
        command += ["--config", overlay]
    return [*command, "--checkpoint", str(checkpoint), *stage.options]
