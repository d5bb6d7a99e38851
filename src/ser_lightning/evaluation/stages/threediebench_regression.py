"""The stage of 3DIEBench's regressions: how was the object turned, and how were colours changed?

Source: SIE's public code (Garrido et al. 2023): an MLP on the representations of two views of an
object, side by side, with Adam; R2 over pairs of unseen objects.
"""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from typing_extensions import override

from ser_lightning.data.benchmarks.threediebench_regression import ViewPairs, ViewPairsDataModule
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.features import Features
from ser_lightning.evaluation.metrics.latents import joint_r2, target_widths
from ser_lightning.evaluation.stage import StageResult
from ser_lightning.evaluation.stored import StoredProbeStage, stored_features
from ser_lightning.evaluation.view_pairs import (
    PairHeads,
    TrainingPairs,
    embeddings,
    predictions,
    whole_pairs,
)
from ser_lightning.sources.base import ImageSet
from ser_lightning.sources.threediebench import ObjectImages

OUT_OF_RANGE = "out_of_range"


class ThreeDIEBenchRegressionStage(StoredProbeStage):
    """Measures by R2 how well the change between two views of an object is told.

    Metrics: `r2/rotation` for the quaternion of the relative rotation, `r2/colour` for the hues of
    floor and light, on 3DIEBench-T also `r2/translation_object` and `r2/translation_base`; with
    `random_init/` in front for a backbone with fresh weights. 1 is exact; a constant answer is
    worth 0, but .23 in rotation, whose numbers have one mean together.
    A folder of 3DIEBench-OOD gives a record of its own, by the same heads.

    Differs: features are computed once, in evaluation mode (SIE's ResNet keeps updating its batch
    norms); images are resized to the backbone's size and normalised as in its training. The heads
    of all targets train in one pass, and do not interact.
    """

    name = "3diebench-regression"
    folders = (("3diebench", "data.source.root"),)
    further_folders = (("3diebench-ood", "data.out_of_range"),)
    data_class = ViewPairsDataModule

    @override
    def measured_sets(self, data: LabelledDataModule, dataset: str | None) -> Sequence[ImageSet]:
        assert isinstance(data, ViewPairsDataModule)
        if dataset is None or data.beyond is None:
            return super().measured_sets(data, dataset)
        return [data.beyond]

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        own = self.own(data)
        self.check_training(trainer)
        data.setup("fit")
        train, test = data.images("train"), data.images("test")
        assert isinstance(train, ObjectImages)
        assert isinstance(test, ViewPairs)
        self.step_plan(trainer, len(train.folders))  # refused before the pass
        latents = train.latents()
        sets = {"": test} | ({} if own.beyond is None else {OUT_OF_RANGE: own.beyond})
        told = {name: images.latents() for name, images in sets.items()}
        backbones = self.backbones()
        what = self.backbone.width, self.hidden, self.learning_rate, self.seed
        heads = PairHeads(target_widths(latents.shape[2]), len(backbones), *what)
        with stored_features(embeddings(backbones), trainer, folder) as features_of:
            views = features_of(data.clean_loader("train"), len(train))
            pairs = TrainingPairs(views, latents)
            pairs.plan = self.step_plan(trainer, len(pairs.objects))
            _, reasons = self.fit_heads(trainer, heads, pairs, "pairs")
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
        """The R2 of every head on the pairs of a set, by the name of its metric.

        A set out of range may not tell translations, and then has none of their metrics.
        """
        predicted, truth = predictions(heads, tested, batch_size, trainer)
        return {
            f"{'random_init/' if place else ''}r2/{target}": joint_r2(
                values, truth[:, heads.columns[target]]
            )
            for (place, target), values in zip(heads.tasks, predicted, strict=True)
            if heads.columns[target].stop <= truth.shape[1]
        }
