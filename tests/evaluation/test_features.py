"""The shared feature pass: right rows, computed once, whole or not at all."""

import errno
import os

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from ser_lightning.data import Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.features import (
    CleanRows,
    FeaturePass,
    cached_features,
    cls_layers,
)
from ser_lightning.sources.folder import ImageFolder
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


def test_full_disk_is_an_error_before_the_pass(tmp_path, monkeypatch):
    backbone, data, trainer = parts()

    def is_full(descriptor, start, size):
        assert size == os.fstat(descriptor).st_size > 13 * 3 * 32 * 4
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", is_full)
    with pytest.raises(OSError, match="No space left"):
        cached_features(backbone, "weights", data, "test", trainer, tmp_path)


def test_two_passes_at_once_do_not_write_into_each_other(tmp_path, monkeypatch):
    (backbone, data, trainer), (_, _, second) = parts(), parts()
    plain, others = FeaturePass.test_step, []

    def interrupted(self, batch, batch_idx):
        plain(self, batch, batch_idx)
        monkeypatch.setattr(FeaturePass, "test_step", plain)
        if batch_idx == 0:  # another start, which is done before this one
            others.append(cached_features(backbone, "weights", data, "test", second, tmp_path))

    monkeypatch.setattr(FeaturePass, "test_step", interrupted)
    features = cached_features(backbone, "weights", data, "test", trainer, tmp_path)
    np.testing.assert_array_equal(features.values, others[0].values)
    assert np.abs(features.values).sum(axis=(1, 2)).min() > 0
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_blocks_without_cls_are_left_out():
    assert cls_layers(tiny_backbone(layer=3)) == [4]
    assert cls_layers(tiny_backbone(layer=3, cls_layer=0)) == [1, 2, 3, 4]
    assert cls_layers(tiny_backbone(layer=4)) == [1, 2, 3, 4]


@pytest.fixture
def folder(tmp_path):
    """Eight photographs in two classes, four of each to evaluate on."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i}.png")
    return tmp_path / "images"


def folder_features(folder, root, **options):
    backbone, _, trainer = parts()
    source = ImageFolder(str(folder))
    data = LabelledDataModule(source, image_size=16, num_workers=0, **options)
    return cached_features(backbone, "weights", data, "test", trainer, root), data


def test_image_that_was_replaced_under_its_name_is_read_again(folder, tmp_path, caplog):
    first, _ = folder_features(folder, tmp_path)
    with caplog.at_level("INFO"):
        again, _ = folder_features(folder, tmp_path)
    assert "features of 8 test images: taken from" in caplog.text
    np.testing.assert_array_equal(first.values, again.values)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "val" / "a" / "2.png")
    changed, _ = folder_features(folder, tmp_path)
    moved = np.abs(changed.values - first.values).max(axis=(1, 2)) > 0
    assert moved.tolist() == [False, False, True] + [False] * 5


@pytest.mark.filterwarnings("ignore:.*it is skipped.*")
def test_unreadable_image_is_left_out_and_counted_also_from_the_cache(folder, tmp_path):
    (folder / "val" / "b" / "1.png").write_bytes(b"no image")
    for _ in range(2):
        options = {"on_bad_image": "skip", "max_bad_share": 0.5}
        features, data = folder_features(folder, tmp_path, **options)
        assert features.rows.tolist() == [0, 1, 2, 3, 4, 6, 7]
        assert features.label.tolist() == [0, 0, 0, 0, 1, 1, 1]
        assert features.embeddings().shape == (7, 32)
        assert data.reasons()[-1] == "1 test images could not be read and were skipped"
    rows = CleanRows(features, 4)
    assert torch.equal(rows[1].features[:, -1], features.embeddings()[4:])
    assert rows[1].label.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["cut", "other shape", "other rows"])
def test_damaged_cache_is_refused_with_what_to_remove(kind, tmp_path):
    backbone, data, trainer = parts()
    cached_features(backbone, "weights", data, "test", trainer, tmp_path)
    (folder,) = (tmp_path / "features").iterdir()
    if kind == "cut":
        (folder / "cls.npy").write_bytes((folder / "cls.npy").read_bytes()[:300])
    elif kind == "other shape":
        np.save(folder / "cls.npy", np.zeros((13, 2, 32), np.float32))
    else:
        np.save(folder / "rows.npy", np.arange(14))
    with pytest.raises(ValueError, match=f"remove .*{folder.name}, and it is computed again"):
        cached_features(backbone, "weights", data, "test", trainer, tmp_path)
