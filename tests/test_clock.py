"""A clock that is set back, while a run trains and between its start and its going on."""

import os
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from ser_lightning.checkpoints import load_checkpoint
from ser_lightning.cli import main
from ser_lightning.commands.fit import SERCommandLine

TINY = str(Path(__file__).with_name("tiny.yaml"))
HOUR = 3600.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


class Killed(L.Callback):
    """Ends the command before a step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 5:
            raise SystemExit(9)


def backwards(monkeypatch, hours_ago):
    """Every look at the clock finds it an hour earlier than the look before."""
    now = [time.time() - hours_ago * HOUR]

    def earlier():
        now[0] -= HOUR
        return now[0]

    monkeypatch.setattr(time, "time", earlier)


def fit(folder):
    interval = ["--checkpoint.every_n_minutes", "1e-6"]
    main(["fit", "--config", TINY, "--run_dir", str(folder), "--ckpt_path", "last", *interval])


def test_run_whose_clock_runs_backwards_ends_with_the_weights_of_any_other(
    trained_run, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        made = SERCommandLine.instantiate_trainer

        def with_end(self, **kwargs):
            trainer = made(self, **kwargs)
            trainer.callbacks.append(Killed())
            return trainer

        patched.setattr(SERCommandLine, "instantiate_trainer", with_end)
        backwards(patched, hours_ago=0)
        with pytest.raises(SystemExit):
            fit(tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert load_checkpoint(last)["global_step"] == 5  # intervals are not the clock's
    future = time.time() + 1000 * HOUR
    os.utime(last, (future, future))
    backwards(monkeypatch, hours_ago=1000)
    fit(tmp_path)
    whole = load_checkpoint(trained_run / "checkpoints" / "last.ckpt")["state_dict"]
    weights = load_checkpoint(last)["state_dict"]
    assert all(torch.equal(weights[name], value) for name, value in whole.items())
