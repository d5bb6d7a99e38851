"""The equivariance stage on a tiny run: its passes, its record and its figure."""

import math
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from ser_lightning.commands.evaluate import evaluate
from ser_lightning.data import Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.metrics.equivariance import (
    FAMILIES,
    companion_scores,
    reference_positions,
)
from ser_lightning.evaluation.stage import Stage
from ser_lightning.evaluation.stages.equivariance import (
    full_float32,
    mean_scores,
    reference_of,
)
from ser_lightning.results.record import read_record
from ser_lightning.sources.base import UnreadableImage
from support import tiny_backbone
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def run_stage(checkpoint, folder, *options, devices=CPU):
    config = str(ROOT / "configs" / "eval" / "equivariance.yaml")
    args = ["--config", config, "--checkpoint", str(checkpoint), "--run_dir", str(folder)]
    evaluate([*args, *devices, *options])
    return read_record(folder / "results" / f"equivariance-{SHAPES}.json")


def parts():
    """A tiny backbone, 19 images in batches of 4, and a trainer."""
    data = LabelledDataModule(
        Shapes(num_train=24, num_evaluation=19, image_size=16),
        image_size=16,
        num_workers=0,
        evaluation_batch_size=4,
        evaluation_crop_fraction=1.0,
    )
    data.setup("test")
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    return tiny_backbone(cls_layer=0).eval().requires_grad_(False), data, trainer


def test_reference_is_the_mean_over_all_images_and_positions():
    backbone, data, trainer = parts()
    reference = reference_of(trainer, backbone, data.clean_loader("test"), [0, 2, 4], 19)
    pixels = torch.cat([batch.pixels for batch in data.clean_loader("test")])
    maps = backbone.token_maps(pixels, [0, 2, 4])
    chosen = reference.positions
    assert len(chosen) == 16
    for i in range(3):
        torch.testing.assert_close(reference.mean[i], maps[i].mean((0, 2, 3)))
        torch.testing.assert_close(reference.maps[i], maps[i][chosen])


def test_scores_are_means_over_all_images():
    backbone, data, trainer = parts()
    means, count = mean_scores(trainer, backbone, data, [2, 4], 19, seed=3)
    assert count == 19
    pixels = torch.cat([batch.pixels for batch in data.clean_loader("test")])
    expected = companion_scores(backbone, pixels, [2, 4], torch.arange(19), None, 3)["score"]
    for family in FAMILIES:
        for layer in (2, 4):
            mean = expected[family][layer].double().mean().item()
            assert means["score", family, layer] == pytest.approx(mean, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_images_that_cannot_be_read_are_not_scored_nor_compared_with(monkeypatch):
    backbone, data, trainer = parts()
    data.on_bad_image, images = "skip", data.images("test")
    read, bad = type(images).read, int(reference_positions(19)[3])

    def refuse(self, index):
        if index == bad:
            raise UnreadableImage("damaged")
        return read(self, index)

    monkeypatch.setattr(type(images), "read", refuse)
    reference = reference_of(trainer, backbone, data.clean_loader("test"), [4], 19)
    assert len(reference.positions) == len(reference.maps[0]) == 15
    assert bad not in reference.positions
    assert mean_scores(trainer, backbone, data, [4], 19, seed=3)[1] == 18


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_one_image_that_could_be_read_has_no_chance_level(monkeypatch):
    backbone, data, trainer = parts()
    data.on_bad_image, data.max_bad_share, images = "skip", 1.0, data.images("test")
    read, first = type(images).read, int(reference_positions(19)[0])

    def refuse(self, index):
        if index != first:
            raise UnreadableImage("damaged")
        return read(self, index)

    monkeypatch.setattr(type(images), "read", refuse)
    means, count = mean_scores(trainer, backbone, data, [4], 19, seed=3)
    assert count == 1
    assert math.isnan(means["chance", "flip", 4])
    assert not math.isnan(means["score", "flip", 4])


def test_random_init_has_new_weights_and_leaves_the_generator_alone():
    backbone = tiny_backbone()
    state = torch.random.get_rng_state()
    fresh, again, other = (
        Stage.random_backbone(SimpleNamespace(backbone=backbone, seed=s)) for s in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [model.vit.blocks[0].attn.qkv.weight for model in (backbone, fresh, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])
    assert fresh.arguments == backbone.arguments
    assert not fresh.training
    assert not any(p.requires_grad for p in fresh.parameters())


@pytest.mark.parametrize("angles", [[], ["--model.angles", "[45]"]])
def test_double_precision_writes_the_record(checkpoint, tmp_path, angles):
    double = ["--trainer.precision", "64-true", "--model.num_images", "3", *angles]
    record = run_stage(checkpoint, tmp_path, *double)
    assert 0 < record.metrics["equivariance/rotation_final"] <= 1


def test_record_has_every_block_every_companion_and_a_figure(checkpoint, tmp_path):
    record = run_stage(checkpoint, tmp_path)
    rows = ["", "chance/", "no_action/", "mean_centred/", "random_init/"]
    rows.append("random_init_mean_centred/")
    expected = {
        f"equivariance/{row}{family}_{place}"
        for row in rows
        for family in FAMILIES
        for place in ("block0", "block1", "final")
        if (row, family) != ("no_action/", "scale")
    }
    assert set(record.metrics) == expected
    assert all(-1 <= value <= 1 for value in record.metrics.values())
    assert record.num_samples == 24
    assert record.official
    assert (tmp_path / "results" / f"equivariance-{SHAPES}.png").stat().st_size > 10_000
    # two epochs move the weights, but not to those of another draw
    names = [f"equivariance/{row}rotation_final" for row in ("", "random_init/", "chance/")]
    trained, fresh, chance = (record.metrics[name] for name in names)
    assert trained != fresh
    assert chance < trained


def test_angles_are_scored_at_the_layer_of_the_loss_and_at_the_end(checkpoint, tmp_path):
    record = run_stage(checkpoint, tmp_path, "--model.angles", "[90, 22.5, 90]")
    rows = ["", "chance/", "no_action/", "mean_centred/", "random_init/"]
    rows.append("random_init_mean_centred/")
    assert {name for name in record.metrics if "turn" in name} == {
        f"equivariance/{row}turn{angle}_{place}"
        for row in rows
        for angle in ("90", "22.5")
        for place in ("block1", "final")
    }
    assert record.metrics["equivariance/turn22.5_final"] < 1
    assert record.protocol["angles"] == [90, 22.5, 90]
    with pytest.raises(SystemExit):
        run_stage(checkpoint, tmp_path, "--model.angles", "[361]")


def test_part_of_the_images_is_balanced_and_unofficial(checkpoint, tmp_path):
    record = run_stage(checkpoint, tmp_path, "--model.num_images", "12")
    assert record.num_samples == 12
    assert "; ".join(record.unofficial_reasons) == "measured on 12 of 24 images"


def test_products_of_matrices_are_not_rounded_to_tf32():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert torch.backends.cudnn.allow_tf32 == before[1]


def test_half_precision_weights_are_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="bf16-true turns the weights into half precision"):
        run_stage(checkpoint, tmp_path, "--trainer.precision", "bf16-true")
