"""A script: one rank's losses, gradients and buffers of every objective on its slice of a batch."""

import sys
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


if __name__ == "__main__":
    rank, world_size, port, path = sys.argv[1:]
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=int(rank),
        world_size=int(world_size),
    )
    results = {tuple(case): step(case, int(rank), int(world_size)) for case in CASES}
    torch.save(results, f"{path}/{rank}.pt")
    dist.destroy_process_group()
