"""Where a run's files go, who may write there, and what a start that fails leaves behind."""

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import lightning as L
import pytest

from parsed import ParsedOnly
from ser_lightning.checkpoints import load_checkpoint, read_config
from ser_lightning.cli import main
from ser_lightning.runtime import launch
from ser_lightning.runtime.lock import LOCK, locked

TINY = str(Path(__file__).parents[1] / "tiny.yaml")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_home_is_written_out_in_arguments_of_every_command(home, monkeypatch):
    seen, module = [], ModuleType("command")
    module.function = seen.extend
    monkeypatch.setitem(sys.modules, "command", module)
    launch.run("command", "function", ["--run_dir=~/a", "--x", "~/b", "c~", "--y=c/~", "--z=2=~/d"])
    assert seen == [f"--run_dir={home}/a", "--x", f"{home}/b", "c~", "--y=c/~", "--z=2=~/d"]


def test_home_is_written_out_in_configurations(home, tmp_path):
    text = "run_dir: ~/a\nckpt_path: null\ndata: {source: {init_args: {roots: [~/b, /c, d]}}}"
    assert read_config(text)["data"]["source"]["init_args"]["roots"] == [f"{home}/b", "/c", "d"]
    (tmp_path / "overlay.yaml").write_text(
        "run_dir: ~/a\nmodel: {init_args: {backbone: {weights: ~/b.pt}}}"
    )
    cli = ParsedOnly(["fit", "--config", TINY, "--config", "overlay.yaml"])
    assert cli.run_dir == home / "a"
    assert cli.config.fit.model.init_args.backbone.init_args.weights == f"{home}/b.pt"


def test_checkpoint_below_home_is_found(home):
    with pytest.raises(FileNotFoundError, match=f"{home}/a.ckpt does not exist"):
        load_checkpoint("~/a.ckpt")


@pytest.mark.parametrize("command", [["fit", "--config", TINY]])
def test_folder_of_the_trainer_is_refused(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--trainer.default_root_dir", str(tmp_path)])
    assert f"give --run_dir {tmp_path}" in str(left.value)


def test_start_that_fails_leaves_nothing(tmp_path):
    run = tmp_path / "runs" / "new"
    with pytest.raises(SystemExit, match="limit_train_batches 0 trains nothing"):
        main(["fit", "--config", TINY, "--run_dir", str(run), "--trainer.limit_train_batches", "0"])
    assert list(tmp_path.iterdir()) == []


def test_failed_first_step_leaves_nothing(tmp_path, monkeypatch):
    def fails(self, batch, batch_idx):
        raise ArithmeticError("no step")

    monkeypatch.setattr("ser_lightning.objectives.base.Objective.training_step", fails)
    with pytest.raises(ArithmeticError, match="no step"):
        main(["fit", "--config", TINY, "--run_dir", str(tmp_path / "new"), "--debug"])
    assert not list(tmp_path.rglob("*.yaml"))
    assert not list(tmp_path.rglob("events*"))


def configurations(run):
    return {path.name: read_config(path.read_text()) for path in run.glob("fit*.yaml")}


def test_start_afresh_takes_the_place_of_the_configuration_of_weights_that_are_gone(tmp_path):
    run, brief = tmp_path / "run", ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    start = ["fit", "--config", TINY, "--run_dir", str(run), "--model.warmup_epochs", "0", *brief]
    main(start)
    shutil.rmtree(run / "checkpoints")
    (run / "fit.step1.yaml").write_text("model: {}\ndata: {}")
    main([*start, "--model.temperature", "0.7"])
    (content,) = configurations(run).values()
    assert content["model"]["init_args"]["temperature"] == 0.7


def test_run_from_another_ones_checkpoint_says_how_that_was_trained(trained_run, tmp_path):
    run, checkpoint = tmp_path / "fork", trained_run / "checkpoints" / "last.ckpt"
    longer = ["--trainer.max_epochs", "3", "--trainer.limit_val_batches", "0"]
    main(["fit", "--config", TINY, "--run_dir", str(run), "--ckpt_path", str(checkpoint),
          "--model.base_learning_rate", "7e-3", *longer])  # fmt: skip
    found = configurations(run)
    rates = {name: each["model"]["init_args"]["base_learning_rate"] for name, each in found.items()}
    first = read_config((trained_run / "fit.yaml").read_text())
    assert rates.pop("fit.yaml") == first["model"]["init_args"]["base_learning_rate"]
    assert list(rates.values()) == [7e-3]


def test_results_in_the_folder_of_another_run_are_refused(trained_run, tmp_path):
    other = shutil.copytree(trained_run, tmp_path / "other")
    text = (other / "fit.yaml").read_text()
    (other / "fit.yaml").write_text(text.replace("temperature: 0.2", "temperature: 0.7"))
    checkpoint = str(trained_run / "checkpoints" / "last.ckpt")
    knn = ["evaluate", "--config", str(Path(TINY).parents[1] / "configs" / "eval" / "knn.yaml")]
    knn += ["--checkpoint", checkpoint, "--trainer.accelerator", "cpu", "--run_dir", str(other)]
    with pytest.raises(SystemExit, match=r"is the folder of another run .*temperature: 0.7 -> 0.2"):
        main(knn)
    (other / "fit.step4.yaml").write_text(text)  # it went on so
    main(knn)


STOPPING = [
    "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/rankme",
    "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=100",
    "--trainer.callbacks.mode=max", "--trainer.max_epochs", "6",
]  # fmt: skip


def test_run_that_early_stopping_ended_says_why_and_stays_so(tmp_path, caplog):
    caplog.set_level("INFO")
    start = ["fit", "--config", TINY, "--run_dir", str(tmp_path), *STOPPING]
    for again in ([], ["--ckpt_path", "last"]):
        caplog.clear()
        main([*start, *again])
        words = (
            r"Ended at step 12 of 36, amid its schedules \(Monitored metric val/rankme .*stays so"
        )
        assert re.search(words, caplog.text)
        assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 12
    main([*start, "--ckpt_path", "last", "--trainer.callbacks.patience=2"])
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 18


def test_patience_of_0_does_not_end_a_run_before_it_begins(tmp_path):
    main(["fit", "--config", TINY, "--run_dir", str(tmp_path), *STOPPING,
          "--trainer.callbacks.patience=0"])  # fmt: skip
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] >= 6


def test_ones_own_checkpoints_hold_whole_steps(tmp_path):
    """A validation between two steps does not have the first one written again amid the next."""
    main(["fit", "--config", TINY, "--run_dir", str(tmp_path / "run"),
          "--data.global_batch_size", "32", "--trainer.accumulate_grad_batches", "2",
          "--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}/steps",
          "--trainer.callbacks.filename={step}", "--trainer.callbacks.save_top_k=-1",
          "--trainer.callbacks.every_n_train_steps=1"])  # fmt: skip
    for path in (tmp_path / "steps").iterdir():
        loops = load_checkpoint(path)["loops"]["fit_loop"]
        assert loops["epoch_loop.batch_progress"]["total"]["processed"] % 2 == 0, path.name


def test_time_of_a_start_is_its_own(tmp_path, caplog):
    caplog.set_level("INFO")
    start = ["fit", "--config", TINY, "--run_dir", str(tmp_path), "--trainer.max_epochs", "900"]
    steps = []
    for again in ([], ["--ckpt_path", "last"]):
        main([*start, "--trainer.max_time", "00:00:00:01", *again])
        steps.append(load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"])
    assert steps[1] > steps[0] + 1
    assert "(trainer.max_time is over); the same command with --ckpt_path last" in caplog.text


def test_run_and_checkpoint_may_stand_in_a_file(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "on.yaml").write_text(f"run_dir: {run}\nckpt_path: last")
    cli = ParsedOnly(["fit", "--config", str(tmp_path / "on.yaml")])
    assert cli.run_dir == run
    assert cli.config.fit.model.class_path.endswith("MoCoV3")


def test_restart_that_fails_leaves_the_run_as_it_was(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    before = contents(run)
    place = ["--run_dir", str(run), "--ckpt_path", "last"]
    with pytest.raises(SystemExit, match="trained on other batches"):
        main(["fit", "--config", TINY, *place, "--data.global_batch_size", "8"])
    assert contents(run) == before


def test_second_start_is_refused_and_the_first_goes_on_untouched(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    (run / "checkpoints" / ".last.ckpt.a.partial").write_bytes(b"being written")
    with locked(run):
        before = contents(run)
        with pytest.raises(SystemExit, match="is being written by process"):
            main(["fit", "--config", TINY, "--run_dir", str(run), "--ckpt_path", "last"])
        assert contents(run) == before
    assert not (run / LOCK).exists()


class Removes(L.Callback):
    """Removes the run's folder after a step, as somebody who tidies up would."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            shutil.rmtree(trainer.default_root_dir)


def test_run_whose_folder_is_removed_writes_its_checkpoint_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("ser_lightning.commands.fit.Throughput", Removes)
    # the event file of TensorBoard, which is open, would end the run in a sentence
    main(["fit", "--config", TINY, "--run_dir", str(tmp_path / "run"), "--trainer.logger", "false"])
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 12
    assert "config" in checkpoint["ser_lightning"]
