"""Lines for a log file: training by steps, passes over images by seconds; and the bar."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from ser_lightning.cli import main
from ser_lightning.runtime import ProgressLines
from ser_lightning.runtime import progress_bar as module

TINY = "tests/tiny.yaml"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


class CountingPass(L.LightningModule):
    """Looks at images and does nothing."""

    def test_step(self, batch, batch_idx):
        """Takes a second by the clock of the test."""
        Clock.now += 1.0


class Clock:
    """Stands for the module `time`."""

    now = 0.0

    def monotonic(self):
        return Clock.now


def lines_of(capsys, monkeypatch, callback, num_batches):
    monkeypatch.setattr(module, "time", Clock())
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[callback],
    )  # fmt: skip
    capsys.readouterr()
    loader = DataLoader(torch.zeros(2 * num_batches, 3), batch_size=2)
    trainer.test(CountingPass(), loader, verbose=False)
    return [line for line in capsys.readouterr().err.splitlines() if "batch" in line]


def test_pass_over_images_prints_by_seconds_and_at_its_end(capsys, monkeypatch):
    lines = lines_of(capsys, monkeypatch, ProgressLines(seconds=4), 10)
    assert lines == [
        "CountingPass  batch 4/10  1 s/batch  0:00:06 left",
        "CountingPass  batch 8/10  1 s/batch  0:00:02 left",
        "CountingPass  batch 10/10  1 s/batch  0:00:00 left",
    ]


def test_every_pass_has_a_clock_of_its_own(capsys, monkeypatch):
    callback = ProgressLines(seconds=100)
    lines_of(capsys, monkeypatch, callback, 3)
    Clock.now += 1000
    assert lines_of(capsys, monkeypatch, callback, 2) == [
        "CountingPass  batch 2/2  1 s/batch  0:00:00 left"
    ]


def test_other_ranks_print_nothing(capsys, monkeypatch):
    callback = ProgressLines(seconds=1)
    callback.disable()
    assert lines_of(capsys, monkeypatch, callback, 3) == []


def test_lines_of_training_fit_80_columns_and_count_from_one(tmp_path, capsys):
    main(["fit", "--config", TINY, "--run_dir", str(tmp_path)])
    lines = capsys.readouterr().err.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("epoch "))
    assert lines[first].startswith("epoch 1/2  step 2/12  ")
    assert lines[first].endswith(" left")
    assert lines[first + 1].split()[::2] == ["loss", "invariance", "equivariance"]
    told = [line for line in lines[first:] if line.startswith(("epoch ", "    "))]
    assert told[-1].split()[::2] == ["loss", "invariance", "equivariance", "knn", "turns"]
    assert max(map(len, told)) <= 80


def test_numbers_that_are_many_take_further_lines():
    numbers = {"loss": 9.0, "loss/invariance": 1234567.0} | {f"name_{i}": 0.125 for i in range(9)}
    lines = module._numbers(numbers)
    assert "  ".join(line.strip() for line in lines).split() == [
        "loss", "9.00", "invariance", "1.235e+06",
        *(word for i in range(9) for word in (f"name_{i}", "0.125")),
    ]  # fmt: skip
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_bar_fits_80_columns_and_nothing_stands_behind_it(tmp_path):
    seen = on_a_terminal(
        sys.executable, "-m", "ser_lightning", "fit", "--config", TINY, "--run_dir", str(tmp_path)
    )
    states = [state for line in seen.splitlines() for state in line.split("\r")]
    bars = [state for state in states if "|" in state and "%" in state]
    last = [bar for bar in bars if bar.startswith("epoch 2/2 100%")][-1]
    for name in ("left=", "loss=", "knn=", "turns="):
        assert name in last
    assert max(map(len, bars)) <= 80
    assert any(state.startswith("`Trainer.fit` stopped") for state in states)
    assert any(state.startswith("Random init, 24 images") for state in states)


@pytest.mark.slow
def test_bar_is_on_the_terminal_also_where_other_output_goes_to_a_file(tmp_path):
    fit = (sys.executable, "-m", "ser_lightning", "fit", "--config", TINY)
    with (tmp_path / "log").open("w") as log:
        seen = on_a_terminal(*fit, "--run_dir", str(tmp_path / "run"), stdout=log)
    assert "epoch 2/2 100%" in seen
    assert "%" not in (tmp_path / "log").read_text().partition("random init")[0]


def on_a_terminal(*command, stdout=None):
    """What a command prints where its output, or stderr alone, is a terminal of 80 columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen(command, stdout=stdout or its, stderr=its, env=environment):
        os.close(its)
        parts = []
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 1 << 16):
                parts.append(part)
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", b"".join(parts).decode())
