"""The detection stage: objects in COCO's images, found on the token map of the frozen backbone.

Source: SER Table 11 and appendix A.3: frozen encoder, 45,000 iterations of 32 images. Detector,
neck, resolution and optimizer are not stated there; here they are those of ViTDet.
"""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from typing_extensions import override

from ser_lightning.data.benchmarks.detection import DetectionBatch, DetectionDataModule
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.distributed import gather_ragged
from ser_lightning.evaluation.detector import Head, build_detector
from ser_lightning.evaluation.metrics.average_precision import mean_average_precision
from ser_lightning.evaluation.per_image import test_on_all
from ser_lightning.evaluation.stage import Stage, StageResult, check_finite, fit_on_frozen
from ser_lightning.numbers import NonNegative, NonNegativeInt, Positive, PositiveInt, checked
from ser_lightning.optim import decay_groups, scheduled
from ser_lightning.run_length import run_length
from ser_lightning.sources.coco import Boxes
from ser_lightning.step_logs import log_loss

DROPS = (8 / 9, 26 / 27)
"""Where the learning rate falls to a tenth, as shares of the run: 40,000 and 43,333 of 45,000."""

USUAL_HEAD: Head = "faster_rcnn"
_REDUCED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def relative_learning_rate(step: int, num_steps: int, warmup_steps: int) -> float:
    """The learning rate as a share of its peak: a linear rise, then a tenth after each drop.

    Source: ViTDet.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.1 ** sum(step >= round(drop * num_steps) for drop in DROPS)


@checked
class DetectionStage(Stage):
    """Trains a detector on the frozen token map and measures it once, at the end.

    The training's length is `trainer.max_steps`, its clipping `trainer.gradient_clip_val`. The
    detector computes in float32; the ViT in the trainer's mixed precision.

    Args:
        checkpoint: file of a pretraining run.
        head: the detector: "faster_rcnn", "retinanet" or "fcos".
        channels: channels of the pyramid and the detector's convolutions.
        learning_rate: peak learning rate of AdamW, for the global batch as it is.
        weight_decay: weight decay of AdamW, not for norms and biases.
        warmup_steps: length of the linear warm-up.
        stage: further arguments of every stage.

    Raises:
        ValueError: if faster-coco-eval is not installed.
    """

    name = "detection"
    trains = True
    folders = (("coco", "data.source.root"),)
    package = ("faster_coco_eval", "coco")
    data_class = DetectionDataModule

    def __init__(
        self,
        checkpoint: str,
        head: Head = USUAL_HEAD,
        channels: PositiveInt = 256,
        learning_rate: Positive = 1e-4,
        weight_decay: NonNegative = 0.1,
        warmup_steps: NonNegativeInt = 1000,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.require_package()
        self.head = head
        self.channels = channels
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps

    @property
    @override
    def flavour(self) -> str:
        return "" if self.head == USUAL_HEAD else self.head

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        own = self.own(data)
        self.check_training(trainer)
        if trainer.precision == "64-true":
            raise ValueError(
                "trainer.precision 64-true: the detector computes in float32; use 32-true, or "
                "bf16-mixed for the ViT"
            )
        data.setup("fit")
        reduced = _REDUCED.get(str(trainer.precision))
        what = self.backbone, data.num_classes, data.mean, data.std
        self.detector = build_detector(self.head, *what, self.channels, reduced)
        fit_on_frozen(trainer, self, data.train_loader(trainer))
        reasons = self.shortened(trainer)
        check_finite(self.detector, "weights of the detector", "lower model.learning_rate")
        test_on_all(trainer, self, data.test_dataloader())
        images = own.images("test")
        measured = set(self.measured.tolist())  # without those that could not be read
        truth = [images.boxes(index) for index in range(len(images))]
        none = Boxes(*(values[:0] for values in truth[0]))
        truth = [boxes if index in measured else none for index, boxes in enumerate(truth)]
        return [
            self.result(
                data,
                mean_average_precision(self.detections, truth),
                len(self.measured),
                counts={"detections": len(self.detections)},
                feature={"tokens_of_block": self.backbone.depth, "norm": True},
                reasons=reasons,
            )
        ]

    @override
    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        targets = [
            {"boxes": corners, "labels": labels}
            for corners, labels in zip(batch.corners, batch.labels, strict=True)
        ]
        with torch.autocast(self.device.type, enabled=False):
            losses = self.detector(_floats(batch), targets)
        loss = torch.stack(list(losses.values())).sum()
        log_loss(self, "loss", loss)
        return loss

    @override
    def on_test_epoch_start(self) -> None:
        self._rows, self._indices = [torch.empty(0, 7)], [torch.empty(0, dtype=torch.int64)]

    @override
    def test_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        with torch.autocast(self.device.type, enabled=False):
            found = self.detector(_floats(batch))
        for index, scale, image in zip(batch.indices, batch.scale, found, strict=True):
            columns = [
                index.expand(len(image["scores"]))[:, None],
                image["boxes"] / scale,  # in pixels of the original image
                image["scores"][:, None],
                image["labels"][:, None],
            ]
            self._rows.append(torch.cat([column.float() for column in columns], dim=1).cpu())
        self._indices.append(batch.indices.cpu())

    @override
    def on_test_epoch_end(self) -> None:
        self.detections = gather_ragged(torch.cat(self._rows))
        self.measured = gather_ragged(torch.cat(self._indices))
        assert len(self.measured.unique()) == len(self.measured), "an image was measured twice"

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            decay_groups(trained, decay_biases=False),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        num_steps = run_length(self.trainer).beyond(self.warmup_steps, "the paper trains for 45000")
        return scheduled(
            optimizer, lambda step: relative_learning_rate(step, num_steps, self.warmup_steps)
        )


def _floats(batch: DetectionBatch) -> list[Tensor]:
    """The images in [0, 1]."""
    return [pixels.float() / 255 for pixels in batch.pixels]
