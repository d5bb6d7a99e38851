"""The segmentation stage on tiny sets of masks: from folders to a record and a picture."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mask_tree import write_ade, write_own, write_voc
from ser_lightning.commands.evaluate import StageCommandLine, evaluate
from ser_lightning.data.benchmarks.segmentation import MaskTest
from ser_lightning.evaluation.mask_head import LinearMaskHead, predicted_masks
from ser_lightning.evaluation.stages.segmentation import SegmentationStage, constant_miou
from ser_lightning.results.record import read_record
from ser_lightning.sources.base import Part
from ser_lightning.sources.mask_folder import MaskFolder
from ser_lightning.sources.masks import class_counts

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "eval" / "segmentation.yaml")
KNN = str(ROOT / "configs" / "eval" / "knn.yaml")
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
SHORT = ["--trainer.max_steps", "6", "--model.warmup_steps", "1", "--data.global_batch_size", "4"]
OPTIONS = [*CPU, *SHORT, "--data.side", "32", "--data.evaluation_batch_size", "2"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*the released set has.*"),
]


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    return str(write_own(tmp_path_factory.mktemp("masks")))


def arguments(checkpoint, masks, *options):
    data = ["--data.source.root", masks]
    return ["--config", CONFIG, "--checkpoint", str(checkpoint), *OPTIONS, *data, *options]


def run(checkpoint, masks, folder, *options):
    cli = StageCommandLine(arguments(checkpoint, masks, *options))
    (result,) = cli.model.run(cli.trainer, cli.datamodule, folder)
    return cli.model, cli.datamodule, result


def test_stage_runs_in_double_precision(checkpoint, masks, tmp_path):
    model, _, result = run(checkpoint, masks, tmp_path, "--trainer.precision", "64-true")
    assert next(model.heads.parameters()).dtype == torch.float64
    assert 0 <= result.metrics["miou"] <= 100


def test_stage_writes_a_record_and_a_picture(checkpoint, masks, tmp_path):
    options = ["--run_dir", str(tmp_path), "--model.layers", "null"]
    evaluate(arguments(checkpoint, masks, *options))
    (path,) = (tmp_path / "results").glob("segmentation-masks_*.json")
    record = read_record(path)
    assert record.num_samples == 5
    names = {"miou", "miou_layer1", "random_init/miou", "random_init/miou_layer1", "constant/miou"}
    ious = {name for name in record.metrics if name.startswith("iou")}
    assert set(record.metrics) - ious == names
    assert ious <= {f"iou{layer}/class_{n}" for layer in ("", "_layer1") for n in range(4)}
    assert all(0 <= value <= 100 for value in record.metrics.values())
    assert not record.official
    assert any("no published protocol" in reason for reason in record.unofficial_reasons)
    assert record.transform["side"] == 32
    assert record.protocol["max_steps"] == 6
    assert record.protocol["num_train"] == 12
    with Image.open(path.with_suffix(".png")) as picture:
        assert min(picture.size) > 300


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_constant_is_that_of_the_images_that_could_be_read(checkpoint, masks, tmp_path):
    folder = shutil.copytree(masks, tmp_path / "masks")
    first = sorted((folder / "val" / "images").iterdir())[0]
    first.write_bytes(b"damaged")
    skip = ["--data.on_bad_image", "skip", "--data.max_bad_share", "1"]
    model, data, result = run(checkpoint, str(folder), tmp_path, *skip)
    assert sorted(model.measured.tolist()) == [1, 2, 3, 4]
    counts = class_counts(Part(data.images("test"), np.arange(1, 5)))
    assert result.metrics["constant/miou"] == constant_miou(data.train_counts, counts)
    assert result.metrics["constant/miou"] != constant_miou(
        data.train_counts, class_counts(data.images("test"))
    )


@pytest.mark.parametrize(
    ("write", "name"),
    [(write_voc, "voc2012"), pytest.param(write_ade, "ade20k", marks=pytest.mark.slow)],
)
def test_released_layouts_run_to_the_record(checkpoint, tmp_path, write, name):
    write(tmp_path / "set")
    options = ["--run_dir", str(tmp_path / "run"), "--images", str(tmp_path / "set")]
    short = [*OPTIONS, "--trainer.max_steps", "2", "--model.baseline", "false"]
    evaluate(["--config", CONFIG, "--checkpoint", str(checkpoint), *short, *options])
    record = read_record(tmp_path / "run" / "results" / f"segmentation-{name}.json")
    assert record.num_samples == 3
    classes = {"voc2012": {"background", "tvmonitor"}, "ade20k": {"thing_1_thing"}}[name]
    assert classes <= {metric.removeprefix("iou/") for metric in record.metrics}


def brute_force(found, truth, num_classes):
    """The IoU of every class over all pixels that count, and their mean, one pixel at a time."""
    both, either = [0] * num_classes, [0] * num_classes
    for image, mask in zip(found, truth, strict=True):
        pixels = zip(image.flatten().tolist(), mask.flatten().tolist(), strict=True)
        for told, true in pixels:
            if true == 255:
                continue
            both[true] += told == true
            for label in {told, true}:
                either[label] += 1
    ious = {n: 100 * both[n] / either[n] for n in range(num_classes) if either[n]}
    return ious, sum(ious.values()) / len(ious)


def test_overlap_is_that_of_all_pixels_at_full_size(checkpoint, masks, tmp_path):
    stage, data, result = run(checkpoint, masks, tmp_path)
    test = MaskFolder(masks).evaluation()
    truth = [test.mask(index) for index in range(5)]
    batch = MaskTest(data.reader(data.images("test")), data.clean, 32)(torch.arange(5).numpy())
    with torch.no_grad():
        for name, logits in zip(
            ("", "random_init/"), stage.eval().logits(batch.pixels), strict=True
        ):
            found = predicted_masks(logits, [tuple(mask.shape) for mask in truth])
            ious, mean = brute_force(found, truth, 4)
            assert result.metrics[f"{name}miou"] == pytest.approx(mean, abs=1e-4)
            if not name:
                named = {f"iou/class_{number}": value for number, value in ious.items()}
                of_classes = {n: v for n, v in result.metrics.items() if n.startswith("iou/")}
                assert of_classes == pytest.approx(named, abs=1e-4)
    assert sorted(stage.measured.tolist()) == list(range(5))
    shown = result.shown.pictures
    assert [tuple(picture.truth.shape) for picture in shown] == [
        tuple(truth[i].shape) for i in (0, 1, 2, 3)
    ]
    assert torch.equal(shown[1].predicted["random init, last block"], found[1])


def test_constant_is_the_commonest_class_everywhere():
    train, test = torch.tensor([50, 10, 0, 0]), torch.tensor([30, 10, 20, 0])
    truth = torch.tensor([0] * 30 + [1] * 10 + [2] * 20)
    _, mean = brute_force([torch.zeros(60, dtype=torch.long)], [truth], 4)
    assert constant_miou(train, test) == pytest.approx(mean)


def test_training_changes_the_heads_and_no_backbone(checkpoint, masks, tmp_path):
    cli = StageCommandLine(arguments(checkpoint, masks, "--model.layers", "[1, 9]"))
    stage = cli.model
    before = {name: value.clone() for name, value in stage.backbone.state_dict().items()}
    stage.run(cli.trainer, cli.datamodule, tmp_path)
    assert stage.layers == [1, stage.backbone.depth]
    assert cli.trainer.global_step == 6
    for name, value in stage.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in stage.backbones.parameters())
    trained = [p for group in cli.trainer.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in stage.heads.parameters()}
    assert len(stage.heads) == 4
    start = LinearMaskHead(stage.backbone.width, 4, stage.seed)
    for head in stage.heads:
        for name, value in head.named_parameters():
            assert not torch.equal(value, start.get_parameter(name)), name


@pytest.mark.slow
def test_head_trains_as_if_alone(checkpoint, masks, tmp_path):
    alone, _, _ = run(checkpoint, masks, tmp_path, "--model.baseline", "false")
    both, _, _ = run(checkpoint, masks, tmp_path, "--model.layers", "[1, 9]")
    for name, value in alone.heads[0].state_dict().items():
        torch.testing.assert_close(both.heads[1].state_dict()[name], value)


@pytest.mark.slow
def test_same_seed_gives_the_same_numbers(checkpoint, masks, tmp_path):
    first, again = (run(checkpoint, masks, tmp_path)[2].metrics for _ in range(2))
    assert first == again


def test_learning_rate_rises_then_falls_to_almost_nothing(checkpoint, masks, tmp_path):
    options = ["--trainer.max_steps", "40", "--model.warmup_steps", "10"]
    cli = StageCommandLine(arguments(checkpoint, masks, *options))
    stage = cli.model
    stage.build(4)
    stage._trainer = SimpleNamespace(
        train_dataloader=[], num_training_batches=4, accumulate_grad_batches=1,
        max_epochs=None, max_steps=40,
    )  # fmt: skip
    scheduler = stage.configure_optimizers()["lr_scheduler"]["scheduler"]
    (schedule,) = scheduler.lr_lambdas[:1]
    rates = [schedule(step) for step in range(40)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(0 < after < before for before, after in itertools.pairwise(rates[9:]))


def test_side_must_be_whole_patches(checkpoint, masks, tmp_path):
    with pytest.raises(ValueError, match=r"side 30 is no multiple of the patch of 4 .* 28"):
        run(checkpoint, masks, tmp_path, "--data.side", "30")


def test_training_no_longer_than_the_warmup_is_refused(checkpoint, masks, tmp_path):
    with pytest.raises(ValueError, match=r"run of 6 steps .* beyond the warm-up of 6 steps; lower"):
        run(checkpoint, masks, tmp_path, "--model.warmup_steps", "6")


def test_data_without_masks_are_refused(checkpoint):
    options = ["--data", "LabelledDataModule", "--trainer.max_steps", "9"]
    stage = SegmentationStage(str(checkpoint))
    cli = StageCommandLine(["--config", KNN, "--checkpoint", str(checkpoint), *CPU, *options])
    with pytest.raises(
        ValueError,
        match=r"Labelled.* nothing for the stage segmentation to measure; use .*Segmentation",
    ):
        stage.run(cli.trainer, cli.datamodule, Path())


def test_masks_that_do_not_fit_are_refused_before_the_first_batch(
    checkpoint, tmp_path, monkeypatch
):
    write_own(tmp_path)
    Image.new("L", (9, 7)).save(tmp_path / "val" / "masks" / "val2.png")
    cli = StageCommandLine(arguments(checkpoint, str(tmp_path)))
    monkeypatch.setattr(cli.trainer, "fit", None)
    with pytest.raises(ValueError, match=r"val2.png has 9 x 7 pixels and its image"):
        cli.model.run(cli.trainer, cli.datamodule, tmp_path)


@pytest.mark.slow
def test_trained_probe_finds_rectangles(checkpoint, masks, tmp_path):
    options = ["--trainer.max_steps", "150", "--model.learning_rate", "1.0e-2"]
    _, _, result = run(checkpoint, masks, tmp_path, *options)
    assert result.metrics["miou"] > 2 * result.metrics["constant/miou"]
