"""`ser-fit cost`: trainable parameters of runs, and multiply-accumulates of a forward pass.

Counted on a model rebuilt from the run's configuration without memory for its weights.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ser_lightning.batch import (
    NUM_GLOBAL_VIEWS,
    BranchFeatures,
    PartitionedBatch,
    View,
    ViewNeeds,
    ViewRecord,
)
from ser_lightning.checkpoints import CONFIGURATION
from ser_lightning.commands.cost_file import Cost, UnknownCost
from ser_lightning.commands.rebuild import rebuilt
from ser_lightning.groups import GroupElement
from ser_lightning.objectives import Objective
from ser_lightning.objectives.encode import encode, joint_embeddings
from ser_lightning.reporting.runs import read_configuration
from ser_lightning.reporting.same_weights import arguments

NUM_IMAGES = 2  # batch normalisation needs two, and STL an even number
ROTATED_SIZE = 96


def cost(args: Sequence[str]) -> None:
    """Prints what runs cost: trainable parameters, multiply-accumulates per image (GMAC: 1e9)."""
    parser = argparse.ArgumentParser("ser-fit cost", description=cost.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, as runs/moco_ser")
    for run in parser.parse_args(args).runs:
        config = read_configuration(run)
        if config is None:
            raise ValueError(f"{run} has no {CONFIGURATION}; give the folder of a run")
        found = run_cost(config)
        macs = f"{found.macs_per_image / 1e9:.5g} GMAC per image"
        print(f"{run}: {found.num_parameters:,} trainable parameters, {macs}")


def run_cost(config: Mapping[str, Any]) -> Cost:
    """Counts parameters and multiply-accumulates of the run that a configuration describes.

    Per image: all views through the online branch, the global ones through the momentum branch,
    all blocks with all tokens, and the heads. An add-on counts as if every image passed its layers
    on the online branch, whatever the partition ratio or the add-on's own. Products of images
    with each other, as in contrastive losses, are left out: their number per image is the batch
    size's. Source: SER, Table 17, whose 18.48 and 18.63 GMAC are counted like this.

    Raises:
        UnknownCost: the model cannot be built, or its loss not be computed, from this content of a
            fit.yaml alone.
    """
    try:
        with torch.no_grad():
            return _counted(config)
    # A configuration may name any class: whatever it raises, the run has no known cost.
    except (ArgumentError, ArithmeticError, AttributeError, ImportError, LookupError, OSError,
            RuntimeError, TypeError, ValueError) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnknownCost(f"the model of fit.yaml cannot be counted: {reason[:300]}") from error


def _counted(config: Mapping[str, Any]) -> Cost:
    with torch.device("meta"):
        objective = _build(config)
        num_parameters = sum(p.numel() for p in objective.trainable_parameters())
        batch = _batch(objective, config, NUM_IMAGES)._replace(invertible=())
        with FlopCounterMode(display=False) as counter:
            online = encode(objective.backbone, batch)
            target = objective.target_features(batch)
    encoders = counter.get_total_flops() / 2 / NUM_IMAGES
    # Losses ask for a device's precision, so they need a real one; what they compute is garbage.
    objective.to_empty(device="cpu")
    one, two = (
        _macs_of_losses(
            objective, _resized(online, num), _resized(target, num), _batch(objective, config, num)
        )
        for num in (NUM_IMAGES, 2 * NUM_IMAGES)
    )
    # one = a n + b n^2 with the pairs of images in b: a is what an image costs by itself
    return Cost(num_parameters, encoders + (4 * one - two) / (2 * NUM_IMAGES))


def _build(config: Mapping[str, Any]) -> Objective:
    """The objective, with all tokens in all blocks and attention that the counter sees.

    Its add-on reads every image: a share of two or four images is no share of a batch.
    """
    objective = rebuilt(config, Path(CONFIGURATION), cls_only_last_block=False)
    for module in objective.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    if objective.regularizer is not None:
        for module in objective.regularizer.modules():
            if hasattr(module, "ratio"):
                module.ratio = 1.0  # type: ignore[assignment]
    return objective


def _resized(x: Any, num_images: int) -> Any:
    """Features of the same shapes on the CPU, for another number of images."""
    return tree_map_only(Tensor, lambda t: torch.zeros(num_images, *t.shape[1:]), x)


def _macs_of_losses(
    objective: Objective, online: BranchFeatures, target: BranchFeatures | None,
    batch: PartitionedBatch,
) -> float:  # fmt: skip
    """Multiply-accumulates of heads and add-on for a batch, pairs of images included."""
    with FlopCounterMode(display=False) as counter:
        objective.invariance_loss(joint_embeddings(online), joint_embeddings(target))
        if objective.regularizer is not None:
            # the same images in both sub-batches: each passes whatever layers there are
            both = online._replace(invertible=online.crop)
            objective.regularizer.regularize(both, None, batch)
    return counter.get_total_flops() / 2


def _batch(objective: Objective, config: Mapping[str, Any], num_images: int) -> PartitionedBatch:
    """Views of the run's sizes, without content; both sub-batches are the same views."""
    data = config["data"]
    size, patch_size = objective.backbone.image_size, objective.backbone.patch_size
    local = arguments(arguments(data.get("crop")).get("local"))
    sizes = [size] * NUM_GLOBAL_VIEWS + ([local["size"]] * local["num"] if local else [])
    views = tuple(_view(num_images, side, patch_size) for side in sizes)
    needs = ViewNeeds() if objective.regularizer is None else objective.regularizer.needs
    turned = arguments(data.get("rotated")).get("size", ROTATED_SIZE)
    extra = [size] * needs.plain + [turned] * 4 * needs.rotated
    further = tuple(_view(num_images, side, patch_size) for side in extra)
    index = torch.arange(num_images)
    return PartitionedBatch(views, views, index, 0 * index, torch.tensor(0), further)


def _view(num_images: int, size: int, patch_size: int) -> View:
    element = GroupElement.identity(num_images, (size // patch_size, size // patch_size))
    one, four = torch.ones(num_images), torch.ones(num_images, 4)
    record = ViewRecord(four[:, :2], four, one, one, four, one, one, one, one, one, one, one, one)
    return View(torch.empty(num_images, 3, size, size), element, record)
