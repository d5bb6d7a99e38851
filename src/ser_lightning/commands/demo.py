"""The demo: pretrain a small ViT on generated shapes, then draw what it has learned.

Run by `make demo`, or `ser-fit demo [--config FILE] [--run_dir DIR]` with the options of
`ser-fit fit`.
"""

import argparse
import copy
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from ser_lightning.backbones import SplitViT
from ser_lightning.commands.fit import SERCommandLine
from ser_lightning.data import BatchKey, PartitionedDataModule
from ser_lightning.data.draws import Canvas, Draws
from ser_lightning.data.render import HostBatch, render
from ser_lightning.groups import GroupElement, act
from ser_lightning.reporting import Curves, TokenComparison, ViewGallery, demo_figure, token_maps_of

NUM_IMAGES = 4
MARKER = ".demo"  # only a folder that the demo made is cleared by it


class LossCurves(L.Callback):
    """Keeps the loss terms: steps and values by name, as often as they are logged."""

    def __init__(self) -> None:
        self.terms: dict[str, tuple[list[float], list[float]]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Takes the terms of a step that is logged."""
        if trainer.global_step % (getattr(trainer, "log_every_n_steps", 0) or 1):
            return
        for name, value in trainer.callback_metrics.items():
            if name.startswith("loss/"):
                steps, values = self.terms.setdefault(name.removeprefix("loss/"), ([], []))
                steps.append(trainer.global_step - 1)
                values.append(float(value))


class DemoCommandLine(SERCommandLine):
    """Fits, then draws the run's picture into its folder."""

    def before_fit(self) -> None:
        """Keeps the losses, and the backbone as initialised, to be shown beside the trained one."""
        self.losses = LossCurves()
        trainer: Any = self.trainer
        trainer.callbacks.append(self.losses)
        self.initial_backbone = copy.deepcopy(self.model.backbone).eval()

    def after_fit(self) -> None:
        """Prints the table and draws the picture."""
        super().after_fit()
        path = self.run_dir / "demo.png"
        evaluation = self._get(self.config_init, "evaluation")
        curves = Curves(
            self.losses.terms, evaluation.history, evaluation.baseline, evaluation.num_classes
        )
        draw_run(path, self.datamodule, self.initial_backbone, self.model.backbone, curves)
        print(f"\nPicture: {path}   Curves: tensorboard --logdir {self.run_dir}")


def draw_run(
    path: Path,
    data: PartitionedDataModule,
    initial: SplitViT,
    trained: SplitViT,
    curves: Curves,
) -> None:
    """Draws views, token maps and curves of a finished run.

    Args:
        path: the PNG to write.
        data: the data module, set up.
        initial: the backbone before training.
        trained: the backbone after training.
        curves: what the run logged.
    """
    trained = copy.deepcopy(trained).cpu().eval()
    demo_figure(
        path,
        _gallery(data),
        _comparisons(data, initial, trained),
        curves,
        trained.layer,
        f"MoCo-v3 + SER on {type(data.source).__name__}",
    )


def _gallery(data: PartitionedDataModule) -> ViewGallery:
    """The first images of the training split, through both pipelines."""
    assert data.invertible is not None, "the demo has an invertible sub-batch"
    indices = np.arange(NUM_IMAGES)
    images = [data.train_images.read(int(index)) for index in indices]
    draws = Draws(data.seed, BatchKey(0, 0), indices)
    canvas = Canvas(data.image_size, data.patch_size)
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = render(
        HostBatch(
            data.crop.make(images, draws, canvas),
            data.invertible.make(images, draws, canvas, data.crop.without_local()),
            nothing,
            nothing,
            nothing,
        ),
        data.patch_size,
        data.mean,
        data.std,
    )
    crop = [_denormalise(view.pixels, data) for view in batch.crop]
    invertible = [_denormalise(view.pixels, data) for view in batch.invertible]
    elements = [view.element for view in batch.invertible if view.element is not None]
    return ViewGallery(
        torch.stack(images) / 255,
        (crop[0], crop[1]),
        (invertible[0], invertible[1]),
        (elements[0], elements[1]),
    )


def _comparisons(
    data: PartitionedDataModule, initial: SplitViT, trained: SplitViT
) -> list[TokenComparison]:
    """Token maps of evaluation images under a turn, a flip and a resize."""
    pixels = next(iter(data.val_dataloader()[1])).pixels
    height, width = trained.grid
    yes, no = torch.tensor([True]), torch.tensor([False])
    elements = {
        "g: quarter turn": GroupElement(no, no, 1, trained.grid),
        "g: flip": GroupElement(yes, no, 0, trained.grid),
        "g: resize": GroupElement(no, no, 0, (height + 2, width - 2)),
    }
    comparisons = []
    for number, (caption, element) in enumerate(elements.items()):
        image = pixels[number]
        transformed = act(element, image[None], trained.patch_size)[0]
        comparisons.append(
            TokenComparison(
                caption,
                _denormalise(image, data),
                _denormalise(transformed, data),
                token_maps_of(initial, image, element, trained.layer),
                token_maps_of(trained, image, element, trained.layer),
            )
        )
    return comparisons


def _denormalise(pixels: Tensor, data: PartitionedDataModule) -> Tensor:
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (data.mean, data.std))
    return (pixels.cpu() * std + mean).clamp(0, 1)


def _multiplies_in_bf16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent on other processors
    return any(getattr(torch.cpu, name, bool)() for name in names)


def demo(args: list[str]) -> None:
    """Clears the demo's own folder and runs it."""
    parser = argparse.ArgumentParser("ser-fit demo", description=__doc__)
    parser.add_argument("--config", default="configs/demo.yaml", help="configuration of the run")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="cleared first")
    options, further = parser.parse_known_args(args)
    marker = options.run_dir / MARKER
    if marker.exists():
        shutil.rmtree(options.run_dir)
    options.run_dir.mkdir(parents=True, exist_ok=True)
    marker.touch()
    # Where the processor multiplies in bf16, that is several times faster; elsewhere far slower.
    precision = "bf16-mixed" if _multiplies_in_bf16() else "32"
    further = ["--trainer.precision", precision, *further]
    DemoCommandLine(
        ["fit", "--config", options.config, "--run_dir", str(options.run_dir), *further]
    )
