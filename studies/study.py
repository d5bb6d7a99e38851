"""What every study is: rows of configurations, run with several seeds, evaluated and kept.

A study can be stopped and started at any time: what is there already is not computed again.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ser_lightning.checkpoints import CHECKPOINT_FOLDER, last_checkpoint, load_checkpoint
from ser_lightning.commands.compare import group_cost
from ser_lightning.files import write_text
from ser_lightning.reporting.groups import group_folders
from ser_lightning.runtime.configuration import packaged
from studies.claims import StudyRow
from studies.page import ONLINE, Page, write_page

PRETRAINED = "pretrained"
"""File in a run's folder, written when pretraining has come to its end: its fingerprint."""
TIMES = "seconds.json"
"""File in a run's folder: wall seconds of pretraining and of each stage."""
_KEPT = ("fit.yaml", PRETRAINED, TIMES, ONLINE, "results/*.json", "results/*.hits.safetensors")
"""What is kept of a run: all that a page is made of, and no weights."""

_SHORT_FIT = (
    "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--model.warmup_epochs", "0",
    "--data.source", "Shapes", "--data.bank_size", "100",
    "--evaluation.num_equivariance_images", "16",
)  # fmt: skip
_SHORT_STAGE = (
    "--data.num_train", "320", "--data.num_test", "48", "--data.global_batch_size", "64",
)  # fmt: skip
_SHORT_NOTES = "Two steps on generated shapes, to see that it all runs: the numbers mean nothing."


class Row(NamedTuple):
    """A configuration of a study.

    Attributes:
        name: its folder.
        label: in tables.
        config: of the paper's run, below `configs/`; the study's overlays follow.
        options: what is changed in it.
        family: the add-on, for the figure, or what else the row is; "" for the baseline alone.
        layer: the block that its add-on reads; None without one.
        seeds: how often it is run.
    """

    name: str
    label: str
    config: str
    options: tuple[str, ...] = ()
    family: str = ""
    layer: int | None = None
    seeds: int = 3


class Study(NamedTuple):
    """Rows, and what is done with each.

    Attributes:
        name: of its folder of runs, below `runs/`.
        rows: in the order of the table; the first one is the baseline.
        overlays: files below `configs/` that follow a row's own.
        stages: further options of `ser-fit evaluate` by stage, in an order in which each finds
            what it needs.
        page: what is written of it, and where.
        kept: folder for what is kept of each run; None keeps nothing apart from the runs.
    """

    name: str
    rows: tuple[Row, ...]
    overlays: tuple[str, ...]
    stages: Mapping[str, tuple[str, ...]]
    page: Page
    kept: Path | None = None


class Unit(NamedTuple):
    """One run of one row."""

    study: Study
    row: Row
    seed: int
    folder: Path

    @property
    def configs(self) -> list[str]:
        """All files of its configuration, later ones win."""
        named = [option for option in self.row.options if option.endswith(".yaml")]
        shipped = (self.row.config, *self.study.overlays)
        return [*(f"configs/{name}.yaml" for name in shipped), *named]

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
        """Hash of the row's options and configuration files, as they are now."""
        texts = [Path(packaged(file)).read_text(encoding="utf-8") for file in self.configs]
        settings = [
            line for text in texts for line in text.splitlines() if not line.startswith("#")
        ]
        settings += self.row.options
        return hashlib.sha256("\n".join(settings).encode()).hexdigest()

    @property
    def is_complete(self) -> bool:
        """Whether it is pretrained and has every result."""
        return self.is_pretrained and not self.missing

    @property
    def missing(self) -> list[str]:
        """Stages that have no result yet."""
        stages = self.study.stages
        return [name for name in stages if not list(self.folder.glob(f"results/{name}-*.json"))]


def units(study: Study, folder: Path) -> list[Unit]:
    """All runs, the first seed of every row before the second of any; rows of one seed last."""
    found = [
        Unit(study, row, seed, folder / row.name / f"seed{seed}")
        for row in study.rows
        for seed in range(row.seeds)
    ]
    return sorted(found, key=lambda unit: (unit.row.seeds == 1, unit.seed))


def commands(unit: Unit, source: Sequence[str], short: bool) -> dict[str, list[str]]:
    """What is left to do for a run, by name: pretraining, then the stages."""
    fit = ["fit"]
    for name in (*unit.configs, "configs/trainer/cpu.yaml"):
        fit += ["--config", packaged(name)]
    changed = [option for option in unit.row.options if option != "--config"]
    fit += [option for option in changed if not option.endswith(".yaml")]
    fit += ["--run_dir", str(unit.folder), "--ckpt_path", "last"]
    fit += ["--seed_everything", str(unit.seed), *source, *(_SHORT_FIT if short else ())]
    evaluate = ["--checkpoint", str(last_checkpoint(unit.folder / CHECKPOINT_FOLDER))]
    evaluate += ["--trainer.accelerator", "cpu", *(_SHORT_STAGE if short else ())]
    todo = {} if unit.is_pretrained else {"fit": fit}
    for name in unit.missing:
        config = packaged(f"configs/eval/{name}.yaml")
        options = map(packaged, unit.study.stages[name])
        todo[name] = ["evaluate", "--config", config, *options, *evaluate]
    return todo


def run_unit(unit: Unit, source: Sequence[str], short: bool, threads: int) -> str:
    """Runs what is left of a unit; its output goes to study.log in its folder.

    Returns:
        What failed, with the end of its output; "" where all went well.
    """
    unit.folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    log, times = unit.folder / "study.log", unit.folder / TIMES
    seconds = json.loads(times.read_text(encoding="utf-8")) if times.is_file() else {}
    for name, arguments in commands(unit, source, short).items():
        command = [sys.executable, "-m", "ser_lightning", *arguments]
        command += ["--trainer.enable_progress_bar", "false"]
        start = time.monotonic()
        with log.open("a", encoding="utf-8") as output:
            print("$", *command, file=output, flush=True)
            status = subprocess.call(command, stdout=output, stderr=output, env=environment)
        if status:
            tail = "\n  ".join(log.read_text(encoding="utf-8").splitlines()[-5:])
            return f"{unit.folder} failed, see {log}; it ends in\n  {tail}"
        if name == "fit":
            _write_json(unit.folder / ONLINE, _online(unit.folder))
            write_text(unit.folder / PRETRAINED, unit.fingerprint)  # last: all of it is there
        seconds[name] = seconds.get(name, 0) + round(time.monotonic() - start)
        _write_json(times, seconds)
        keep(unit)
    return ""


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1))


def _online(folder: Path) -> dict[str, object]:
    """What was measured while training: at the start, and at each validation."""
    last = last_checkpoint(folder / CHECKPOINT_FOLDER)
    stored = load_checkpoint(last, map_location="cpu", mmap=True)
    measured = stored["callbacks"]["OnlineEvaluation"]
    return {"start": measured["baseline"], "history": measured["history"]}


def keep(unit: Unit) -> None:
    """Copies what is kept of a run."""
    if unit.study.kept is None:
        return
    target = unit.study.kept / unit.row.name / f"seed{unit.seed}"
    for path in (path for pattern in _KEPT for path in unit.folder.glob(pattern)):
        copy = target / path.relative_to(unit.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def restore(unit: Unit) -> None:
    """Takes what was kept of a complete run for the run itself, where none was made here.

    What was kept of a part of one has no weights to go on with.
    """
    kept = unit.study.kept and unit.study.kept / unit.row.name / f"seed{unit.seed}"
    if kept and not unit.folder.exists() and unit._replace(folder=kept).is_complete:
        shutil.copytree(kept, unit.folder)


def run_all(
    todo: Sequence[Unit], source: Sequence[str], jobs: int, threads: int, short: bool
) -> list[str]:
    """Runs units side by side, says what is done and how long the rest will take.

    Returns:
        What failed, in words; the others go on.
    """
    failed, start = [], time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:  # its map drops what has not begun when interrupted
        run = partial(run_unit, source=source, short=short, threads=threads)
        for done, (unit, error) in enumerate(zip(todo, pool.map(run, todo), strict=True), 1):
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


def _progress(study: Study, complete: Sequence[Unit]) -> str:
    """How much of the study there is; "" where that is all."""
    total = sum(row.seeds for row in study.rows)
    if len(complete) == total:
        return ""
    begun = {unit.row.name for unit in complete}
    left_out = [row.label for row in study.rows if row.name not in begun]
    rows = f" None complete of: {'; '.join(left_out)}." if left_out else ""
    return f"**{len(complete)} of {total} runs so far.**{rows}\n\n"


def _parser(study: Study) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(study.name, description=study.page.title)
    cores = os.cpu_count() or 1
    names = [row.name for row in study.rows]
    most = max(row.seeds for row in study.rows)
    parser.add_argument("--run_dir", type=Path, help=f"of all runs; default runs/{study.name}")
    parser.add_argument("--page", type=Path, help=f"to write; default {study.page.path}")
    parser.add_argument("--root", help="a folder of the images, in place of those downloaded")
    parser.add_argument("--jobs", type=int, default=cores, help="runs side by side, one per core")
    parser.add_argument("--only", nargs="*", choices=names, help="rows to run; none: the page")
    parser.add_argument("--seeds", type=int, default=most, help="at most so many of each row")
    parser.add_argument(
        "--short", action="store_true", help="two steps on generated shapes, to see that it works"
    )
    return parser


def main(study: Study, args: Sequence[str] | None = None) -> None:
    """Runs what is missing of a study and writes its page."""
    parser, cores = _parser(study), os.cpu_count() or 1
    known = parser.parse_args(args)
    if min(known.jobs, known.seeds) < 1:
        parser.error(f"--jobs {known.jobs} --seeds {known.seeds}: give 1 or more of each")
    if known.short:
        study = study._replace(kept=None)
    folder = known.run_dir or Path("runs") / (study.name + "_short" * known.short)
    path = known.page or (folder / "study.md" if known.short else study.page.path)
    rows = tuple(row._replace(seeds=min(row.seeds, known.seeds)) for row in study.rows)
    planned = units(study._replace(rows=rows), folder)
    for unit in planned:
        restore(unit)
    wanted = {row.name for row in rows} if known.only is None else set(known.only)
    todo = [unit for unit in planned if not unit.is_complete and unit.row.name in wanted]
    try:
        refuse_changed(planned)
    except ValueError as error:
        parser.error(str(error))
    print(f"{len(planned)} runs, {len(todo)} to do now", flush=True)
    source = (
        ("--data.source", "ImageFolder", "--data.source.root", known.root) if known.root else ()
    )
    failed = run_all(todo, source, known.jobs, max(1, cores // known.jobs), known.short)
    complete = [unit for unit in planned if unit.is_complete]
    for unit in complete:
        keep(unit)  # one that was killed between its last result and that
    folders = {row: [unit.folder for unit in complete if unit.row == row] for row in rows}
    found = [_study_row(row, done) for row, done in folders.items() if done]
    if found and found[0].name == rows[0].name:
        notes = _SHORT_NOTES if known.short else _progress(study, complete) + study.page.notes
        write_page(study.page._replace(path=path, notes=notes), found)
        print(f"Page: {path}")
    else:
        print(f"no page yet: {study.rows[0].label}, the baseline, has not been run")
    if failed:
        sys.exit("\n".join(failed))
