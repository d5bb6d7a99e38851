"""The linear stage on a tiny 3DIEBench, as `configs/eval/3diebench.yaml` runs it."""

from pathlib import Path

import pytest

from object_tree import NUM_VIEWS, write_bench
from ser_lightning.commands.evaluate import StageCommandLine, evaluate
from ser_lightning.evaluation.linear_head import LinearClassifier
from ser_lightning.results.record import read_record
from ser_lightning.sources.threediebench import ObjectImages

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "eval" / "3diebench.yaml")
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
SHORT = ["--trainer.max_epochs", "5", "--data.global_batch_size", "7"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*the released set has.*"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return str(write_bench(tmp_path_factory.mktemp("bench")))


def arguments(checkpoint, bench, *options):
    base = ["--config", CONFIG, "--checkpoint", str(checkpoint), "--data.source.root", bench]
    return [*base, *CPU, *SHORT, "--data.holdout_fraction", "0.125", *options]


@pytest.mark.slow
def test_probe_tells_the_classes_of_unseen_objects(checkpoint, bench, tmp_path):
    evaluate(arguments(checkpoint, bench, "--run_dir", str(tmp_path)))
    record = read_record(tmp_path / "results" / "3diebench-3diebench.json")
    assert record.stage == "3diebench"
    assert record.num_samples == 6 * NUM_VIEWS
    assert record.metrics["top1"] > 60  # chance: 33
    assert record.metrics["top5"] == 100
    assert record.transform["resize"] == record.transform["image_size"] == 16
    assert record.data_root == bench
    assert "300 files, the released set has 527,600" in "; ".join(record.unofficial_reasons)
    head = LinearClassifier.load(tmp_path / "results" / "linear-3diebench.safetensors")
    assert head.class_names == ["02691156", "02747177", "04554684"]


def test_selection_does_not_read_the_objects_of_the_test(checkpoint, bench, tmp_path, monkeypatch):
    cli = StageCommandLine(arguments(checkpoint, bench))
    read, fit = set(), cli.trainer.fit

    def recorded(self, index, function=ObjectImages.read):
        read.add(Path(self.path(index)).parent.name)
        return function(self, index)

    def fitted(*args, **options):
        read.clear()
        fit(*args, **options)
        assert read
        assert not any(name.startswith("val") for name in read)

    monkeypatch.setattr(ObjectImages, "read", recorded)
    monkeypatch.setattr(cli.trainer, "fit", fitted)
    (result,) = cli.model.run(cli.trainer, cli.datamodule, tmp_path)
    assert result.dataset == "3diebench"
    assert "holdout_top1" in str(result.selected)
