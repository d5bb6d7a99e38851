"""A run in pieces, each on another number of processes, in double precision."""

from typing import NamedTuple

import lightning as L
import torch
import torch.distributed as dist

from ser_lightning.data import CropViews, InvertibleViews, PartitionedDataModule, Shapes
from ser_lightning.runtime import AtomicCheckpointIO
from support import PATCH, as_by_torchrun, objective_classes, tiny_objective

BATCH_SIZE, STEPS_PER_EPOCH, NUM_EPOCHS = 16, 4, 2
LAST_STEP = NUM_EPOCHS * STEPS_PER_EPOCH


class Piece(NamedTuple):
    """What a rank has seen and done."""

    batches: dict[int, torch.Tensor]
    """By step: positions of this rank's images, crop sub-batch first, and the sum of each view."""
    state: dict[str, torch.Tensor]


class Recorder(L.Callback):
    """Notes batches; saves after the last step, and stops there."""

    def __init__(self, path):
        self.path, self.batches = path, {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        views = [v.pixels.double().sum((1, 2, 3)) for v in (*batch.crop, *batch.invertible)]
        self.batches[trainer.global_step] = (batch.indices.clone(), views)

    def on_train_end(self, trainer, module):
        trainer.save_checkpoint(self.path, weights_only=False)


def data(num_train=BATCH_SIZE * STEPS_PER_EPOCH, batch_size=BATCH_SIZE, ratio=0.25):
    return PartitionedDataModule(
        Shapes(num_train=num_train, num_evaluation=12, image_size=16),
        global_batch_size=batch_size,
        crop=CropViews(),
        invertible=InvertibleViews(ratio=ratio),
        image_size=16,
        patch_size=PATCH,
        num_workers=0,
    )


def piece(name, save_to, stop_at, resume_from=None):
    """Trains to step `stop_at` of a run of `NUM_EPOCHS` epochs, on all ranks of the group.

    Returns a `Piece` as a dict.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if world_size > 1:
        as_by_torchrun()
    (cls,) = (cls for cls in objective_classes() if cls.__name__ == name)
    module = tiny_objective(cls, global_batch_size=BATCH_SIZE, warmup_epochs=1)
    recorder, images = Recorder(save_to), data()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        precision="64-true",
        max_epochs=NUM_EPOCHS,
        limit_val_batches=0,
        callbacks=[recorder, StopAt(stop_at)],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, images, ckpt_path=resume_from, weights_only=True)
    return Piece(recorder.batches, module.state_dict())._asdict()


class StopAt(L.Callback):
    """Ends training after a step, in the middle of the schedules."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *rest):
        trainer.should_stop = trainer.global_step >= self.step


def global_batches(pieces):
    """By step, what all ranks of a piece saw together: each image's position and sums of views."""
    seen = {}
    for step in pieces[0]["batches"]:
        seen[step] = sorted(
            (int(index), *(float(v[i - offset]) for v in part))
            for ranks in pieces
            for indices, views in [ranks["batches"][step]]
            for part, offset, stop in _parts(views, len(indices))
            for i, index in enumerate(indices.tolist())
            if offset <= i < stop
        )
    return seen


def _parts(views, num_images):
    num_crop = len(views[0])
    return [(views[:2], 0, num_crop), (views[2:], num_crop, num_images)]
