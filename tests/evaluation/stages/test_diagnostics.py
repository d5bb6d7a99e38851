"""The diagnostics stage on a tiny run: its views, its passes and its record."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from ser_lightning.commands.evaluate import evaluate
from ser_lightning.data import CropViews, InvertibleViews, Shapes, render
from ser_lightning.data.datasets import AugmentedImages
from ser_lightning.data.draws import Canvas
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.reading import Reader
from ser_lightning.evaluation.metrics.diagnostics import spatial_moments, spatial_variance_ratio
from ser_lightning.evaluation.per_image import per_image
from ser_lightning.evaluation.stages.diagnostics import token_moments, view_embeddings
from ser_lightning.results.record import read_record
from support import tiny_backbone
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def batches(num_views):
    """Augmented views of 12 Shapes."""
    images = Shapes(num_train=24, num_evaluation=24, image_size=16).evaluation()
    pipelines = CropViews(), InvertibleViews()
    make = AugmentedImages(Reader(images), np.arange(12) * 2, num_views, *pipelines, Canvas(16, 4))
    return [make(np.arange(12)[start : start + 5]) for start in range(0, 12, 5)]


def trainer():
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )


def test_every_view_of_every_image_is_embedded():
    backbone = tiny_backbone().eval().requires_grad_(False)
    for batch in batches(num_views=4):
        rendered = render(batch, 4, MEAN, STD)
        for views in (rendered.crop, rendered.invertible):
            found = view_embeddings(backbone, views).unflatten(1, (4, 32))
            for i, view in enumerate(views):
                expected = backbone(view.pixels)
                torch.testing.assert_close(found[:, i], expected, atol=1e-5, rtol=1e-5)


def test_moments_give_the_ratio_of_the_regularised_block():
    backbone = tiny_backbone(layer=2).eval().requires_grad_(False)
    data = LabelledDataModule(
        Shapes(num_train=24, num_evaluation=19, image_size=16),
        image_size=16,
        num_workers=0,
        evaluation_batch_size=4,
    )
    data.setup("test")
    loader, width = data.clean_loader("test"), 1 + backbone.width
    found = per_image(
        trainer(), backbone, loader, width, lambda batch: token_moments(backbone, batch.pixels)
    ).values
    images = torch.cat([batch.pixels for batch in data.clean_loader("test")])
    expected = spatial_variance_ratio(*spatial_moments(backbone.prefixes(images)[0].tokens))
    assert spatial_variance_ratio(found[:, 0], found[:, 1:]) == pytest.approx(expected, rel=1e-4)


def test_record_has_every_number_within_its_range(checkpoint):
    config = str(ROOT / "configs" / "eval" / "diagnostics.yaml")
    args = ["--config", config, "--checkpoint", str(checkpoint)]
    args += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
    evaluate([*args, "--model.num_images", "16", "--model.crop.scale", "[0.5, 1.0]"])
    record = read_record(checkpoint.parents[1] / "results" / f"diagnostics-{SHAPES}.json")
    assert record.num_samples == 24
    assert record.counts == {"view_images": 16}
    assert record.protocol["crop"]["init_args"]["scale"] == [0.5, 1.0]
    metrics = record.metrics
    assert 1 <= metrics["rankme"] <= 24
    assert 0 < metrics["feature_std"] <= 32**-0.5
    assert -8 <= metrics["uniformity"] <= 0
    assert 0 < metrics["token_spatial_variance"] < 1
    for pipeline in ("crop", "invertible"):
        assert 1 <= metrics[f"lidar_{pipeline}"] <= 15
        assert 0 < metrics[f"alignment_{pipeline}"] <= 4
    assert len(metrics) == 8
