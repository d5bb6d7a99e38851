"""`ser-fit evaluate`: a checkpoint in, a record out."""

import json
from pathlib import Path

import pytest
import yaml

from ser_lightning.cli import main
from ser_lightning.evaluate import StageCommandLine
from ser_lightning.reporting.records import read_record

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests" / "tiny.yaml")
KNN = str(ROOT / "configs" / "eval" / "knn.yaml")
STAGES = sorted((ROOT / "configs" / "eval").glob("*.yaml"))
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The checkpoint of a finished tiny run."""
    run = tmp_path_factory.mktemp("tiny") / "run"
    main(["fit", "--config", TINY, "--run_dir", str(run), "--trainer.max_epochs", "2"])
    return run / "checkpoints" / "last.ckpt"


def evaluate(checkpoint, *options):
    main(["evaluate", "--config", KNN, "--checkpoint", str(checkpoint), *CPU, *options])


def error_of(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *args])
    assert stop.value.code not in (0, None)
    text = capsys.readouterr().err
    return text if isinstance(stop.value.code, int) else text + str(stop.value.code)


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_stage_configuration_says_where_it_is_from_and_names_a_stage(path):
    text = path.read_text()
    for note in ("Source:", "Run:", "Expect:"):
        assert note in text.split("model:")[0], note
    assert f"make {path.stem}-eval" in text
    assert yaml.safe_load(text)["model"]["class_path"]


def test_record_holds_checkpoint_data_and_protocol(checkpoint):
    evaluate(checkpoint, "--model.k", "[1,5]")
    (path,) = (checkpoint.parents[1] / "results").glob("knn-*.json")
    record = read_record(path)
    assert record.stage == "knn"
    assert record.dataset == "shapes"
    assert len(record.checkpoint_sha256) == 64
    assert record.num_samples == 24
    assert record.protocol == {"k": [1, 5], "temperature": [0.07]}
    assert set(record.metrics) == {"top1_k1", "top5_k1", "top1_k5", "top5_k5"}
    assert record.transform["image_size"] == 16
    assert record.official


def test_second_stage_finds_the_features_of_the_first(checkpoint):
    evaluate(checkpoint)
    folder = checkpoint.parents[1] / "features"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("cls.npy")}
    evaluate(checkpoint, "--model.temperature", "[0.1]")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("cls.npy")} == before
    assert not list(folder.glob("*.partial"))


def test_a_part_of_the_images_is_marked_unofficial(checkpoint, tmp_path):
    evaluate(checkpoint, "--data.num_test", "12", "--run_dir", str(tmp_path))
    record = json.loads((tmp_path / "results" / "knn-shapes.json").read_text())
    assert record["num_samples"] == 12
    assert not record["official"]
    assert "a part" in record["unofficial_reason"]


def test_momentum_branch_is_measured_when_asked_for(checkpoint, tmp_path):
    evaluate(checkpoint, "--model.branch", "momentum", "--run_dir", str(tmp_path))
    record = read_record(tmp_path / "results" / "knn-shapes.json")
    assert record.weights_key == "momentum"


def test_images_come_from_the_checkpoint_unless_said_otherwise(checkpoint):
    args = ["--config", KNN, "--checkpoint", str(checkpoint), *CPU]
    data = StageCommandLine(args).datamodule
    assert type(data.source).__name__ == "Shapes"
    assert data.source.train().read(0).shape == (3, 16, 16)
    assert data.evaluation_crop_fraction == 1.0
    assert data.image_size == 16


def test_missing_checkpoint_gets_a_short_message(tmp_path, capsys):
    assert "nowhere.ckpt does not exist" in error_of(
        ["--config", KNN, "--checkpoint", "nowhere.ckpt"], capsys
    )


def test_unknown_setting_gets_a_hint(checkpoint, capsys):
    args = ["--config", KNN, "--checkpoint", str(checkpoint), "--model.kk", "3"]
    assert "kk" in error_of(args, capsys)
