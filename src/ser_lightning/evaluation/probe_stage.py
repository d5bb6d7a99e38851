"""What the stages that train a probe share: crops or cached features in, one result out."""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from typing_extensions import override

from ser_lightning.data.labelled import LabelledDataModule, Split
from ser_lightning.data.loaders import evaluation_loader
from ser_lightning.evaluation.features import CleanRows, TrainingRows, cls_layers
from ser_lightning.evaluation.metrics.accuracy import percent
from ser_lightning.evaluation.per_image import Rows, test_on_all
from ser_lightning.evaluation.probe import CropProbe, Heads, Probe, fit_probe
from ser_lightning.evaluation.stage import Stage, StageResult, check_finite
from ser_lightning.numbers import checked

MIN_HOLDOUT = 1000
"""Held-out images that an official choice among heads and epochs needs; ImageNet has 12,811."""

ProbeFeature = Literal["cls_last4", "cls_last"]


@checked
class ProbeStage(Stage):
    """Trains heads on the frozen backbone's [CLS] tokens.

    Heads train on random crops; those held out and those to test on are clean. Head and epoch are
    chosen on the held-out images, then the test images are read, once.
    Differs: the public evaluation chooses among learning rates on the same held-out images, but
    trains each in a process of its own; here the heads share crops and backbone.

    Args:
        checkpoint: file of a pretraining run.
        feature: "cls_last4", [CLS] of the last four blocks side by side (fewer where [CLS] joins
            so late), or "cls_last", the embedding; each through the final norm.
        cache_features: trains on clean images instead of crops, with features computed once: for
            machines without a GPU. The result is marked unofficial.
        stage: further arguments of every stage.
    """

    trains = True

    def __init__(
        self,
        checkpoint: str,
        feature: ProbeFeature = "cls_last4",
        cache_features: bool = False,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        layers = cls_layers(self.backbone)
        self.layers = layers[-1:] if feature == "cls_last" else layers
        self.cache_features = cache_features

    @abstractmethod
    def heads(self, in_features: int, num_classes: int, global_batch_size: int) -> Heads:
        """The heads to train, the same on every rank."""

    def keep(
        self, probe: Probe, result: StageResult, data: LabelledDataModule, folder: Path
    ) -> None:
        """Writes what should outlive the stage; called on one rank."""

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        self.check_training(trainer)
        data.setup("fit")
        num_layers, num_classes = len(self.layers), data.num_classes
        heads = self.heads(num_layers * self.backbone.width, num_classes, data.global_batch_size)

        def rows(split: Split) -> CleanRows:
            features = self.features(data, split, trainer, folder).last(num_layers)
            size, rank = data.evaluation_batch_size, trainer.global_rank
            return CleanRows(features, size, rank, trainer.world_size)

        if self.cache_features:
            probe = Probe(heads)
            features = self.features(data, "train", trainer, folder).last(num_layers)
            plan = replace(data.plan(trainer), num_images=len(features.rows))
            train = data.key_loader(TrainingRows(features, plan), 0, trainer)
        else:
            probe = CropProbe(self.backbone, self.layers, heads)
            train = data.train_loader(trainer)
        holdout = rows("holdout") if len(data.images("holdout")) else None
        fit_probe(trainer, probe, train, holdout)
        reasons = self.shortened(trainer)
        assert probe.selected is not None
        chosen = heads.describe(probe.selected.head)
        check_finite(probe.selected.classifier, f"weights of the head {chosen}", "lower its rate")
        test = rows("test")
        test_on_all(trainer, probe, evaluation_loader(test, 0))
        result = self._result(probe, test, data, reasons)
        if trainer.is_global_zero:
            self.keep(probe, result, data, folder)
        trainer.strategy.barrier("probe kept")
        return [result]

    def _result(
        self, probe: Probe, test: CleanRows, data: LabelledDataModule, reasons: list[str]
    ) -> StageResult:
        num_holdout = len(data.images("holdout"))
        reasons += data.training_reasons()
        if self.cache_features:
            reasons.append("trained on clean images, without crops")
        if 0 < num_holdout < MIN_HOLDOUT:
            some = f"selected on {num_holdout:,} held-out images, fewer than {MIN_HOLDOUT:,}"
            reasons.append(some)
        places = torch.from_numpy(test.slots)
        rows = Rows(4)
        rows.add(places, test.features.label[places], probe.hits)
        label, hits, _ = rows.gather()
        assert len(hits) == len(test.features.rows)
        names = ("top1", "top5", "top1_last_epoch", "top5_last_epoch")
        return self.result(
            data,
            dict(zip(names, percent(hits), strict=True)),
            len(hits),
            counts={"hits": int(hits[:, 0].sum()), "hits_last_epoch": int(hits[:, 2].sum())},
            feature={"cls_of_blocks": self.layers, "norm": "final"},
            protocol={"num_train": len(data.images("train")), "num_holdout": num_holdout},
            selected=probe.selection(),
            reasons=reasons,
            hits={"top1": hits[:, 0]},
            label=label,
            slots=torch.from_numpy(test.features.rows),
        )
