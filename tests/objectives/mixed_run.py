"""Fifty steps of an objective in a precision, on a CPU."""

from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from ser_lightning.objectives.moco_v3 import MoCoV3
from support import (
    cls_add_ons,
    objective_classes,
    tiny_batch,
    tiny_objective,
    tiny_with_add_on,
    with_needs,
)

NUM_STEPS, NUM_BATCHES = 50, 10
TRAINING = {"warmup_epochs": 1, "base_learning_rate": 2e-3, "global_batch_size": 16}


class Case(NamedTuple):
    """What is trained; the add-on is "ser", "plain" for none, or a class's name with MoCo-v3."""

    objective: str
    add_on: str


CASES = [Case(c.__name__, add_on) for c in objective_classes() for add_on in ("ser", "plain")]
CASES += [Case(MoCoV3.__name__, add_on.__name__) for add_on in cls_add_ons()]


class Recorder(L.Callback):
    """Notes every loss, and refuses one that is not computed in float32."""

    def __init__(self):
        self.losses = []

    def on_before_backward(self, trainer, module, loss):
        for dtype in (loss.dtype, *{p.dtype for p in module.parameters()}):
            assert dtype == torch.float32

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def plugin(precision):
    """Lightning takes bf16 for "16-mixed" on a CPU, so float16 is asked for by its plugin.

    Its scale begins where no step is left out, which would be another run.
    """
    if precision == "32-true":
        return []
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if precision == "16-mixed" else None
    return [MixedPrecision(precision, "cpu", scaler)]


def losses(case, precision, tmp_path):
    """The losses (50,) of a run, float64."""
    rivals = {add_on.__name__: add_on for add_on in cls_add_ons()}
    (cls,) = (cls for cls in objective_classes() if cls.__name__ == case.objective)
    batches = [tiny_batch(8, 8, seed) for seed in range(NUM_BATCHES)]
    if case.add_on in rivals:
        module = tiny_with_add_on(cls, rivals[case.add_on], **TRAINING)
        batches = [with_needs(batch, module.regularizer.needs, 0) for batch in batches]
    else:
        module = tiny_objective(cls, case.add_on == "ser", **TRAINING)
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=NUM_STEPS,
        default_root_dir=tmp_path,
        plugins=plugin(precision),
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
    return torch.tensor(recorder.losses, dtype=torch.float64)
