"""The detection stage on a tiny COCO: from annotations to a record."""

from pathlib import Path

import pytest
import torch
from torch import nn

from coco_tree import write_coco
from evaluation.stages.two_process_detection import rank_result
from ser_lightning.commands.evaluate import StageCommandLine, evaluate
from ser_lightning.data.benchmarks.detection import DetectionTest
from ser_lightning.evaluation.stages import detection
from ser_lightning.evaluation.stages.detection import DetectionStage, relative_learning_rate
from ser_lightning.results.record import read_record
from support import run_processes

pytest.importorskip("faster_coco_eval")

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "eval" / "detection.yaml")
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
TINY = ["--model.head", "fcos", "--model.channels", "32", "--model.warmup_steps", "1"]
SIZES = ["--data.short_sides", "[48, 64]", "--data.test_short_side", "64", "--data.long_side", "96"]
SHORT = ["--trainer.max_steps", "5", "--data.global_batch_size", "2"]
OPTIONS = [*CPU, *TINY, *SIZES, *SHORT, "--data.evaluation_batch_size", "2"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*the released set has.*"),
]


@pytest.fixture
def coco(tmp_path):
    return str(write_coco(tmp_path / "coco"))


def arguments(checkpoint, coco, *options):
    data = ["--data.source.root", coco]
    return ["--config", CONFIG, "--checkpoint", str(checkpoint), *OPTIONS, *data, *options]


class Oracle(nn.Module):
    """Stands for a detector that finds every annotation of the images it is shown, in order."""

    def __init__(self, images):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.images = images
        self.num_seen = 0

    def forward(self, images, targets=None):
        if targets is not None:
            return {"loss": self.weight.sum()}
        return [self._found(image) for image in images]

    def _found(self, image):
        height, width = self.images.read(self.num_seen).shape[1:]
        boxes = self.images.boxes(self.num_seen)
        self.num_seen += 1
        scale = torch.tensor([image.shape[2] / width, image.shape[1] / height] * 2)
        score = torch.ones(len(boxes.labels))
        return {"boxes": boxes.corners * scale, "scores": score, "labels": boxes.labels}


def test_stage_trains_measures_and_writes_a_record(checkpoint, coco, tmp_path):
    evaluate(arguments(checkpoint, coco, "--run_dir", str(tmp_path)))
    record = read_record(tmp_path / "results" / "detection-coco2017-fcos.json")
    assert record.stage == "detection"
    assert record.num_samples == 5
    assert {"map", "map_50", "map_75"} <= set(record.metrics)
    assert all(0 <= value <= 1 for value in record.metrics.values())
    assert record.protocol["head"] == "fcos"
    assert record.protocol["max_steps"] == 5
    assert record.protocol["gradient_clip_val"] == 1.0
    assert record.transform["short_side"] == 64
    assert record.data_root == coco
    assert "; ".join(record.unofficial_reasons) == "val2017 has 5 files, the released set has 5,000"


def test_what_is_detected_is_compared_in_original_pixels_and_raw_ids(checkpoint, coco, monkeypatch):
    monkeypatch.setattr(detection, "build_detector", lambda *args: Oracle(data.images("test")))
    cli = StageCommandLine(arguments(checkpoint, coco))
    data = cli.datamodule
    (result,) = cli.model.run(cli.trainer, data, Path(coco))
    assert result.dataset == "coco2017"
    assert result.metrics["map"] == pytest.approx(1)
    assert sorted(cli.model.measured.tolist()) == list(range(5))
    assert set(cli.model.detections[:, 6].tolist()) == {1, 3, 90}


def test_training_changes_the_detector_and_not_the_backbone(checkpoint, coco, monkeypatch):
    def refuse(self, batch):
        raise AssertionError("a test image was read while training")

    monkeypatch.setattr(DetectionTest, "__call__", refuse)
    cli = StageCommandLine(arguments(checkpoint, coco))
    stage, data, trainer = cli.model, cli.datamodule, cli.trainer
    monkeypatch.setattr(trainer, "test", lambda *args, **options: None)
    monkeypatch.setattr(stage, "detections", torch.empty(0, 7), raising=False)
    monkeypatch.setattr(stage, "measured", torch.empty(0), raising=False)
    before = {name: value.clone() for name, value in stage.backbone.state_dict().items()}
    stage.run(trainer, data, Path(coco))
    assert trainer.global_step == 5
    for name, value in stage.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in stage.backbone.parameters())
    frozen = {id(parameter) for parameter in stage.backbone.parameters()}
    groups = trainer.optimizers[0].param_groups
    trained = [parameter for group in groups for parameter in group["params"]]
    assert not frozen & {id(parameter) for parameter in trained}
    detector = stage.detector.named_parameters()
    assert len(trained) == sum(not name.startswith("backbone.backbone.") for name, _ in detector)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])


def test_learning_rate_rises_then_drops_twice():
    rates = [relative_learning_rate(step, 45000, 1000) for step in range(45000)]
    assert rates[0] == pytest.approx(1 / 1001)
    assert rates[499] == pytest.approx(500 / 1001)
    assert all(rate == 1 for rate in rates[1000:40000])
    assert rates[40000] == rates[43332] == pytest.approx(0.1)
    assert rates[43333] == rates[-1] == pytest.approx(0.01)


def test_training_no_longer_than_the_warmup_is_refused(checkpoint, coco):
    cli = StageCommandLine(arguments(checkpoint, coco, "--model.warmup_steps", "5"))
    with pytest.raises(
        ValueError, match=r"run of 5 steps .trainer.max_steps. does not go beyond the warm-up of 5"
    ):
        cli.model.run(cli.trainer, cli.datamodule, Path(coco))


def test_images_without_boxes_are_refused(checkpoint, capsys):
    options = ["--data", "LabelledDataModule", "--trainer.max_steps", "9"]
    stage = DetectionStage(str(checkpoint), warmup_steps=1)
    cli = StageCommandLine(["--config", KNN, "--checkpoint", str(checkpoint), *CPU, *options])
    with pytest.raises(
        ValueError,
        match=r"Labelled.* nothing for the stage detection to measure; use .*Detection",
    ):
        stage.run(cli.trainer, cli.datamodule, Path())


KNN = str(ROOT / "configs" / "eval" / "knn.yaml")


def test_missing_package_is_noticed_before_training(checkpoint, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'ser-lightning\[coco\]'"):
        DetectionStage(str(checkpoint))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["faster_rcnn", "retinanet"])
def test_other_heads_run_to_the_record(checkpoint, coco, tmp_path, head):
    evaluate(arguments(checkpoint, coco, "--run_dir", str(tmp_path), "--model.head", head))
    name = {"faster_rcnn": "detection-coco2017.json"}.get(head, f"detection-coco2017-{head}.json")
    record = read_record(tmp_path / "results" / name)
    assert record.protocol["head"] == head
    assert record.num_samples == 5


@pytest.mark.slow
def test_trained_detector_finds_rectangles(checkpoint, coco, tmp_path):
    options = ["--trainer.max_steps", "120", "--model.learning_rate", "3.0e-3"]
    evaluate(arguments(checkpoint, coco, "--run_dir", str(tmp_path), *options))
    record = read_record(tmp_path / "results" / "detection-coco2017-fcos.json")
    assert record.metrics["map_50"] > 0.3  # measured: 0.58, and 0 after two steps


@pytest.mark.slow
def test_two_processes_measure_what_one_does(checkpoint, coco):
    (one,) = run_processes(rank_result, checkpoint, coco, world_size=1)
    both = run_processes(rank_result, checkpoint, coco)
    assert sorted(one["measured"]) == list(range(5))
    for result in both:
        assert sorted(result["measured"]) == list(range(5))
        assert result["metrics"] == pytest.approx(one["metrics"], abs=1e-6)
