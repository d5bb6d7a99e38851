"""One rank's losses, gradients and buffers of every objective on its slice of a batch."""

from typing import NamedTuple
from unittest.mock import patch

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ser_lightning.objectives import NonFiniteError
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers.overlap import OverlapRegularizer
from support import (
    add_ons,
    as_by_torchrun,
    objective_classes,
    take_rank,
    tiny_batch,
    tiny_objective,
    tiny_with_add_on,
    turned,
    with_needs,
)


class Case(NamedTuple):
    """What is computed in a step; the add-on is "ser", "plain" for none, or a class's name."""

    objective: str
    add_on: str
    num_local: int
    grad_checkpointing: bool = False
    turned: bool = False


CASES = [
    Case(cls.__name__, add_on, num_local)
    for cls in objective_classes()
    for add_on in ("ser", "plain")
    for num_local in ((0, 4) if cls.accepts_local_views else (0,))
]
CASES += [
    Case(cls.__name__, add_on, 0, turned=True)
    for cls in objective_classes()
    for add_on in ("ser", OverlapRegularizer.__name__)
]
CASES += [Case(MoCoV3.__name__, add_on.__name__, 0) for add_on in add_ons()]
CASES += [Case(MoCoV3.__name__, OverlapRegularizer.__name__, 4)]
CASES += [Case(MoCoV3.__name__, "ser", 4, grad_checkpointing=True)]


def objective_and_batch(case):
    """What a case computes, and the whole batch, in float64."""
    (cls,) = (cls for cls in objective_classes() if cls.__name__ == case.objective)
    batch = tiny_batch(8, 4, dtype=torch.float64, num_local=case.num_local)
    rivals = {add_on.__name__: add_on for add_on in add_ons()}
    if case.add_on in rivals:
        rival = rivals[case.add_on]
        module, batch = tiny_with_add_on(cls, rival), with_needs(batch, rival.needs)
    else:
        module = tiny_objective(cls, case.add_on == "ser")
    return module.double(), turned(batch) if case.turned else batch


class Step(torch.nn.Module):
    """Lets DDP see the training step as a forward."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, batch):
        return self.objective.training_step(batch, 0)


def step(case, rank=0, world_size=1):
    """Returns the loss averaged over ranks, and gradients and buffers by name, in float64."""
    objective, whole = objective_and_batch(case)
    objective.backbone.grad_checkpointing = case.grad_checkpointing and world_size > 1
    module = Step(objective)
    # Buffers follow the global batch by themselves; DDP's broadcast would hide if they did not.
    wrapped = DistributedDataParallel(module, broadcast_buffers=False) if world_size > 1 else module
    loss = wrapped(take_rank(whole, rank, world_size))
    loss.backward()
    loss = loss.detach().clone()
    if world_size > 1:
        dist.all_reduce(loss)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    buffers = {name: b.double() for name, b in module.named_buffers()}
    return loss / world_size, gradients, buffers


def steps():
    """The steps of every case on this rank."""
    return {tuple(case): step(case, dist.get_rank(), dist.get_world_size()) for case in CASES}


class Poison(L.Callback):
    """Makes a pixel NaN on rank 1, or the gradient that enters the last block, before step 1."""

    def __init__(self, what):
        self.what = what

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.global_step, trainer.global_rank) == (1, 1):
            if self.what == "pixel":
                batch.crop[0].pixels[0, 0, 0, 0] = float("nan")
            else:
                module.backbone.vit.norm.register_forward_hook(lambda *a: NaNGradient.apply(a[2]))


class NaNGradient(torch.autograd.Function):
    """The identity, with a gradient that is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def poisoned(folder, what):
    """How a run ends on this rank that is not finite on rank 1."""
    trainer = ddp_trainer(folder, Poison(what))
    try:
        fit(trainer)
    except NonFiniteError as error:
        return {"message": str(error), "step": trainer.global_step}


def collectives_before_steps(folder, *callbacks):
    """How often Lightning has this rank ask another one before a step."""
    trainer = ddp_trainer(folder, *callbacks)
    with patch.object(_TrainingEpochLoop, "_broadcast_sigterm_tensor") as asks:
        fit(trainer)
    return asks.call_count


def ddp_trainer(folder, *callbacks):
    """A trainer on this rank of two, for three steps."""
    as_by_torchrun()
    return L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=3,
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(trainer):
    """Trains a tiny objective on this rank's part of every batch."""
    batches = [take_rank(tiny_batch(8, 4, seed), dist.get_rank(), 2) for seed in range(4)]
    loader = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    trainer.fit(tiny_objective(MoCoV3, warmup_epochs=0), loader)
