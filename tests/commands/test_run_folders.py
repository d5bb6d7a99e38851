"""Where a run's files go, who may write there, and what a start that fails leaves behind."""

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
