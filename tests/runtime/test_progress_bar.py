"""Lines for a log file: training by steps, passes over images by seconds."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from ser_lightning.runtime import ProgressLines
from ser_lightning.runtime import progress_bar as module

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
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
