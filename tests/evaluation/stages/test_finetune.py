"""The fine-tuning stage: its recipe, its randomness, and what it measures."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy

from ser_lightning.batch import EvaluationBatch
from ser_lightning.commands.evaluate import StageCommandLine, evaluate
from ser_lightning.randomness import Stream, generator
from ser_lightning.results.hits import load_hits
from ser_lightning.results.record import read_record
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]
TINY = str(ROOT / "tests" / "tiny.yaml")
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
SHORT = [
    "--data.global_batch_size",
    "48",
    "--trainer.max_epochs",
    "2",
    "--model.warmup_epochs",
    "1",
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def arguments(checkpoint, config, *options):
    path = str(ROOT / "configs" / "eval" / f"{config}.yaml")
    return ["--config", path, "--checkpoint", str(checkpoint), *CPU, *SHORT, *options]


def results(folder, checkpoint, config, *options):
    evaluate(arguments(checkpoint, config, "--run_dir", str(folder), *options))
    return read_record(folder / "results" / f"{config}-{SHAPES}.json")


class Ready(Exception):
    """Everything is set up."""


def ready(checkpoint, config="finetune", *options):
    """A stage before its first step, attached to its trainer and data."""
    cli = StageCommandLine(arguments(checkpoint, config, *options))

    def stop():
        raise Ready

    cli.model.on_train_start = stop
    with pytest.raises(Ready):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli


def batch_of(size=8, num_classes=5):
    torch.manual_seed(1)
    labels = torch.arange(size) % num_classes
    return EvaluationBatch(torch.randn(size, 3, 16, 16), labels, torch.arange(size))


def test_optimizer_has_the_recipe_and_the_schedule(checkpoint):
    cli = ready(checkpoint)
    optimizer, scheduler = cli.trainer.optimizers[0], cli.trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
    peak = 1e-3 * 48 / 256
    scales = sorted({round(rate / peak, 6) for rate in scheduler.base_lrs})
    assert scales == pytest.approx([0.75**3, 0.75**2, 0.75, 1.0], abs=1e-6)
    for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
        assert group["lr"] == pytest.approx(base * 1e-6 / peak)  # warm-up begins at 1e-6


def test_stage_trains_the_whole_backbone_in_training_mode(checkpoint):
    stage = ready(checkpoint).model
    stage.train()
    assert all(module.training for module in stage.backbone.modules())
    assert stage.classifier.backbone is stage.backbone
    assert all(parameter.requires_grad for parameter in stage.classifier.parameters())


def test_average_never_trains(checkpoint):
    stage = ready(checkpoint, "finetune_deit").model
    stage.train()
    assert not any(module.training for module in stage.averaged.modules())
    assert not any(parameter.requires_grad for parameter in stage.averaged.parameters())


def test_targets_without_mixing_are_smoothed_labels(checkpoint):
    stage = ready(checkpoint, "finetune", "--model.mixup", "0", "--model.cutmix", "0").model
    batch = batch_of(num_classes=12)
    pixels, target = stage.mixed(batch, generator(0, Stream.STEP))
    logits = torch.randn(8, 12, requires_grad=True)
    assert torch.equal(pixels, batch.pixels)
    loss, oracle = stage.loss(logits, target), LabelSmoothingCrossEntropy(0.1)(logits, batch.label)
    torch.testing.assert_close(loss, oracle)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits)[0], torch.autograd.grad(oracle, logits)[0]
    )


def test_mixing_is_a_function_of_the_draws_and_mixes_labels_like_pixels(checkpoint):
    stage = ready(checkpoint, "finetune", "--model.cutmix", "0").model
    clean = batch_of(num_classes=12)
    mixed = []
    for seed in (0, 0, 1):
        batch = clean._replace(pixels=clean.pixels.clone())
        mixed.append(stage.mixed(batch, generator(seed, Stream.STEP)))
    assert torch.equal(mixed[0][0], mixed[1][0])
    assert not torch.equal(mixed[0][0], mixed[2][0])
    pixels, target = mixed[0]
    share = (target[0, 0] - 0.1 / 12) / 0.9  # of class 0, the first image's
    assert 0 < share < 1
    torch.testing.assert_close(pixels[0], share * clean.pixels[0] + (1 - share) * clean.pixels[-1])
    torch.testing.assert_close(target.sum(1), torch.ones(8))


def test_config_runs_and_records_what_it_did(checkpoint, tmp_path):
    record = results(tmp_path, checkpoint, "finetune")
    assert record.num_samples == 24
    assert set(record.metrics) == {"top1", "top5"}
    assert record.metrics["top1"] == pytest.approx(100 * record.counts["hits"] / 24)
    (path,) = (tmp_path / "results").glob("finetune-*.json")
    hits = load_hits(path, "top1").values  # of each image, for intervals of paired differences
    assert (len(hits), hits.sum()) == (24, record.counts["hits"])
    assert record.protocol["layer_decay"] == 0.75
    assert record.protocol["rand_augment"] == "rand-m9-mstd0.5-inc1"
    assert record.protocol["max_epochs"] == 2
    assert record.protocol["holdout_fraction"] == 0
    assert record.selected == {}
    assert not (tmp_path / "checkpoints").exists()


def test_deit_config_measures_the_average_too(checkpoint, tmp_path):
    record = results(tmp_path, checkpoint, "finetune_deit")
    assert set(record.metrics) == {"top1", "top5", "top1_ema", "top5_ema"}
    assert record.protocol["num_repeats"] == 3
    assert record.protocol["ema_decay"] == 0.99996


def test_average_follows_the_weights(checkpoint):
    cli = StageCommandLine(arguments(checkpoint, "finetune_deit", "--model.ema_decay", "0.5"))
    stage, history = cli.model, []
    step = stage.optimizer_step

    def watched(*args, **kwargs):
        if not history:
            history.append(stage.classifier.head.weight.detach().clone())
        step(*args, **kwargs)
        history.append(stage.classifier.head.weight.detach().clone())

    stage.optimizer_step = watched
    cli.trainer.fit(stage, datamodule=cli.datamodule)
    average = history[0]
    for weight in history[1:]:
        average = 0.5 * average + 0.5 * weight
    assert len(history) == 5
    torch.testing.assert_close(stage.averaged.head.weight.detach(), average)


@pytest.mark.slow
def test_same_seed_gives_the_same_weights_with_and_without_workers(checkpoint):
    weights = []
    for num_workers in ("0", "2"):
        cli = StageCommandLine(arguments(checkpoint, "finetune", "--data.num_workers", num_workers))
        torch.manual_seed(int(num_workers))
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        weights.append(cli.model.classifier.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_training_reads_no_test_image_and_the_hold_out_part_changes_nothing(checkpoint):
    weights = []
    for limit in ("0", "2"):
        options = ["--data.holdout_fraction", "0.25", "--trainer.limit_val_batches", limit]
        cli = StageCommandLine(arguments(checkpoint, "finetune", *options))
        cli.datamodule.test_dataloader = None  # would fail
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        assert len(cli.datamodule.images("train")) == 72
        weights.append(cli.model.classifier.state_dict())
    assert "holdout/top1" in cli.trainer.progress_bar_metrics
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_training_fits_the_training_images(checkpoint):
    options = ["--trainer.max_epochs", "12", "--model.mixup", "0", "--model.cutmix", "0"]
    options += ["--model.base_learning_rate", "0.1", "--data.global_batch_size", "16"]
    options += ["--data.rand_augment", "null", "--data.p_erasing", "0"]
    options += ["--data.crop", "CropViews", "--data.crop.scale", "[1,1]", "--data.crop.p_flip", "0"]
    cli = StageCommandLine(arguments(checkpoint, "finetune", *options))
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    model = cli.model.classifier.eval()
    hits = [
        (model(batch.pixels).argmax(1) == batch.label).float().mean().item()
        for batch in cli.datamodule.clean_loader("train")
    ]
    assert sum(hits) / len(hits) > 0.25  # 0.08 by chance


@pytest.mark.slow
def test_two_processes_measure_like_one(checkpoint, tmp_path):
    same = ["--model.mixup", "0", "--model.cutmix", "0", "--model.drop_path_rate", "0"]
    same += ["--data.num_test", "23", "--data.evaluation_batch_size", "5"]
    records = []
    for devices in ("1", "2"):
        folder = tmp_path / devices
        options = [*same, "--trainer.devices", devices, "--run_dir", str(folder)]
        options += ["--trainer.strategy", "ddp"] if devices == "2" else []
        command = [sys.executable, "-m", "ser_lightning", "evaluate"]
        command += arguments(checkpoint, "finetune_deit", *options)
        subprocess.run(command, check=True, timeout=200)
        records.append(read_record(folder / "results" / f"finetune_deit-{SHAPES}.json"))
    assert records[1].num_samples == 23
    assert records[1].counts == records[0].counts
    assert records[1].metrics == pytest.approx(records[0].metrics)


@pytest.mark.slow
def test_gradients_are_clipped_in_mixed_precision(checkpoint, tmp_path):
    options = ["--trainer.gradient_clip_val", "1", "--trainer.precision", "bf16-mixed"]
    (path,) = evaluate(arguments(checkpoint, "finetune", "--run_dir", str(tmp_path), *options))
    assert read_record(path).protocol["gradient_clip_val"] == 1


# what it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.warmup_epochs", "2"], "not shorter than the run of 2 epochs .4 steps.; lower"),
        (["--data.global_batch_size", "9"], "a pass of a device has 9; use a"),
        (["--model.base_learning_rate", "1e30"], "lower `model.base_learning_rate`"),
    ],
)
def test_mistakes_get_a_remedy(checkpoint, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(arguments(checkpoint, "finetune", "--run_dir", str(tmp_path), *options))


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("layer_decay", "0", "float in (0, 1]"),
        ("label_smoothing", "1", "float in [0, 1)"),
        ("ema_decay", "1", "float in [0, 1)"),
        ("mixup", "-1", "float >= 0"),
        ("base_learning_rate", "nan", "float > 0"),
    ],
)
def test_values_outside_of_their_range_are_refused(checkpoint, name, value, range_, capsys):
    with pytest.raises(SystemExit):
        evaluate(arguments(checkpoint, "finetune", f"--model.{name}", value))
    message = capsys.readouterr().err
    assert name in message
    assert f"Not of type {range_}" in message


def test_data_without_augmentation_is_refused(checkpoint, tmp_path):
    plain = str(ROOT / "configs" / "eval" / "knn.yaml")
    args = ["--config", plain, "--checkpoint", str(checkpoint), *CPU, "--model", "FinetuneStage"]
    message = (
        r"LabelledDataModule has nothing for the stage finetune to measure; use data\.class_path F"
    )
    with pytest.raises(ValueError, match=message):
        evaluate([*args, "--run_dir", str(tmp_path)])
