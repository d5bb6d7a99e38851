"""The stage of 3DIEBench's regressions: how was the object turned, and how were colours changed?

Source: SIE's public code (Garrido et al. 2023): an MLP on the representations of two views of an
object, side by side, with Adam; R2 over pairs of unseen objects.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from typing_extensions import override

from ser_lightning.data.benchmarks.threediebench_regression import ViewPairs, ViewPairsDataModule
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.features import Features
from ser_lightning.evaluation.metrics.latents import joint_r2, target_widths
from ser_lightning.evaluation.probe import Probe, fit_probe
from ser_lightning.evaluation.stage import Stage, StageResult, check_finite
from ser_lightning.evaluation.stored import rows_loader, step_plan, step_size, stored_features
from ser_lightning.evaluation.view_pairs import (
    Embeddings,
    PairHeads,
    TrainingPairs,
    predictions,
    whole_pairs,
)
from ser_lightning.numbers import Positive, PositiveInt, checked
from ser_lightning.sources.base import ImageSet
from ser_lightning.sources.threediebench import ObjectImages

OUT_OF_RANGE = "out_of_range"


@checked
class ThreeDIEBenchRegressionStage(Stage):
    """Measures by R2 how well the change between two views of an object is told.

    Metrics: `r2/rotation` for the quaternion of the relative rotation, `r2/colour` for the hues of
    floor and light, on 3DIEBench-T also `r2/translation_object` and `r2/translation_base`; with
    `random_init/` in front for a backbone with fresh weights. 1 is exact; a constant answer is
    worth 0, but .23 in rotation, whose numbers have one mean together.
    A folder of 3DIEBench-OOD gives a record of its own, by the same heads. Nothing is selected:
    the heads after the last epoch count.

    Differs: features are computed once, in evaluation mode (SIE's ResNet keeps updating its batch
    norms); images are resized to the backbone's size and normalised as in its training. The heads
    of all targets train in one pass, and do not interact.

    Args:
        checkpoint: file of a pretraining run.
        batch_size: pairs per step, over all devices; all of them where there are no more.
            `data.global_batch_size` has no part in it.
        learning_rate: learning rate of Adam.
        hidden: channels of the two hidden layers.
        baseline: whether to measure a randomly initialised backbone as well.
        stage: further arguments of every stage.
    """

    name = "3diebench-regression"
    trains = True
    needs_labels = False
    folders = (("3diebench", "data.source.root"),)
    further_folders = (("3diebench-ood", "data.out_of_range"),)

    def __init__(
        self,
        checkpoint: str,
        batch_size: PositiveInt = 256,
        learning_rate: Positive = 1e-3,
        hidden: PositiveInt = 1024,
        baseline: bool = True,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.hidden = hidden
        self.baseline = baseline

    @override
    def measured_sets(self, data: LabelledDataModule, dataset: str | None) -> Sequence[ImageSet]:
        assert isinstance(data, ViewPairsDataModule)
        if dataset is None or data.beyond is None:
            return super().measured_sets(data, dataset)
        return [data.beyond]

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        if not isinstance(data, ViewPairsDataModule):
            raise ValueError(
                f"{type(data).__name__} has no pairs of views; use --data ViewPairsDataModule with "
                "the source ThreeDIEBench"
            )
        self.check_training(trainer)
        data.setup("fit")
        train, test = data.images("train"), data.images("test")
        assert isinstance(train, ObjectImages)
        assert isinstance(test, ViewPairs)
        step_size(trainer, len(train.folders), self.batch_size)  # refused before the pass
        latents = train.latents()
        sets = {"": test} | ({} if data.beyond is None else {OUT_OF_RANGE: data.beyond})
        told = {name: images.latents() for name, images in sets.items()}
        backbones = [self.backbone, *([self.random_backbone()] if self.baseline else [])]
        what = self.backbone.width, self.hidden, self.learning_rate, self.seed
        heads = PairHeads(target_widths(latents.shape[2]), len(backbones), *what)
        with stored_features(Embeddings(backbones), trainer, folder) as features_of:
            views = features_of(data.clean_loader("train"), len(train))
            pairs = TrainingPairs(views, latents)
            pairs.plan = step_plan(trainer, len(pairs.objects), self.batch_size, self.seed)
            probe = Probe(heads)
            fit_probe(trainer, probe, rows_loader(pairs, trainer), None)
            reasons = self.shortened(trainer)
            size = pairs.plan.batch_size * trainer.accumulate_grad_batches
            if size < self.batch_size:
                reasons.append(f"{size} pairs a step for want of {self.batch_size}")
            check_finite(heads, "weights of the heads", "lower model.learning_rate")
            probe.to(trainer.strategy.root_device)
            results = []
            for name, images in sets.items():
                loader = data.clean_images(images, None, 3, name or "test")
                tested = whole_pairs(features_of(loader, len(images)), told[name])
                metrics = self._r2(trainer, heads, tested, data.evaluation_batch_size)
                left_out = len(images) // 2 - len(tested.rows)
                why = [f"{left_out} pairs have an unreadable view"] if left_out else []
                results.append(
                    self.result(
                        data,
                        metrics,
                        2 * len(tested.rows),
                        dataset=f"{data.dataset_name}_{name}" if name else None,
                        counts={"pairs": len(tested.rows)},
                        feature={"cls_of_blocks": [self.backbone.depth], "norm": "final"},
                        protocol={"num_train": len(pairs.objects)},
                        reasons=[*reasons, *why],
                    )
                )
        return results

    def _r2(
        self, trainer: L.Trainer, heads: PairHeads, tested: Features, batch_size: int
    ) -> dict[str, float]:
        """The R2 of every head on the pairs of a set, by the name of its metric."""
        predicted, truth = predictions(heads, tested, batch_size, trainer)
        return {
            f"{'random_init/' if place else ''}r2/{target}": joint_r2(
                values, truth[:, heads.columns[target]]
            )
            for (place, target), values in zip(heads.tasks, predicted, strict=True)
        }
