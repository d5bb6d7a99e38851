"""A real run of an objective in seconds: the trainer, the data module, twelve steps."""

from typing import Any, NamedTuple

import lightning as L
import torch

from ser_lightning.data import (
    CropViews,
    InvertibleViews,
    LocalCrops,
    PartitionedDataModule,
    RotatedCrops,
    Shapes,
)
from support import PATCH, tiny_objective, tiny_with_add_on

NUM_EPOCHS, STEPS_PER_EPOCH = 2, 6


class Run(NamedTuple):
    """What a run leaves behind."""

    losses: list[float]
    module: Any
    optimizer: dict[str, Any]


class Recorder(L.Callback):
    """Notes every loss; saves after a step, where ModelCheckpoint would save."""

    def __init__(self, path=None, save_after=None):
        self.losses = []
        self.path = path
        self.save_after = save_after

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if trainer.global_step == self.save_after and is_step:
            trainer.save_checkpoint(self.path)  # what a crash here would leave


def tiny_fit(
    cls, save_after=None, save_to=None, resume_from=None, accumulate=1, num_local=0,
    add_on=None, crop=None, group=None, accelerator="cpu", **options,
):  # fmt: skip
    """Trains `cls` with SER, or another add-on, for two epochs of six batches of 16 images.

    The checkpoint of step `save_after` is then in `save_to`, for a run that goes on from there.
    """
    options = {"warmup_epochs": 1, "base_learning_rate": 2e-3, "global_batch_size": 16} | options
    if add_on is None:
        module = tiny_objective(cls, **options)
    else:
        module = tiny_with_add_on(cls, add_on, **options)
    data = PartitionedDataModule(
        Shapes(num_train=16 * STEPS_PER_EPOCH, num_evaluation=12, image_size=16),
        global_batch_size=16 * accumulate,
        crop=crop or CropViews(local=LocalCrops(num_local, 8) if num_local else None),
        invertible=InvertibleViews(ratio=0.25, group=group),
        image_size=16,
        patch_size=PATCH,
        num_workers=0,
        rotated=RotatedCrops(8, (0.1, 0.3)),
        needs=module.regularizer.needs,
    )
    recorder = Recorder(save_to, save_after)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=NUM_EPOCHS,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
    assert trainer.global_step == NUM_EPOCHS * STEPS_PER_EPOCH // accumulate
    return Run(recorder.losses, module, trainer.optimizers[0].state_dict())


def assert_equal_trees(first, second, where=""):
    """Compares nested containers of tensors and numbers bit for bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal_trees(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for position, pair in enumerate(zip(first, second, strict=True)):
            assert_equal_trees(*pair, f"{where}[{position}]")
    else:
        assert first == second, where
