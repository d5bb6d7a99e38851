"""The stage of 3DIEBench's regressions on tiny trees of its layouts, by its configuration."""

from pathlib import Path

import pytest

from object_tree import SYNSETS, write_bench, write_out_of_range
from ser_lightning.commands.evaluate import StageCommandLine, evaluate
from ser_lightning.evaluation.stages.threediebench_regression import ThreeDIEBenchRegressionStage
from ser_lightning.results.record import read_record

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "eval" / "3diebench-regression.yaml")
KNN = str(ROOT / "configs" / "eval" / "knn.yaml")
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
SHORT = ["--trainer.max_epochs", "30", "--model.batch_size", "9", "--model.hidden", "64"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*the released set has.*"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return str(write_bench(tmp_path_factory.mktemp("bench"), num_train=6, num_val=4))


def arguments(checkpoint, bench, *options):
    base = ["--config", CONFIG, "--checkpoint", str(checkpoint), "--data.source.root", bench]
    return [*base, *CPU, *SHORT, *options]


def test_stage_writes_a_record(checkpoint, bench, tmp_path):
    evaluate(arguments(checkpoint, bench, "--run_dir", str(tmp_path)))
    record = read_record(tmp_path / "results" / "3diebench-regression-3diebench.json")
    targets = ("rotation", "colour")
    names = {f"{init}r2/{target}" for init in ("", "random_init/") for target in targets}
    assert set(record.metrics) == names
    assert all(value <= 1 for value in record.metrics.values())
    assert record.num_samples == 24
    assert record.counts == {"pairs": 12}
    assert record.protocol["max_epochs"] == 30
    assert record.protocol["num_train"] == 18
    assert record.data_root == bench
    assert "the released set has 527,600" in "; ".join(record.unofficial_reasons)
    assert not list((tmp_path / "features").iterdir())


@pytest.mark.slow
def test_translations_and_views_out_of_range_have_records_of_their_own(checkpoint, tmp_path):
    write_bench(tmp_path / "t", num_train=3, num_val=2, num_latents=10)
    translated = arguments(checkpoint, str(tmp_path / "t"), "--model.batch_size", "256")
    evaluate([*translated, "--run_dir", str(tmp_path), "--model.baseline", "false"])
    record = read_record(tmp_path / "results" / "3diebench-regression-3diebench_t.json")
    assert set(record.metrics) == {
        "r2/rotation", "r2/colour", "r2/translation_object", "r2/translation_base"
    }  # fmt: skip
    assert "9 pairs a step for want of 256" in record.unofficial_reasons


@pytest.mark.slow
def test_out_of_range_views_are_told_by_the_same_heads(checkpoint, bench, tmp_path):
    objects = [f"{synset}/val{number}" for synset in SYNSETS for number in range(2)]
    write_out_of_range(tmp_path / "ood", objects, num_views=4)
    options = ["--run_dir", str(tmp_path), "--data.out_of_range", str(tmp_path / "ood")]
    evaluate(arguments(checkpoint, bench, *options))
    records = [
        read_record(tmp_path / "results" / f"3diebench-regression-3diebench{name}.json")
        for name in ("", "_out_of_range")
    ]
    assert [record.counts["pairs"] for record in records] == [12, 6]
    assert records[0].data_sha256 != records[1].data_sha256
    assert records[0].protocol == records[1].protocol
    assert str(tmp_path) not in str(records[0].protocol)  # the same numbers, wherever it lies
    assert set(records[0].metrics) == set(records[1].metrics)


def test_targets_that_a_set_out_of_range_does_not_tell_are_left_out_of_its_record(
    checkpoint, tmp_path
):
    write_bench(tmp_path / "t", num_train=3, num_val=2, num_latents=10)
    objects = [f"{synset}/val{number}" for synset in SYNSETS for number in range(2)]
    write_out_of_range(tmp_path / "ood", objects, num_views=4)
    options = ["--run_dir", str(tmp_path), "--data.out_of_range", str(tmp_path / "ood")]
    short = ["--trainer.max_epochs", "1", "--model.baseline", "false"]
    paths = evaluate(arguments(checkpoint, str(tmp_path / "t"), *options, *short))
    told, rotations = (set(read_record(path).metrics) for path in paths)
    assert rotations == {"r2/rotation", "r2/colour"}
    assert told == rotations | {"r2/translation_object", "r2/translation_base"}


@pytest.mark.slow
def test_same_seed_gives_the_same_numbers_and_backbones_stay(checkpoint, bench, tmp_path):
    found = []
    for _ in range(2):
        cli = StageCommandLine(arguments(checkpoint, bench))
        before = {n: value.clone() for n, value in cli.model.backbone.state_dict().items()}
        (result,) = cli.model.run(cli.trainer, cli.datamodule, tmp_path)
        found.append(result.metrics)
        after = cli.model.backbone.state_dict()
        assert all((after[name] == value).all() for name, value in before.items())
    assert found[0] == found[1]


def test_missing_latents_are_noticed_before_the_pass(checkpoint, tmp_path, monkeypatch):
    write_bench(tmp_path, num_train=1, num_val=1)
    (tmp_path / SYNSETS[0] / "val0" / "latent_3.npy").unlink()
    for view in range(50):
        (tmp_path / SYNSETS[1] / "val0" / f"latent_{view}.npy").unlink()
    cli = StageCommandLine(arguments(checkpoint, str(tmp_path), "--model.batch_size", "3"))
    monkeypatch.setattr(cli.trainer, "test", None)
    with pytest.raises(FileNotFoundError, match=r"latent_\d+.npy does not exist; the release has"):
        cli.model.run(cli.trainer, cli.datamodule, tmp_path)


def test_data_without_pairs_are_refused(checkpoint):
    stage = ThreeDIEBenchRegressionStage(str(checkpoint))
    cli = StageCommandLine(["--config", KNN, "--checkpoint", str(checkpoint), *CPU])
    with pytest.raises(
        ValueError,
        match=r"Labelled.* nothing for the stage 3diebench-regression to measure; use .*View",
    ):
        stage.run(cli.trainer, cli.datamodule, Path())
