"""A script: one rank's loss and gradients of MoCo-v3 on its slice of a fixed batch, in float64."""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from support import take_rank, tiny_batch, tiny_moco


class Step(torch.nn.Module):
    """Lets DDP see the training step as a forward."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, batch):
        return self.objective.training_step(batch, 0)


def step(ser, rank=0, world_size=1):
    """Returns the loss averaged over ranks, and the gradients by name."""
    module = Step(tiny_moco(ser).double())
    batch = take_rank(tiny_batch(8, 4, dtype=torch.float64), rank, world_size)
    wrapped = DistributedDataParallel(module) if world_size > 1 else module
    loss = wrapped(batch)
    loss.backward()
    loss = loss.detach().clone()
    if world_size > 1:
        dist.all_reduce(loss)
    return loss / world_size, {
        name: p.grad for name, p in module.named_parameters() if p.requires_grad
    }


if __name__ == "__main__":
    rank, world_size, port, ser, path = sys.argv[1:]
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=int(rank),
        world_size=int(world_size),
    )
    torch.save(step(ser == "True", int(rank), int(world_size)), f"{path}/{rank}.pt")
    dist.destroy_process_group()
