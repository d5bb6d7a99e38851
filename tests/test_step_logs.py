"""Losses reach this project's bars without being waited for, and other bars as before."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader

from ser_lightning.runtime import ProgressLines
from ser_lightning.step_logs import log_loss, log_setting

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


class Logging(L.LightningModule):
    """Learns a number, and logs its loss and a setting."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, batch_idx):
        """Its loss is the number of the step."""
        loss = self.number * 0 + batch_idx
        log_loss(self, "loss", loss)
        log_setting(self, "rate", 0.25)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    ("bar", "handed"), [(ProgressLines(), []), (TQDMProgressBar(), ["loss"]), (None, [])]
)
def test_loss_is_logged_and_shown_whatever_the_bar(bar, handed):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[bar] if bar else [], enable_progress_bar=bool(bar),
    )  # fmt: skip
    trainer.fit(Logging(), DataLoader(torch.zeros(4), batch_size=1))
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == {
        "loss": 3.0,
        "rate": 0.25,
    }
    assert list(trainer.progress_bar_metrics) == handed
    if bar:
        assert bar.get_metrics(trainer, trainer.lightning_module)["loss"] == 3.0
