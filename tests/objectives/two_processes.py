"""One rank's losses, gradients and buffers of every objective on its slice of a batch."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ser_lightning.objectives.moco_v3 import MoCoV3
from support import (
    cls_add_ons,
    objective_classes,
    take_rank,
    tiny_batch,
    tiny_objective,
    tiny_with_add_on,
    with_needs,
)


class Case(NamedTuple):
    """What is computed in a step; the add-on is "ser", "plain" for none, or a class's name."""

    objective: str
    add_on: str
    num_local: int


CASES = [
    Case(cls.__name__, add_on, num_local)
    for cls in objective_classes()
    for add_on in ("ser", "plain")
    for num_local in ((0, 4) if cls.accepts_local_views else (0,))
]
CASES += [Case(MoCoV3.__name__, add_on.__name__, 0) for add_on in cls_add_ons()]


def objective_and_batch(case):
    """What a case computes, and the whole batch, in float64."""
    (cls,) = (cls for cls in objective_classes() if cls.__name__ == case.objective)
    batch = tiny_batch(8, 4, dtype=torch.float64, num_local=case.num_local)
    rivals = {add_on.__name__: add_on for add_on in cls_add_ons()}
    if case.add_on in rivals:
        rival = rivals[case.add_on]
        return tiny_with_add_on(cls, rival).double(), with_needs(batch, rival.needs)
    return tiny_objective(cls, case.add_on == "ser").double(), batch


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
