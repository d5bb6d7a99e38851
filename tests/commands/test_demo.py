"""The demo: two runs from one start, a table and a picture of them; its folder and its schedule."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ser_lightning.commands import demo as demo_module
from ser_lightning.commands.demo import MARKER, RUNS, Prepared, Result, demo
from ser_lightning.reporting.summary import RunCurve
from ser_lightning.runtime.lock import locked

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]
FAMILIES = ("rotation", "flip", "scale")


@pytest.fixture
def tiny(tmp_path):
    """The demo's configuration, with the tests' smallest model and data."""
    config = yaml.safe_load(Path("tests/tiny.yaml").read_text())
    config["model"]["init_args"]["backbone"]["cls_layer"] = 1
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other files"):
        demo(["--run_dir", str(tmp_path)])
    assert (tmp_path / "thesis.tex").exists()


def test_folder_of_an_earlier_demo_is_cleared(tmp_path):
    for name in (MARKER, "demo.png"):
        (tmp_path / name).touch()
    demo_module._clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


def test_folder_of_a_demo_that_is_running_is_left_alone(tmp_path):
    (tmp_path / MARKER).touch()
    (tmp_path / "moco").mkdir()
    with locked(tmp_path), pytest.raises(ValueError, match="is being written by process"):
        demo(["--run_dir", str(tmp_path)])
    assert (tmp_path / "moco").is_dir()


@pytest.mark.parametrize("num_images", [30, 160, 4000, 100_000])
def test_any_number_of_photographs_takes_about_as_many_steps(num_images):
    words = demo_module._schedule(num_images)
    options = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    steps_per_epoch, epochs = (
        options["--trainer.limit_train_batches"],
        options["--trainer.max_epochs"],
    )
    assert 480 <= steps_per_epoch * epochs <= 544
    assert steps_per_epoch * options["--data.global_batch_size"] <= num_images
    assert 3 <= epochs // options["--trainer.check_val_every_n_epoch"] <= 5


def test_both_runs_begin_with_the_same_network(tiny, tmp_path):
    first, second = (
        Prepared(["fit", "--config", tiny, *own, "--run_dir", str(tmp_path / folder)])
        for folder, own in RUNS.values()
    )
    assert first.model.regularizer is None
    assert second.model.regularizer is not None
    states = (command.model.backbone.state_dict() for command in (first, second))
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "option", ["limit_val_batches=0", "num_sanity_val_steps=0", "fast_dev_run=true"]
)
def test_settings_that_measure_nothing_are_refused_before_training(option, tiny, tmp_path):
    with pytest.raises(ValueError, match=f"trainer.{option.partition('=')[0]} .* leave it out"):
        demo(["--config", tiny, "--run_dir", str(tmp_path / "demo"), f"--trainer.{option}"])


@pytest.mark.slow
def test_results_become_a_table_and_a_picture(tiny, tmp_path, capsys):
    prepared = Prepared(["fit", "--config", tiny, "--run_dir", str(tmp_path / "none")])
    prepared.datamodule.setup("fit")
    backbone = prepared.model.backbone.eval()
    metrics = {f"equivariance/{kind}{f}": 0.5 for kind in ("mean_centred/", "") for f in FAMILIES}
    curve = [metrics | {"knn_top1": 10.0}, metrics | {"knn_top1": 60.0}]
    results = [Result(backbone, RunCurve(name, [0, 8], curve), 12) for name in RUNS]
    demo_module._present(tmp_path / "demo.png", prepared, results)
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size[0] == 1500
    shown = capsys.readouterr().out
    assert "k-NN top-1 (chance 8.3 %)" in shown
    assert max(map(len, shown.partition("Picture: ")[0].splitlines())) <= 80


@pytest.mark.slow
def test_demo_trains_both_runs_and_measures_from_the_start(tiny, tmp_path, capsys):
    short = tmp_path / "short.yaml"
    short.write_text("data: {bank_size: 40}\n")  # configurations stack, as everywhere
    demo(["--config", tiny, "--config", str(short), "--run_dir", str(tmp_path / "demo")])
    stored = yaml.safe_load((tmp_path / "demo" / "moco_ser" / "fit.yaml").read_text())
    assert stored["data"]["bank_size"] == 40
    shown = capsys.readouterr().out
    assert "before training" in shown
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 10_000
    runs = [demo_module._read(tmp_path / "demo" / f, name) for name, (f, _) in RUNS.items()]
    assert runs[0].curve.metrics[0] == runs[1].curve.metrics[0]  # the same start
    assert all(run.curve.steps[0] == 0 and len(run.curve.steps) >= 2 for run in runs)


@pytest.mark.slow
def test_demo_runs_on_a_folder_of_photographs_without_labels(tiny, tmp_path, capsys):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(40):
        colours = torch.randint(0, 255, (30, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(colours).save(photographs / f"{number}.png")
    short = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1"]
    short += ["--model.warmup_epochs", "0"]
    demo(
        ["--config", tiny, "--root", str(photographs), "--run_dir", str(tmp_path / "demo"), *short]
    )
    shown = capsys.readouterr().out
    assert "k-NN" not in shown
    assert "token map follows turns" in shown


def test_a_run_that_fails_is_told_with_the_end_of_its_log(tmp_path):
    fails = [sys.executable, "-c", "print('one\\ntwo'); raise SystemExit(3)"]
    with pytest.raises(ValueError, match=r"moco ended with status 3; .*:\none\ntwo"):
        demo_module._train(tmp_path, fails)
