"""Bytes of every collective that a training step with SER calls on this rank."""

from collections import Counter
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from objectives.two_processes import Step
from support import objective_classes, take_rank, tiny_batch, tiny_objective


class Counted:
    """Stands before torch's collectives, and adds up the bytes of this rank's tensors."""

    def __init__(self, monkeypatch):
        self.bytes = Counter()
        gather, reduce, scatter = dist.all_gather, dist.all_reduce, dist.scatter

        def all_gather(tensors, tensor, **options):
            self.bytes["gather"] += tensor.nbytes
            return gather(tensors, tensor, **options)

        def all_reduce(tensor, *args, **options):
            self.bytes["sum"] += tensor.nbytes
            return reduce(tensor, *args, **options)

        def scattered(tensor, tensors, *args, **options):
            """The backward pass of a gather, on gloo; a rank receives as much as it gathered."""
            if tensors:
                self.bytes["backward of gather"] += sum(t.nbytes for t in tensors) // len(tensors)
            return scatter(tensor, tensors, *args, **options)

        monkeypatch.setattr(dist, "all_gather", all_gather)
        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        monkeypatch.setattr(dist, "scatter", scattered)

    def gradients(self, _, bucket):
        """A hook of DDP, which sums gradients over ranks itself."""
        self.bytes["sum"] += bucket.buffer().nbytes
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future


def step_bytes():
    """By objective and SER, of a step in float32 on half of 8 crops and 4 invertible images."""
    found = {}
    for cls, ser in product(objective_classes(), (True, False)):
        with pytest.MonkeyPatch.context() as patch:
            batch = take_rank(tiny_batch(8, 4 if ser else 0), dist.get_rank(), 2)
            step = Step(tiny_objective(cls, ser))
            wrapped = DistributedDataParallel(step, broadcast_buffers=False)
            counted = Counted(patch)
            wrapped.register_comm_hook(None, counted.gradients)
            wrapped(batch).backward()
            found[cls.__name__, ser] = dict(counted.bytes)
    return found
