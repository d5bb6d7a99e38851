"""The diagnostics stage: label-free numbers that tell collapse from structure.

Source: Garrido et al. 2023 (RankMe), Thilak et al. 2023 (LiDAR), Wang & Isola 2020 (alignment and
uniformity), and the early alarm for the trivial solution of SER appendix A.4.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import EvaluationBatch, View
from ser_lightning.data import CropViews, InvertibleViews, render
from ser_lightning.data.datasets import AugmentedImages, balanced_subset
from ser_lightning.data.draws import Canvas
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.render import HostBatch
from ser_lightning.evaluation.metrics.diagnostics import (
    alignment,
    feature_std,
    lidar,
    rankme,
    spatial_moments,
    spatial_variance_ratio,
    uniformity,
)
from ser_lightning.evaluation.per_image import PerImagePass, test_on_all
from ser_lightning.evaluation.stage import Stage, StageResult
from ser_lightning.numbers import PositiveInt, checked

PIPELINES = ("crop", "invertible")
MAX_PAIRWISE = 4096
"""Images that enter the uniformity, which compares all pairs."""


class TokenPass(PerImagePass):
    """The spatial variance `ratio` of the token map after the regularised block."""

    ratio: float

    def __init__(self, backbone: SplitViT) -> None:
        super().__init__(backbone, 1 + backbone.width)

    @override
    def values(self, batch: EvaluationBatch) -> Tensor:
        within, mean = spatial_moments(self.backbone.prefixes(batch.pixels)[0].tokens)
        return torch.cat([within[:, None], mean], 1)

    @override
    def finish(self, values: Tensor) -> None:
        self.ratio = spatial_variance_ratio(values[:, 0], values[:, 1:])


class ViewPass(PerImagePass):
    """The [CLS] `embeddings` of augmented views: by pipeline (N, views, C) float32."""

    embeddings: dict[str, Tensor]

    def __init__(
        self, backbone: SplitViT, num_views: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(backbone, len(PIPELINES) * num_views * backbone.width)
        self.num_views = num_views
        self.mean = mean
        self.std = std

    @override
    def values(self, batch: HostBatch) -> Tensor:
        views = render(batch, self.backbone.patch_size, self.mean, self.std)
        return torch.cat([self._embed(part) for part in (views.crop, views.invertible)], 1)

    @override
    def finish(self, values: Tensor) -> None:
        shape = (len(PIPELINES), self.num_views, self.backbone.width)
        parts = values.unflatten(1, shape).unbind(1)
        self.embeddings = dict(zip(PIPELINES, parts, strict=True))

    def _embed(self, views: tuple[View, ...]) -> Tensor:
        """(B, views * C) embeddings; crops have one size, and go through in one pass."""
        if len({view.pixels.shape for view in views}) > 1:
            return torch.cat([self.backbone(view.pixels) for view in views], 1)
        embedded: Tensor = self.backbone(torch.cat([view.pixels for view in views]))
        return embedded.unflatten(0, (len(views), -1)).transpose(0, 1).flatten(1)


@checked
class DiagnosticsStage(Stage):
    """Measures rank, spread and invariance of the test images' final [CLS] embeddings.

    Metrics: `rankme`, `feature_std`, `uniformity` on clean images; `token_spatial_variance` after
    the regularised block; `lidar_<pipeline>` and `alignment_<pipeline>` across augmented views,
    pipeline being crop or invertible.

    Args:
        checkpoint: file of a pretraining run.
        num_images: test images whose views enter LiDAR and alignment, the same number of each
            class. LiDAR is below it, so more than the backbone has channels.
        num_views: views per image and pipeline, an even number.
        crop: the crop pipeline; MoCo-v3's by default, whatever the checkpoint was trained with.
        invertible: the invertible pipeline; SER's by default. Its ratio is not used.
        stage: further arguments of every stage.
    """

    name = "diagnostics"
    needs_labels = False

    def __init__(
        self,
        checkpoint: str,
        num_images: PositiveInt = 1000,
        num_views: PositiveInt = 10,
        crop: CropViews | None = None,
        invertible: InvertibleViews | None = None,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.num_images = num_images
        self.num_views = num_views
        self.crop = crop or CropViews()
        self.invertible = invertible or InvertibleViews()

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        data.setup("test")
        features = self.features(data, "test", trainer, folder).embeddings()
        tokens = TokenPass(self.backbone)
        test_on_all(trainer, tokens, data.clean_loader("test"))
        views = ViewPass(self.backbone, self.num_views, data.mean, data.std)
        test_on_all(trainer, views, self._view_loader(data))
        spread = torch.arange(min(MAX_PAIRWISE, len(features)))
        metrics = {
            "rankme": rankme(features),
            "feature_std": feature_std(features),
            "uniformity": uniformity(features[spread * len(features) // len(spread)]),
            "token_spatial_variance": tokens.ratio,
        }
        for name, embeddings in views.embeddings.items():
            metrics[f"lidar_{name}"] = lidar(embeddings)
            pairs = embeddings[:, 0::2].flatten(0, 1), embeddings[:, 1::2].flatten(0, 1)
            metrics[f"alignment_{name}"] = alignment(*pairs)
        return [
            self.result(
                data,
                metrics,
                len(features),
                counts={"view_images": len(views.embeddings["crop"])},
                feature={"cls_of_blocks": [self.backbone.depth], "tokens": self.backbone.layer},
                protocol={"uniformity_images": len(spread)},
            )
        ]

    def _view_loader(self, data: LabelledDataModule) -> DataLoader:
        images = data.images("test")
        make = AugmentedImages(
            data.reader(images),
            balanced_subset(images.labels, self.num_images, 4),
            self.num_views,
            self.crop,
            self.invertible,
            Canvas(self.backbone.image_size, self.backbone.patch_size),
            self.seed,
        )
        batch_size = max(1, data.evaluation_batch_size // (2 * self.num_views))
        return data.in_order(make, "test", (len(make.positions), batch_size))
