"""The segmentation stage: what every pixel is, told by a linear layer from frozen token maps.

Source: the linear head of DINOv2 (`BNHead`); learning rate, batch and steps as DINOv3's public
configuration. Theirs see crops of 512 pixels in several sizes, and slide over test images.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex
from typing_extensions import override

from ser_lightning.backbones.vit import Layer
from ser_lightning.data.benchmarks.segmentation import (
    SegmentationBatch,
    SegmentationDataModule,
    squared,
)
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.distributed import gather_ragged
from ser_lightning.evaluation.mask_head import LinearMaskHead, mask_loss, predicted_masks
from ser_lightning.evaluation.per_image import test_on_all
from ser_lightning.evaluation.stage import (
    Stage,
    StageResult,
    check_finite,
    fit_on_frozen,
)
from ser_lightning.evaluation.stages.transformation import probed_layers
from ser_lightning.numbers import NonNegative, NonNegativeInt, Positive, checked
from ser_lightning.optim import decay_groups, scheduled, warmup_cosine
from ser_lightning.results.measures import distinct
from ser_lightning.results.shown import MaskPicture, MaskPictures
from ser_lightning.run_length import run_length
from ser_lightning.sources.base import Part
from ser_lightning.sources.masks import IGNORED, class_counts, mask_of
from ser_lightning.step_logs import log_loss

OWN_PROTOCOL = "a linear layer on whole images in squares, which is no published protocol"


@checked
class SegmentationStage(Stage):
    """Trains linear classifiers of tokens and measures, once, how their masks overlap the truth.

    Each layer has a head of its own: all are trained in one pass and do not interact. Metrics, in
    percent: `miou` after the final norm and `miou_layer3` after block 3, the mean over the classes
    that are there (or were predicted) of the intersection over union of all test pixels, at the
    size of the files; `iou/<class>` for each class; with `random_init/` in front for a backbone
    with fresh weights; `constant/miou` where every pixel is of the commonest class of training.

    Args:
        checkpoint: file of a pretraining run.
        layers: after which blocks; integers beyond the depth mean the depth, floats are fractions
            of it. The depth is after the final norm. null takes SER's layer and the depth.
        learning_rate: peak learning rate of AdamW, for the global batch as it is.
        weight_decay: weight decay of AdamW, not for norms and biases.
        warmup_steps: length of the linear warm-up, before half a cosine.
        baseline: whether to train heads on a randomly initialised backbone as well.
        num_shown: test images in the picture, at even distances; 0 draws none.
        stage: further arguments of every stage.
    """

    name = "segmentation"
    trains = True
    needs_labels = False
    folders = (("segmentation", "data.source.root"),)
    data_class = SegmentationDataModule
    figure = "ser_lightning.reporting.mask_figure:mask_figure"

    def __init__(
        self,
        checkpoint: str,
        layers: Sequence[Layer] | None = (1.0,),
        learning_rate: Positive = 1e-3,
        weight_decay: NonNegative = 1e-2,
        warmup_steps: NonNegativeInt = 1500,
        baseline: bool = True,
        num_shown: NonNegativeInt = 4,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        depth = self.backbone.depth
        named = [self.backbone.layer, depth] if layers is None else layers
        self.layers = probed_layers(named, depth)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.baseline = baseline
        self.num_shown = num_shown

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        own = self.own(data)
        if own.side % self.backbone.patch_size:
            lower = own.side // self.backbone.patch_size * self.backbone.patch_size
            raise ValueError(
                f"side {own.side} is no multiple of the patch of {self.backbone.patch_size} "
                f"pixels; use --data.side {lower or self.backbone.patch_size}"
            )
        self.check_training(trainer)
        data.setup("fit")
        self.build(data.num_classes)
        fit_on_frozen(trainer, self, data.train_loader(trainer))
        reasons = [*self.shortened(trainer), OWN_PROTOCOL]
        check_finite(self.heads, "weights of the heads", "lower model.learning_rate")
        test_on_all(trainer, self, data.test_dataloader())
        feature = {"token_maps_after_blocks": self.layers, "final_norm": "last block only"}
        return [
            self.result(
                data,
                self._metrics(own),
                len(self.measured),
                feature=feature,
                protocol={"num_train": len(data.images("train"))},
                reasons=reasons,
                shown=self._shown(own) if trainer.is_global_zero else None,
            )
        ]

    def build(self, num_classes: int) -> None:
        """Makes the heads and what measures them, the same on every rank."""
        fresh = [self.random_backbone()] if self.baseline else []
        self.backbones = nn.ModuleList([self.backbone, *fresh])
        prefixes = ["", "random_init/"][: len(self.backbones)]
        depth = self.backbone.depth
        suffixes = ["" if layer == depth else f"_layer{layer}" for layer in self.layers]
        self.names = [f"{prefix}miou{suffix}" for prefix in prefixes for suffix in suffixes]
        width = self.backbone.width
        self.heads = nn.ModuleList(
            LinearMaskHead(width, num_classes, self.seed) for _ in self.names
        )
        self.overlaps = nn.ModuleList(
            MulticlassJaccardIndex(
                num_classes, average="none", ignore_index=IGNORED, validate_args=False,
                zero_division=float("nan"),
            )
            for _ in self.names
        )  # fmt: skip

    def logits(self, pixels: Tensor) -> list[Tensor]:
        """(B, classes, h, w) of every head; no gradient reaches a backbone."""
        maps: list[Tensor] = []
        backbones: Any = self.backbones
        heads: Any = self.heads
        for backbone in backbones:
            with torch.no_grad():
                maps += backbone.token_maps(pixels, self.layers)
        with torch.autocast(pixels.device.type, enabled=False):
            return [
                head(tokens.to(head.classify.weight.dtype))
                for head, tokens in zip(heads, maps, strict=True)
            ]

    @override
    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        truth, found = torch.stack(batch.masks).long(), self.logits(batch.pixels)
        with torch.autocast(self.device.type, enabled=False):
            losses = torch.stack([mask_loss(logits, truth) for logits in found])
        log_loss(self, "loss", losses.amin(), batch_size=len(truth))
        return losses.sum()

    @override
    def on_test_epoch_start(self) -> None:
        self._indices = [torch.empty(0, dtype=torch.int64)]

    @override
    def test_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        sizes = [(mask.shape[0], mask.shape[1]) for mask in batch.masks]
        overlaps: Any = self.overlaps
        for overlap, logits in zip(overlaps, self.logits(batch.pixels), strict=True):
            for found, mask in zip(predicted_masks(logits, sizes), batch.masks, strict=True):
                overlap.update(found, mask.long())
        self._indices.append(batch.indices.cpu())

    @override
    def on_test_epoch_end(self) -> None:
        self.measured = gather_ragged(torch.cat(self._indices))
        assert len(self.measured.unique()) == len(self.measured), "an image was measured twice"
        overlaps: Any = self.overlaps
        self.ious = [100 * overlap.compute().cpu() for overlap in overlaps]

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(
            decay_groups(self.heads.parameters(), decay_biases=False),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        warmup = self.warmup_steps
        num_steps = run_length(self.trainer).beyond(warmup, "lower --model.warmup_steps")
        return scheduled(  # above 0
            optimizer, lambda step: warmup_cosine(step + 1, num_steps + 1, warmup)
        )

    def _metrics(self, data: SegmentationDataModule) -> dict[str, float]:
        """Means and what they are compared with, then each class of the backbone's own heads."""
        named = dict(zip(self.names, self.ious, strict=True))
        metrics = {name: float(ious.nanmean()) for name, ious in named.items()}
        measured = class_counts(Part(data.images("test"), self.measured.sort().values.numpy()))
        metrics["constant/miou"] = constant_miou(data.train_counts, measured)
        words = _words(data.class_names)
        for name, ious in list(named.items())[: len(self.layers)]:
            for word, value in zip(words, ious.tolist(), strict=True):
                if not math.isnan(value):  # there, or predicted
                    metrics[f"{name.removeprefix('m')}/{word}"] = value
        return metrics

    @torch.no_grad()
    def _shown(self, data: SegmentationDataModule) -> MaskPictures:
        """Some test images and their masks by every head; called on one rank."""
        reader, pictures = data.reader(data.images("test")), []
        self.eval()
        total = len(reader.images)
        for index in dict.fromkeys(
            number * total // self.num_shown for number in range(self.num_shown)
        ):
            image = reader.read(index)
            if image is None:
                continue
            pixels = data.clean.normalise(squared(image, data.side)[None]).to(self.device)
            truth = mask_of(reader.images, index)
            size = truth.shape[0], truth.shape[1]
            found = [predicted_masks(logits, [size])[0].cpu() for logits in self.logits(pixels)]
            captions = [_caption(name) for name in self.names]
            named = dict(zip(captions, found, strict=True))
            pictures.append(MaskPicture(image, truth, named))
        return MaskPictures(tuple(pictures), data.class_names)


def constant_miou(train_counts: Tensor, test_counts: Tensor) -> float:
    """The mean IoU in percent where all test pixels are of the commonest training class.

    The counts are (classes,) pixels by class. Its own IoU is its share, that of all others 0.
    """
    commonest = int(train_counts.argmax())
    there = test_counts > 0
    there[commonest] = True
    return float(100 * test_counts[commonest] / test_counts.sum() / there.sum())


def _words(class_names: Sequence[str]) -> list[str]:
    """The names of classes as parts of a metric's name, each another one."""
    return distinct([re.sub(r"\W+", "_", name).strip("_") for name in class_names])


def _caption(name: str) -> str:
    """What a picture calls a head: "backbone, block 3"."""
    prefix, _, layer = name.partition("miou")
    place = f"block {layer.removeprefix('_layer')}" if layer else "last block"
    return f"{'random init' if prefix else 'backbone'}, {place}"
