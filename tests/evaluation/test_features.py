"""The shared feature pass: right rows, computed once, whole or not at all."""

import lightning as L
import numpy as np
import pytest
import torch

from ser_lightning.data import Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.features import FeaturePass, cached_features, cls_layers
from support import tiny_backbone

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def parts(**options):
    source = Shapes(num_train=24, num_evaluation=13, image_size=16)
    data = LabelledDataModule(
        source, image_size=16, num_workers=0, evaluation_batch_size=5, **options
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    torch.manual_seed(0)
    return tiny_backbone(layer=1).eval().requires_grad_(False), data, trainer


def test_rows_are_the_cls_tokens_of_the_images_in_order(tmp_path):
    backbone, data, trainer = parts()
    features = cached_features(backbone, "weights", data, "test", trainer, tmp_path)
    assert cls_layers(backbone) == [2, 3, 4]
    assert features.values.shape == (13, 3, 32)
    assert torch.equal(features.label, data.images("test").labels)
    for batch in data.clean_loader("test"):
        tokens = torch.stack(backbone.cls_tokens(batch.pixels, [2, 3, 4]), 1)
        torch.testing.assert_close(torch.from_numpy(features.values[batch.indices]), tokens)
    last_two = features.last(2).values
    np.testing.assert_array_equal(last_two[:, 1], features.embeddings())
    np.testing.assert_array_equal(last_two[:, 0], features.values[:, 1])


def test_second_call_reads_what_the_first_wrote(tmp_path, monkeypatch):
    backbone, data, trainer = parts()
    first = cached_features(backbone, "weights", data, "test", trainer, tmp_path)
    monkeypatch.setattr(FeaturePass, "test_step", None)  # a second pass would fail
    second = cached_features(backbone, "weights", data, "test", trainer, tmp_path)
    np.testing.assert_array_equal(first.values, second.values)


def test_other_weights_images_or_split_have_their_own_features(tmp_path):
    backbone, data, trainer = parts()
    cached_features(backbone, "weights", data, "test", trainer, tmp_path)
    cached_features(backbone, "other weights", data, "test", trainer, tmp_path)
    cached_features(backbone, "weights", data, "train", trainer, tmp_path)
    _, cropped, _ = parts(evaluation_crop_fraction=0.5)
    cached_features(backbone, "weights", cropped, "test", trainer, tmp_path)
    assert len(list((tmp_path / "features").iterdir())) == 4


def test_interrupted_pass_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    backbone, data, trainer = parts()

    def fails(self, batch, batch_idx):
        raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(FeaturePass, "test_step", fails)
        with pytest.raises(RuntimeError, match="plug"):
            cached_features(backbone, "weights", data, "test", trainer, tmp_path)
    features = cached_features(backbone, "weights", data, "test", trainer, tmp_path)
    assert np.abs(features.values).sum(axis=(1, 2)).min() > 0


def test_blocks_without_cls_are_left_out():
    assert cls_layers(tiny_backbone(layer=3)) == [4]
    assert cls_layers(tiny_backbone(layer=3, cls_layer=0)) == [1, 2, 3, 4]
    assert cls_layers(tiny_backbone(layer=4)) == [1, 2, 3, 4]
