"""The study: the paper's questions at small scale, on real Fashion-MNIST.

Run by `make study`, or `python -m studies.fashion_mnist.run [options]`. It pretrains every row
below with several seeds, evaluates each run, and writes a page with tables and figures. What is
there already is not computed again, so it can be stopped and started at any time.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ser_lightning.commands.compare import group_cost
from ser_lightning.files import last_checkpoint
from ser_lightning.reporting.groups import group_folders
from ser_lightning.runtime import CHECKPOINT_FOLDER, packaged
from studies.fashion_mnist.page import StudyRow, write_study

SEEDS = 3
PRETRAINED = "pretrained"
"""File in a run's folder, written when pretraining has come to its end: its fingerprint."""

_SMALL = ("fashion_mnist", "fashion_mnist/study")


class Row(NamedTuple):
    """A configuration of the study.

    Attributes:
        name: its folder.
        label: in tables.
        config: of the paper's run, below `configs/`; the study's overlays follow.
        options: what is changed in it.
        family: the add-on, for the figure; "" without one, or where the row is left out of it.
        layer: the block that its add-on reads; None without one.
        seeds: how often it is run.
    """

    name: str
    label: str
    config: str
    options: tuple[str, ...] = ()
    family: str = ""
    layer: int | None = None
    seeds: int = SEEDS

    @property
    def configs(self) -> tuple[str, ...]:
        """All files below `configs/`, later ones win."""
        return (self.config, *_SMALL)


def _at(layer: int) -> tuple[str, ...]:
    return ("--model.backbone.layer", str(layer))


_CONTROL = ("--model.regularizer.weight", "0")
_EVERY_LAYER = (
    "--config", "configs/overlay/layers_all.yaml", "--model.backbone.layer", "[1,2,3,4,5,6]",
    "--model.backbone.cls_layer", "2", "--model.regularizer.weight", "0.1667",
)  # fmt: skip

ROWS = (
    Row("moco", "MoCo-v3", "moco"),
    Row("ser_weight_0", "+ SER @2, weight 0", "moco_ser", _CONTROL, "control"),
    Row("ser", "+ SER @2", "moco_ser", (), "SER", 2),
    Row("augself", "+ AugSelf @6", "moco_augself", _at(6), "AugSelf", 6),
    Row("augself_2", "+ AugSelf @2", "moco_augself", _at(2), "AugSelf", 2, 2),
    Row("equimod", "+ EquiMod @6", "moco_equimod", _at(6), "EquiMod", 6),
    Row("equimod_2", "+ EquiMod @2", "moco_equimod", _at(2), "EquiMod", 2, 2),
    Row("stl", "+ STL @6", "moco_stl", _at(6), "STL", 6),
    Row("essl", "+ E-SSL @6", "moco_essl", _at(6), "E-SSL", 6),
    Row("ser_1", "+ SER @1", "moco_ser", _at(1), "SER", 1, 1),
    Row("ser_6", "+ SER @6", "moco_ser", _at(6), "SER", 6, 1),
    Row("ser_all", "+ SER at all", "moco_ser", _EVERY_LAYER, "all", None, 1),
)


STAGES: Mapping[str, tuple[str, ...]] = {  # in an order in which each finds what it needs
    "knn": (),
    "linear": ("--config", "configs/eval/small/linear.yaml"),
    "equivariance": ("--model.num_images", "1000"),
    "imagenet-c": ("--data.generated", "true", "--data.num_test", "300"),
}
"""Further options of `ser-fit evaluate` by stage."""

_SHORT_FIT = (
    "--trainer.limit_train_batches", "2", "--data.source", "Shapes", "--data.bank_size", "100",
    "--evaluation.num_equivariance_images", "16",
)  # fmt: skip

_SHORT_STAGE = (
    "--data.num_train", "240", "--data.num_test", "48", "--data.global_batch_size", "64",
)  # fmt: skip

_NOTES = """\
Every run pretrains a ViT (64 wide, 6 deep, 7x7 tokens) on the 60,000 images of Fashion-MNIST for
one epoch in batches of 128 (468 steps), in bf16 on one CPU core. "@2" is the block that the add-on
reads; rivals read [CLS], SER the token map, and with SER [CLS] joins after that block. SER has 13
of 128 images in the invertible pipeline, 10 % instead of the paper's 1 %, which would be one image
here and have no negatives. All rows have MoCo-v3's recipe of colours and the same crops; weights
are the defaults, untuned. Linear: [CLS] of the last four blocks on cached features of all training
images, rate and epoch chosen on 600 held out. -C: the 14 generated corruptions other than frost at
five severities, 300 test images. Turns, flip, scale: equivariance scores after the last block on
1,000 test images. `make study` computes what is missing and writes this page."""
_SHORT_NOTES = "Two steps on generated shapes, to see that it all runs: the numbers mean nothing."


class Unit(NamedTuple):
    """One run of one row."""

    row: Row
    seed: int
    folder: Path

    @property
    def is_pretrained(self) -> bool:
        """Whether pretraining has come to its end."""
        return (self.folder / PRETRAINED).is_file()

    @property
    def pretrained_with(self) -> str:
        """The fingerprint of the configuration that it was pretrained with."""
        return (self.folder / PRETRAINED).read_text(encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        """Hashes the row's options and configuration files, as they are now."""
        named = [option for option in self.row.options if option.endswith(".yaml")]
        files = [*(f"configs/{config}.yaml" for config in self.row.configs), *named]
        texts = [Path(packaged(file)).read_text(encoding="utf-8") for file in files]
        settings = [
            line for text in texts for line in text.splitlines() if not line.startswith("#")
        ]
        settings += self.row.options
        return hashlib.sha256("\n".join(settings).encode()).hexdigest()

    @property
    def missing(self) -> list[str]:
        """Stages that have no result yet."""
        return [name for name in STAGES if not list(self.folder.glob(f"results/{name}-*.json"))]


def units(rows: Sequence[Row], folder: Path) -> list[Unit]:
    """All runs, the first seed of every row before the second of any; rows of one seed last."""
    found = [
        Unit(row, seed, folder / row.name / f"seed{seed}")
        for row in rows
        for seed in range(row.seeds)
    ]
    return sorted(found, key=lambda unit: (unit.row.seeds == 1, unit.seed))


def commands(unit: Unit, short: bool) -> list[list[str]]:
    """What is left to do for a run: pretraining, then the stages."""
    names = [*(f"configs/{name}.yaml" for name in unit.row.configs), "configs/trainer/cpu.yaml"]
    fit = ["fit", *(part for name in names for part in ("--config", packaged(name)))]
    fit += map(packaged, unit.row.options)
    fit += ["--run_dir", str(unit.folder), "--ckpt_path", "last"]
    fit += ["--seed_everything", str(unit.seed), *(_SHORT_FIT if short else ())]
    evaluate = ["--checkpoint", str(last_checkpoint(unit.folder / CHECKPOINT_FOLDER))]
    evaluate += ["--trainer.accelerator", "cpu", *(_SHORT_STAGE if short else ())]
    stages = [
        ["evaluate", "--config", packaged(f"configs/eval/{name}.yaml"),
         *map(packaged, STAGES[name]), *evaluate]
        for name in unit.missing
    ]  # fmt: skip
    return [*([] if unit.is_pretrained else [fit]), *stages]


def run_unit(unit: Unit, short: bool, threads: int) -> str:
    """Runs what is left of a unit; its output goes to study.log in its folder.

    Returns:
        What failed, with the end of its output; "" where all went well.
    """
    unit.folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    log = unit.folder / "study.log"
    for arguments in commands(unit, short):
        command = [sys.executable, "-m", "ser_lightning", *arguments]
        command += ["--trainer.enable_progress_bar", "false"]
        with log.open("a", encoding="utf-8") as output:
            print("$", *command, file=output, flush=True)
            status = subprocess.call(command, stdout=output, stderr=output, env=environment)
        if status:
            tail = "\n  ".join(log.read_text(encoding="utf-8").splitlines()[-5:])
            return f"{unit.folder} failed, see {log}; it ends in\n  {tail}"
        if arguments[0] == "fit":
            (unit.folder / PRETRAINED).write_text(unit.fingerprint, encoding="utf-8")
    return ""


def run_all(todo: Sequence[Unit], jobs: int, threads: int, short: bool) -> list[str]:
    """Runs units side by side, says what is done and how long the rest will take.

    Returns:
        What failed, in words; the others go on.
    """
    failed, start = [], time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:  # its map drops what has not begun when interrupted
        errors = pool.map(partial(run_unit, short=short, threads=threads), todo)
        for done, (unit, error) in enumerate(zip(todo, errors, strict=True), 1):
            minutes = (time.monotonic() - start) / 60
            left = minutes / done * (len(todo) - done)
            failed += [error] if error else []
            times = f"after {minutes:.0f} minutes, about {left:.0f} to go"
            print(f"[{done}/{len(todo)}] {'failed' if error else unit.folder} {times}", flush=True)
    return failed


def refuse_changed(planned: Sequence[Unit]) -> None:
    """Refuses runs that were pretrained with other configurations than the present ones.

    Raises:
        ValueError: if there is one.
    """
    changed = [u.folder for u in planned if u.is_pretrained and u.pretrained_with != u.fingerprint]
    if changed:
        raise ValueError(
            f"{changed[0]} was pretrained with another configuration than configs/ has now; remove "
            f"it, or give another --run_dir ({len(changed)} such runs)"
        )


def _study_row(row: Row, folders: Sequence[Path]) -> StudyRow:
    groups = group_folders(folders)
    if len(groups) > 1:
        raise ValueError(
            f"the runs in {folders[0].parent} have {len(groups)} different configurations; remove "
            "those of older ones"
        )
    runs = groups[0]._replace(name=row.label)
    return StudyRow(row.name, row.family, row.layer, runs, group_cost(runs))


def main(args: Sequence[str] | None = None) -> None:
    """The entry point of `make study`."""
    parser = argparse.ArgumentParser("study", description=__doc__.split("\n\n")[0])
    cores = os.cpu_count() or 1
    parser.add_argument("--run_dir", type=Path, help="of all runs; default runs/study")
    parser.add_argument("--page", type=Path, help="the page to write; default docs/study.md")
    parser.add_argument("--jobs", type=int, default=cores, help="runs side by side, one per core")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS], help="rows to run")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="at most so many of each row")
    parser.add_argument(
        "--short", action="store_true", help="two steps on generated shapes, to see that it works"
    )
    known = parser.parse_args(args)
    folder = known.run_dir or Path("runs/study_short" if known.short else "runs/study")
    page = known.page or (folder / "study.md" if known.short else Path("docs/study.md"))
    rows = [row._replace(seeds=min(row.seeds, known.seeds)) for row in ROWS]
    planned = units(rows, folder)
    todo = [u for u in planned if u.missing and (not known.only or u.row.name in known.only)]
    refuse_changed(planned)
    print(f"{len(planned)} runs, {len(todo)} to do now", flush=True)
    failed = run_all(todo, known.jobs, max(1, cores // known.jobs), known.short)
    complete = [unit for unit in planned if not unit.missing]
    folders = {row: [unit.folder for unit in complete if unit.row == row] for row in rows}
    found = [_study_row(row, done) for row, done in folders.items() if done]
    if found and found[0].name == ROWS[0].name:
        write_study(found, page, _SHORT_NOTES if known.short else _NOTES)
        print(f"Page: {page}")
    else:
        print(f"no page yet: {ROWS[0].label}, the baseline, has not been run")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
