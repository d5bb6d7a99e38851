"""Operations and time of a step with SER, and with SER between crops, beside the step without.

Run: python -m benchmarks.operations --json result.json

Every operation of PyTorch that computes something is counted, views left out, from the rendering
of a batch to the end of the backward pass: on a GPU each is at least one kernel. Times are medians
of interleaved repetitions on this machine, in bf16 where its processor multiplies in that. Only
ratios of one run mean something.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.turns import medians
from ser_lightning.backbones import SplitViT
from ser_lightning.batch import NUM_GLOBAL_VIEWS
from ser_lightning.data import (
    BatchKey,
    CropViews,
    InvertibleViews,
    PartitionedDataModule,
    Patterns,
)
from ser_lightning.data.extra_views import TurnedCrops
from ser_lightning.data.render import HostBatch, render
from ser_lightning.groups import GroupSampler
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import Regularizer, SERRegularizer
from ser_lightning.regularizers.overlap import OverlapRegularizer
from ser_lightning.trainer_rules import multiplies_in_bf16


class Size(NamedTuple):
    """A network and its batch."""

    name: str
    image_size: int
    patch_size: int
    layer: int
    options: dict[str, Any]
    batch_size: int
    num_invertible: int


SIZES = {
    "small": Size(
        "vit_tiny_patch16_224", 32, 4, 2, {"embed_dim": 192, "depth": 6, "num_heads": 3}, 256, 3
    ),
    "ViT-S": Size("vit_small_patch16_224", 224, 16, 3, {}, 32, 2),
}
HEADS: dict[str, Any] = {"hidden": 1024, "projection": 128}


class Counted(TorchDispatchMode):
    """Counts operations by name, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names = Counter[str]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not function.is_view and "detach" not in str(function):
            self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


def counted(work: Callable[[], object]) -> Counter[str]:
    """The operations of some work, by name."""
    with Counted() as mode:
        work()
    return mode.names


def steps(size: Size, device: str = "cpu") -> dict[str, Callable[[], Tensor]]:
    """Forward and backward of the base step and of the others, on batches of their own.

    The base step has [CLS] from the start; "late [CLS]" has it from where the add-ons do.
    """
    share = size.num_invertible / size.batch_size
    angles = InvertibleViews(share, GroupSampler(angle=30.0))
    turned = CropViews(turned=TurnedCrops(share, 45.0))
    made_for = {
        "base": made(size, None),
        "late [CLS]": made(size, None, is_late=True),
        "SER": made(size, SERRegularizer(), invertible=InvertibleViews(ratio=share)),
        "SER, angles": made(size, SERRegularizer(), invertible=angles),
        "overlap": made(size, OverlapRegularizer(ratio=share)),
        "overlap, turned": made(size, OverlapRegularizer(ratio=share), crop=turned),
    }
    return {name: step_of(*pair, size.patch_size, device) for name, pair in made_for.items()}


def made(
    size: Size, add_on: Regularizer | None, is_late: bool = False, **views: Any
) -> tuple[MoCoV3, HostBatch]:
    """MoCo-v3 with an add-on or none, and a batch for it with the given pipelines' views."""
    torch.manual_seed(0)
    data = PartitionedDataModule(
        Patterns(num_train=2 * size.batch_size, num_evaluation=12, image_size=size.image_size),
        global_batch_size=size.batch_size,
        image_size=size.image_size,
        patch_size=size.patch_size,
        num_workers=0,
        **{"invertible": None} | views,
    )
    data.setup("fit")
    cls_layer = size.layer if add_on or is_late else 0
    backbone = SplitViT(
        size.name, size.image_size, size.layer, cls_layer, size.patch_size, size.options
    )
    return MoCoV3(backbone, **HEADS, regularizer=add_on), first_of_most_shapes(data)


def first_of_most_shapes(data: PartitionedDataModule) -> HostBatch:
    """The first batch whose crops and two invertible views are of three shapes, as most are."""
    batches = data.train_dataset()
    for epoch in range(99):
        batch = batches[BatchKey(epoch, 0)]
        assert isinstance(batch, HostBatch)
        views = render(batch, data.patch_size)
        shapes = {view.pixels.shape[-2:] for view in (*views.crop, *views.invertible)}
        if not views.invertible or len(shapes) == 1 + NUM_GLOBAL_VIEWS:
            return batch
    raise RuntimeError("no batch has three shapes")


def step_of(
    module: MoCoV3, batch: HostBatch, patch_size: int, device: str = "cpu"
) -> Callable[[], Tensor]:
    """Rendering, forward and backward, on a device."""
    module, batch = module.to(device), move_data_to_device(batch, device)
    is_mixed = device != "cpu" or multiplies_in_bf16()

    def step() -> Tensor:
        module.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=is_mixed):
            loss: Tensor = module.training_step(render(batch, patch_size), 0)
        loss.backward()
        return loss

    return step


def main() -> None:
    """Counts and times both sizes, and prints their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--names", type=int, default=0, help="operations to list, most added first")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = {}
    for label, size in SIZES.items():
        pair = steps(size)
        seconds = medians(pair, options.repeats)
        counts = {name: counted(step) for name, step in pair.items()}
        totals = {name: names.total() for name, names in counts.items()}
        print(f"{label}: operations {totals}; seconds {seconds}")
        for name in list(pair)[1:]:
            ratio, slower = totals[name] / totals["base"], seconds[name] / seconds["base"]
            print(f"  {name} over base: operations {ratio:.2f}, seconds {slower:.3f}")
            for operation, more in (counts[name] - counts["base"]).most_common(options.names):
                print(f"    {operation}: {more} more than {counts['base'][operation]}")
        result[label] = {"operations": totals, "seconds": seconds}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
