"""Collectives over the ranks of a run, each of which says whether gradients flow.

All of them work on one process without an initialised process group, where they are the identity.
They are collective calls: every rank must make them, in the same order.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional as with_gradient


def world_size() -> int:
    """Number of ranks; 1 without an initialised process group."""
    return dist.get_world_size() if _initialised() else 1


def rank() -> int:
    """This process's rank; 0 without an initialised process group."""
    return dist.get_rank() if _initialised() else 0


def gather(x: Tensor) -> Tensor:
    """Concatenates the ranks' tensors in rank order; no gradient flows to any of them.

    Args:
        x: (B, ...) of the same shape on every rank.

    Returns:
        (world size * B, ...) detached, equal on every rank.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    return _all_gather(x.to(_collective_device(x))).to(x.device)


def gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenates the ranks' tensors in rank order; gradients flow to all of them.

    The backward pass sums the gradient over ranks and returns the local slice. Together with the
    average over ranks that DDP takes, a loss that every rank computes for its own samples, or
    every rank computes in full, has the exact gradient of the single-process loss.

    Args:
        x: (B, ...) of the same shape on every rank.

    Returns:
        (world size * B, ...), equal on every rank.
    """
    return x if world_size() == 1 else torch.cat(with_gradient.all_gather(x))


def sum_with_gradient(x: Tensor) -> Tensor:
    """The sum of a tensor over ranks; gradients flow to all of them.

    The backward pass sums the gradient over ranks too. Together with the average over ranks that
    DDP takes, a loss that every rank computes in full from the sum has the exact gradient of the
    single-process loss; an in-place all-reduce would give 1 / world size of it.
    """
    if world_size() == 1:
        return x
    total: Tensor = with_gradient.all_reduce(x)
    return total


def gather_ragged(x: Tensor) -> Tensor:
    """Concatenates tensors whose first dimension differs between ranks; no gradient flows.

    For the results of an evaluation: it waits for the sizes, so it does not belong into a
    training step.

    Args:
        x: (B, ...); B may differ between ranks and may be 0, the rest is the same on every rank.

    Returns:
        (sum of B over ranks, ...) detached, in rank order, on the device of `x`.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    device = _collective_device(x)
    sizes = _all_gather(torch.tensor([x.shape[0]], device=device)).tolist()
    padded = x.new_zeros((max(sizes), *x.shape[1:]), device=device)
    padded[: x.shape[0]] = x
    if padded.numel() == 0:
        return x.new_zeros((sum(sizes), *x.shape[1:]))
    parts = _all_gather(padded).chunk(world_size())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(x.device)


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean of a tensor over ranks, floating point even for integers; no gradient flows."""
    x = x.detach()
    x = x if x.is_floating_point() else x.float()
    if world_size() == 1:
        return x
    total = x.to(_collective_device(x), copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return (total / world_size()).to(x.device)


def _all_gather(x: Tensor) -> Tensor:
    result = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
    dist.all_gather(list(result.chunk(world_size())), x.contiguous())  # into views of the result
    return result


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _collective_device(x: Tensor) -> torch.device:
    """The device a collective on `x` needs: NCCL knows no tensors in host memory."""
    if x.device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return x.device
