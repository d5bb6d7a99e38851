"""A script: one rank's losses, gradients and buffers of every objective on its slice of a batch."""

import sys
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from support import objective_classes, take_rank, tiny_batch, tiny_objective


class Case(NamedTuple):
    """What is computed in a step."""

    objective: str
    ser: bool
    num_local: int


CASES = [
    Case(cls.__name__, ser, num_local)
    for cls in objective_classes()
    for ser in (True, False)
    for num_local in ((0, 4) if cls.accepts_local_views else (0,))
]


class Step(torch.nn.Module):
    """Lets DDP see the training step as a forward."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, batch):
        return self.objective.training_step(batch, 0)


def step(case, rank=0, world_size=1):
    """Returns the loss averaged over ranks, and gradients and buffers by name, in float64."""
    (cls,) = (cls for cls in objective_classes() if cls.__name__ == case.objective)
    module = Step(tiny_objective(cls, case.ser).double())
    whole = tiny_batch(8, 4, dtype=torch.float64, num_local=case.num_local)
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
