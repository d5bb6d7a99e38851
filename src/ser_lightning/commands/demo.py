"""The demo: MoCo-v3 and MoCo-v3 + SER side by side on generated images, or on your own photographs.

Two processes of one thread each train the same small ViT from the same start, then a table and a
picture show what SER adds. Further options are those of `ser-fit fit`, for both runs.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch

from ser_lightning.backbones import SplitViT
from ser_lightning.checkpoints import CHECKPOINT_FOLDER, last_checkpoint
from ser_lightning.commands.compare import while_training
from ser_lightning.commands.fit import SERCommandLine
from ser_lightning.commands.pictures import comparisons, evaluation_pixels, gallery
from ser_lightning.data.thumbnails import write_thumbnails
from ser_lightning.evaluation.metrics.equivariance import place_of
from ser_lightning.reporting.figures import demo_figure
from ser_lightning.reporting.side_by_side import side_by_side, takeaway
from ser_lightning.reporting.summary import RunCurve
from ser_lightning.runtime.lock import LOCK, locked
from ser_lightning.trainer_rules import multiplies_in_bf16

_WIDTH = 80  # of a terminal
_INTRODUCTION = """
Two small vision transformers are trained side by side, without labels.
MoCo-v3 teaches the first one to ignore how an image was cropped and recoloured,
and with that it forgets where things are, and which way round. The second one
learns the same, and by SER also to let its map of the image's patches turn,
flip and resize with the image. The progress of the second one:"""

MARKER = ".demo"  # only a folder that the demo made is cleared by it
LOG = "log.txt"
NUM_STEPS = 512  # of training, about, on photographs
NUM_MEASUREMENTS = 4

PLAIN = ["--model.regularizer", "null", "--data.invertible", "null"]
RUNS = {"MoCo-v3": ("moco", PLAIN), "+ SER": ("moco_ser", [])}


class Prepared(SERCommandLine):
    """Everything that `ser-fit fit` builds before it trains, checked and not yet used."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Does nothing: the runs are processes of their own."""


class Result(NamedTuple):
    """A finished run: its backbone in evaluation mode, and what it measured of how many classes."""

    backbone: SplitViT
    curve: RunCurve
    num_classes: int


def demo(args: list[str]) -> None:
    """Trains both runs, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(
        "ser-fit demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    config = "configuration of both runs; of several, the last word counts"
    parser.add_argument("--config", action="append", help=f"{config}; default: configs/demo.yaml")
    parser.add_argument("--root", help="folder of your own photographs, instead of generated ones")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="cleared first")
    options, further = parser.parse_known_args(args)
    with locked(options.run_dir):  # another demo would be cleared while it trains
        _clear(options.run_dir)
        _demo(options, further)


def _demo(options: argparse.Namespace, further: list[str]) -> None:
    files = options.config or ["configs/demo.yaml"]
    configs = [part for file in files for part in ("--config", file)]
    if options.root is not None:
        configs += ["--config", "configs/overlay/demo_photos.yaml"]
        configs += _photographs(options.root, options.run_dir)
    # Where the processor multiplies in bf16, that is several times faster; elsewhere far slower.
    precision = "bf16-mixed" if multiplies_in_bf16() else "32"
    shared = [*configs, "--trainer.precision", precision, *further]
    torch.set_num_threads(1)
    with _silent():
        prepared = Prepared(["fit", *shared, "--run_dir", str(options.run_dir)])
        prepared.datamodule.setup("fit")
    _require_measurements(prepared.trainer)
    fit = [sys.executable, "-m", "ser_lightning", "fit", *shared]
    _train(options.run_dir, fit)
    results = [_read(options.run_dir / folder, name) for name, (folder, _) in RUNS.items()]
    _present(options.run_dir / "demo.png", prepared, results)


def _require_measurements(trainer: L.Trainer) -> None:
    """Refuses settings that would leave nothing to show at the end.

    Raises:
        ValueError: names the first one.
    """
    nothing = {
        "fast_dev_run": trainer.fast_dev_run,  # type: ignore[attr-defined]
        "limit_val_batches": trainer.limit_val_batches == 0,
        "num_sanity_val_steps": trainer.num_sanity_val_steps == 0,
    }
    for name, is_off in nothing.items():
        if is_off:
            raise ValueError(
                f"trainer.{name} {getattr(trainer, name)} measures nothing, before training or "
                "after it, and the demo shows what was measured; leave it out"
            )


@contextmanager
def _silent() -> Iterator[None]:
    """Leaves out what each of the runs is going to say itself."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _clear(run_dir: Path) -> None:
    """Makes the demo's folder, which is locked, empty; one that something else made stays.

    Raises:
        ValueError: the folder holds something that no demo made.
    """
    marker = run_dir / MARKER
    found = [path for path in run_dir.iterdir() if path.name not in (LOCK, MARKER)]
    if found and not marker.exists():
        raise ValueError(f"{run_dir} holds other files; give another --run_dir, or empty it")
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    marker.touch()


def _photographs(root: str, run_dir: Path) -> list[str]:
    """Makes small copies of a folder's photographs; options that train on them."""
    copies = run_dir / "photographs"
    print(f"Making small copies of the photographs in {copies} ...", flush=True)
    return ["--data.source.root", str(copies), *_schedule(write_thumbnails(root, copies))]


def _schedule(num_images: int) -> list[str]:
    """Options for about as many steps as the demo has, however many images there are."""
    batch = min(64, num_images // 2 * 2)
    steps_per_epoch = min(num_images // batch, NUM_STEPS // NUM_MEASUREMENTS)
    epochs = round(NUM_STEPS / steps_per_epoch)
    options = {
        "data.global_batch_size": batch,
        "trainer.limit_train_batches": steps_per_epoch,
        "trainer.max_epochs": epochs,
        "trainer.check_val_every_n_epoch": round(epochs / NUM_MEASUREMENTS),
        "model.warmup_epochs": epochs / 16,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _train(run_dir: Path, fit: Sequence[str]) -> None:
    """Trains both runs at a time; the last one shows its progress, the others write a log."""
    print(f"{_INTRODUCTION}\n", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = {}
    try:
        for folder, own in RUNS.values():
            path = run_dir / folder
            path.mkdir()
            with (path / LOG).open("w") as log:
                shown = None if (folder, own) == list(RUNS.values())[-1] else log
                processes[path] = subprocess.Popen(
                    [*fit, *own, "--run_dir", str(path)],
                    stdout=log,
                    stderr=shown,
                    env=environment,
                )
        for path, process in processes.items():
            if process.wait():
                lines = (path / LOG).read_text().strip().splitlines()
                raise ValueError(
                    f"the run in {path} ended with status {process.returncode}; the end of its "
                    f"{LOG}:\n" + "\n".join(lines[-5:])
                )
    finally:
        for process in processes.values():
            process.terminate()  # nothing happens to one that has ended
            process.wait()


def _read(run_dir: Path, name: str) -> Result:
    path = last_checkpoint(run_dir / CHECKPOINT_FOLDER)
    backbone = SplitViT.from_checkpoint(path).eval()
    measured = while_training(run_dir, name)
    assert measured is not None, "the settings that measure nothing are refused"
    curve, num_classes = measured
    place = f"_{place_of(backbone.layer, backbone.depth)}"
    metrics = [{k.removesuffix(place): v for k, v in of.items()} for of in curve.metrics]
    return Result(backbone, curve._replace(metrics=metrics), num_classes)


def _present(path: Path, prepared: Prepared, results: Sequence[Result]) -> None:
    """Prints the table and draws the picture."""
    data, initial = prepared.datamodule, prepared.model.backbone.eval()
    curves, num_classes = [result.curve for result in results], results[0].num_classes
    words = takeaway(curves, num_classes)
    views = gallery(data, prepared.model.regularizer)
    assert views is not None, "the demo made its images"
    encoders = {r.curve.name: r.backbone for r in results}
    encoders["before training (reference)"] = initial
    demo_figure(
        path,
        views,
        comparisons(data, encoders, evaluation_pixels(data)),
        curves,
        initial.layer,
        "MoCo-v3 with and without SER",
        words,
        num_classes,
    )
    folded = textwrap.fill(words, _WIDTH)
    print(f"\n{side_by_side(curves, num_classes)}\n\n{folded}\n\nPicture: {path}")
