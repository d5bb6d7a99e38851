"""The diagnostics stage: label-free numbers that tell collapse from structure.

Source: Garrido et al. 2023 (RankMe), Thilak et al. 2023 (LiDAR), Wang & Isola 2020 (alignment and
uniformity), and the early alarm for the trivial solution of SER appendix A.4.
"""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import View
from ser_lightning.data import CropViews, InvertibleViews, render
from ser_lightning.data.datasets import AugmentedImages, balanced_subset
from ser_lightning.data.draws import Canvas
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.metrics.diagnostics import (
    alignment,
    feature_std,
    lidar,
    rankme,
    spatial_moments,
    spatial_variance_ratio,
    uniformity,
)
from ser_lightning.evaluation.per_image import per_image
from ser_lightning.evaluation.stage import Stage, StageResult
from ser_lightning.numbers import PositiveInt, checked

PIPELINES = ("crop", "invertible")
MAX_PAIRWISE = 4096
"""Images that enter the uniformity, which compares all pairs."""


def token_moments(backbone: SplitViT, pixels: Tensor) -> Tensor:
    """(B, 1 + C) `spatial_moments`, side by side, of the maps after the regularised block."""
    within, mean = spatial_moments(backbone.prefixes(pixels)[0].tokens)
    return torch.cat([within[:, None], mean], 1)


def view_embeddings(backbone: SplitViT, views: tuple[View, ...]) -> Tensor:
    """(B, views * C) embeddings; crops have one size, and go through in one pass."""
    if len({view.pixels.shape for view in views}) > 1:
        return torch.cat([backbone(view.pixels) for view in views], 1)
    embedded: Tensor = backbone(torch.cat([view.pixels for view in views]))
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
        backbone, width = self.backbone, self.backbone.width

        def views_of(batch: Any) -> Tensor:
            made = render(batch, backbone.patch_size, data.mean, data.std)
            return torch.cat(
                [view_embeddings(backbone, v) for v in (made.crop, made.invertible)], 1
            )

        clean = data.clean_loader("test")
        moments = per_image(
            trainer, backbone, clean, 1 + width, lambda batch: token_moments(backbone, batch.pixels)
        ).values
        shape = (len(PIPELINES), self.num_views, width)
        loader = self._view_loader(data)
        views = per_image(trainer, backbone, loader, math.prod(shape), views_of).values
        spread = torch.arange(min(MAX_PAIRWISE, len(features)))
        metrics = {
            "rankme": rankme(features),
            "feature_std": feature_std(features),
            "uniformity": uniformity(features[spread * len(features) // len(spread)]),
            "token_spatial_variance": spatial_variance_ratio(moments[:, 0], moments[:, 1:]),
        }
        for name, embeddings in zip(PIPELINES, views.unflatten(1, shape).unbind(1), strict=True):
            metrics[f"lidar_{name}"] = lidar(embeddings)
            pairs = embeddings[:, 0::2].flatten(0, 1), embeddings[:, 1::2].flatten(0, 1)
            metrics[f"alignment_{name}"] = alignment(*pairs)
        return [
            self.result(
                data,
                metrics,
                len(features),
                counts={"view_images": len(views)},
                feature={"cls_of_blocks": [backbone.depth], "tokens": backbone.layer},
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
