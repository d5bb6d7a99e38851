"""What a grid of learning rates costs: an epoch of the linear probe with ten heads and with one.

Run: python benchmarks/linear_probe.py --json result.json

Both variants train the real stage's module through the trainer, with crops (drawn, cropped and
passed through a frozen ViT) and with cached features. Rounds of the variants are interleaved in
one process; figures are medians of seconds per epoch, loading included. With crops, the heads
share the backbone's work. With cached features there is nothing but heads: the ratio then depends
on their size, and grows towards ten with classes and width. Only ratios of one run mean something.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from ser_lightning.backbones import SplitViT
from ser_lightning.data import Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.features import CleanRows, Features, TrainingRows, cls_layers
from ser_lightning.evaluation.probe import CropProbe, Probe, fit_probe
from ser_lightning.evaluation.stages.linear import LinearHeads

NUM_HOLDOUT = 64
MODES = ("crops", "cached")
RATES = {"one": [1.0], "ten": [0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0]}


class Seconds(NamedTuple):
    """Of an epoch: on the wall clock, and of processor time, which other processes disturb less."""

    wall: float
    processor: float


class Clock(L.Callback):
    """Seconds of the latest epoch."""

    def __init__(self) -> None:
        self.start = self.seconds = Seconds(0, 0)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts."""
        self.start = Seconds(time.perf_counter(), time.process_time())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops."""
        now = Seconds(time.perf_counter(), time.process_time())
        self.seconds = Seconds(*(end - start for end, start in zip(now, self.start, strict=True)))


class Bench:
    """Backbone, images and features that all variants share."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.options = options
        self.backbone = SplitViT(
            "vit_tiny_patch16_224",
            image_size=32,
            patch_size=4,
            cls_layer=0,
            vit_options={"embed_dim": options.width, "depth": 4, "num_heads": 3},
        )
        self.backbone.eval().requires_grad_(False)
        self.layers = cls_layers(self.backbone)
        self.data = LabelledDataModule(
            Shapes(num_train=options.images + NUM_HOLDOUT, image_size=32),
            global_batch_size=options.batch,
            holdout_fraction=NUM_HOLDOUT / (options.images + NUM_HOLDOUT),
            image_size=32,
            num_workers=0,
        )
        self.data.setup("fit")
        self.clock = Clock()
        self.trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            callbacks=[self.clock],
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )

    def features(self, num_images: int, num_classes: int) -> Features:
        """Random features of the same shape as real ones."""
        shape = (num_images, len(self.layers), self.options.width)
        cls = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return Features(cls, torch.arange(num_images) % num_classes, np.arange(num_images))

    def epoch(self, mode: str, variant: str) -> Seconds:
        """Seconds of an epoch with new heads."""
        num_classes = self.data.num_classes if mode == "crops" else self.options.classes
        num_layers = len(self.layers)
        heads = LinearHeads(
            num_layers * self.options.width, num_classes, RATES[variant], self.options.batch
        )
        holdout = CleanRows(self.features(NUM_HOLDOUT, num_classes), NUM_HOLDOUT)
        probe: Probe
        train: DataLoader
        if mode == "crops":
            probe = CropProbe(self.backbone, self.layers, heads)
            train = self.data.train_loader(self.trainer)
        else:
            probe = Probe(heads)
            features = self.features(len(self.data.images("train")), num_classes)
            rows = TrainingRows(features, self.data.plan(self.trainer))
            train = self.data.key_loader(rows, 0)
        fit_probe(self.trainer, probe, train, holdout)
        return self.clock.seconds


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of an epoch by mode and variant, and the ratios."""
    bench = Bench(options)
    cases = [(mode, variant) for mode in options.modes for variant in RATES]
    seconds: dict[tuple[str, str], list[Seconds]] = {case: [] for case in cases}
    for repetition in range(options.rounds + 1):
        for case in cases:
            measured = bench.epoch(*case)
            if repetition:  # the first one warms up
                seconds[case].append(measured)
    result = {}
    for mode in options.modes:
        for place, clock in enumerate(Seconds._fields):
            one, ten = (
                statistics.median(s[place] for s in seconds[mode, variant]) for variant in RATES
            )
            result[f"{mode}_{clock}_seconds_one"] = one
            result[f"{mode}_{clock}_seconds_ten"] = ten
            result[f"{mode}_{clock}_ratio"] = ten / one
    return result


def main() -> None:
    """Parses the command line, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=2048, help="images per epoch")
    parser.add_argument("--batch", type=int, default=256, help="images per step")
    parser.add_argument("--width", type=int, default=96, help="channels of a token")
    parser.add_argument("--classes", type=int, default=10, help="classes of the cached features")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=5, help="timed repetitions, at least 3")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    result = measure(options)
    print(f"{options.images} images, batch {options.batch}, width {options.width}, ", end="")
    print(f"{options.classes} classes, {torch.get_num_threads()} threads")
    for name, value in result.items():
        print(f"{name.replace('_', ' '):32}{value:10.4g}")
    print("goal: ten learning rates cost less than twice as much as one")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
