"""What a device must reproduce: losses, gradients and steps of every objective and add-on."""

from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.utilities.apply_func import move_data_to_device

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

OBJECTIVES = {cls.__name__: cls for cls in objective_classes()}
ADD_ONS = {cls.__name__: cls for cls in cls_add_ons()}
CASES = [(name, add_on) for name in OBJECTIVES for add_on in ("plain", "ser")]
CASES += [("MoCoV3", add_on) for add_on in ADD_ONS]


class Step(NamedTuple):
    """A loss, and the gradients by parameter, all on the CPU."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]


def parts(objective, add_on, **options):
    """A tiny module and its batch."""
    cls, batch = OBJECTIVES[objective], tiny_batch(8, 8)
    if add_on in ADD_ONS:
        module = tiny_with_add_on(cls, ADD_ONS[add_on], **options)
        return module, with_needs(batch, module.regularizer.needs)
    return tiny_objective(cls, add_on == "ser", **options), batch


def step(device, objective="MoCoV3", add_on="ser", autocast=None, **options):
    """One forward and backward pass on a device."""
    module, batch = parts(objective, add_on, **options)
    return _step(module.to(device), move_data_to_device(batch, device), device, autocast)


def _step(module, batch, device, autocast=None):
    kind = torch.device(device).type
    with torch.autocast(kind, autocast) if autocast else nullcontext():
        loss = module.training_step(batch, 0)
    loss.backward()
    gradients = {n: p.grad.cpu() for n, p in module.named_parameters() if p.grad is not None}
    return Step(loss.detach().cpu(), gradients)


def deviations(found, expected):
    """Of the loss, relative above 1, and of any gradient, relative to the largest one."""
    largest = max(float(g.abs().max()) for g in expected.gradients.values())
    assert found.gradients.keys() == expected.gradients.keys()
    worst = max(float((found.gradients[n] - g).abs().max()) for n, g in expected.gradients.items())
    loss = float((found.loss - expected.loss).abs() / expected.loss.abs().clamp(min=1))
    return loss, worst / largest


@contextmanager
def without_waiting(device):
    """Whatever would make the host wait for a CUDA device raises."""
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if is_cuda:
            torch.cuda.set_sync_debug_mode("default")


def step_without_waiting(device, objective, add_on):
    """Forward and backward pass, once to warm up and once while waiting is an error."""
    module, batch = parts(objective, add_on)
    module, batch = module.to(device), move_data_to_device(batch, device)
    module.training_step(batch, 0).backward()
    module.zero_grad()
    with without_waiting(device):
        loss = module.training_step(batch, 0)
        loss.backward()
    return float(loss.detach())


def mean_gradients_over_ranks(kind):
    """Mean gradients of MoCo-v3 + SER, each rank with its share of the batch."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    module = tiny_objective(MoCoV3).to(device)
    batch = take_rank(tiny_batch(8, 8), rank, world_size)
    found = _step(module, move_data_to_device(batch, device), device)
    for gradient in found.gradients.values():
        on_device = gradient.to(device)
        dist.all_reduce(on_device)
        gradient.copy_(on_device / world_size)
    return found.gradients
