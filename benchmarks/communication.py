"""What the ranks of a training step send to each other, from shapes.

Run: python -m benchmarks.communication, which prints the table of docs/scaling.md

A tensor of s bytes on each of W ranks costs a rank, where the ranks form a ring, (W - 1) s bytes
sent for a gather and 2 (W - 1) / W s for a sum; a gather's backward pass, a scattered sum, costs
as much as the gather, a sum's as much as the sum. Sizes are checked against the collectives of a
step by `tests/benchmarking/test_communication.py`; nothing of this is measured on a network.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.heads import CrossRankBatchNorm1d
from ser_lightning.objectives import Objective
from ser_lightning.objectives.barlow_twins import BarlowTwins
from ser_lightning.objectives.byol import BYOL
from ser_lightning.objectives.dino import DINO
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.objectives.momentum import MomentumObjective
from ser_lightning.objectives.simclr import SimCLR
from ser_lightning.objectives.simsiam import SimSiam
from ser_lightning.objectives.vicreg import VICReg
from ser_lightning.regularizers import SERRegularizer

FLOAT = 4  # bytes: losses, statistics and gradients are float32 under autocast too
WORLD_SIZES = (8, 64, 256, 1024)
NUM_VIEWS = 2
# scalars that an objective logs beside its losses
NUM_LOGS: dict[type[Objective], int] = {BYOL: 1, SimSiam: 1, DINO: 1, BarlowTwins: 2, VICReg: 3}
COMPARED: tuple[type[Objective], ...] = (MoCoV3, SimCLR, BYOL, SimSiam, DINO, BarlowTwins, VICReg)
Kind = Literal["gather", "sum"]


class Collective(NamedTuple):
    """One kind of call of a step: bytes of a rank's tensor, over all calls."""

    what: str
    kind: Kind
    num_bytes: int
    has_backward: bool = False

    def sent(self, world_size: int) -> float:
        """Bytes that a rank sends in a ring."""
        factor = world_size - 1 if self.kind == "gather" else 2 * (world_size - 1) / world_size
        return factor * self.num_bytes * (1 + self.has_backward)


def collectives(
    objective: Any, num_images: int, tokens: Sequence[int], token_bytes: int = FLOAT
) -> list[Collective]:
    """What a training step of two views calls, of an objective with SER or without an add-on.

    Args:
        objective: as it is trained.
        num_images: images of a rank's batch, b.
        tokens: tokens of all invertible images of a rank, by view; empty without.
        token_bytes: of an element of a token: 2 under bf16.
    """
    found = [*_of_norms(objective), *_of_loss(objective, num_images)]
    num_scalars = 2 + NUM_LOGS.get(type(objective), 0)
    ser = objective.regularizer
    if ser is not None:
        num_scalars += 2  # the equivariance loss, and its value for features all alike
        channels = ser.projector[2].weight.shape[0]
        size = sum(tokens) * channels * token_bytes
        has_momentum = isinstance(objective, MomentumObjective)
        found.append(Collective("SER's candidates", "gather", size, not has_momentum))
    found.append(Collective("scalars to log", "sum", FLOAT * num_scalars))
    trained = sum(parameter.numel() for parameter in objective.trainable_parameters())
    found.append(Collective("gradients", "sum", FLOAT * trained))
    return found


def _of_norms(objective: Any) -> Iterator[Collective]:
    """Mean and variance of each channel, in every head and for every view."""
    online = (getattr(objective, name, None) for name in ("projector", "predictor"))
    momentum = (getattr(objective, "momentum_projector", None),)
    for heads, has_backward in ((online, True), (momentum, False)):
        size = NUM_VIEWS * 2 * FLOAT * _channels(heads)
        if size:
            yield Collective("norms of the heads", "gather", size, has_backward)


def _channels(heads: Iterable[nn.Module | None]) -> int:
    modules = (module for head in heads if head is not None for module in head.modules())
    return sum(m.num_features for m in modules if isinstance(m, CrossRankBatchNorm1d))


def _of_loss(objective: Any, num_images: int) -> Iterator[Collective]:
    """What the invariance loss itself calls, by its docstring."""
    width = _projection(objective)
    both = NUM_VIEWS * num_images * width * FLOAT
    if isinstance(objective, MoCoV3):
        yield Collective("keys", "gather", both)
    elif isinstance(objective, SimCLR | VICReg):
        yield Collective("projections", "gather", both, has_backward=True)
    elif isinstance(objective, DINO):
        yield Collective("centre", "sum", width * FLOAT)
    elif isinstance(objective, BarlowTwins):
        yield Collective("norms of the loss", "gather", NUM_VIEWS * 2 * width * FLOAT, True)
        yield Collective("correlation matrix", "sum", width**2 * FLOAT, has_backward=True)


def _projection(objective: Any) -> int:
    last = [m for m in objective.projector.modules() if isinstance(m, nn.Linear)][-1]
    return int(last.out_features)


def full_size(cls: Any) -> Objective:
    """An objective with SER on ViT-S/16 and its default heads, on the meta device."""
    with torch.device("meta"):
        objective: Objective = cls(
            SplitViT("vit_small_patch16_224", 224, 3), regularizer=SERRegularizer()
        )
        return objective


def table(num_images: int = 256, num_invertible: int = 3, num_tokens: int = 196) -> str:
    """Megabytes that a rank sends in a step, in Markdown: what the losses need, and gradients."""
    head = " | ".join(f"{size} ranks" for size in WORLD_SIZES)
    rule = "|---" * (3 + len(WORLD_SIZES)) + "|"
    lines = [f"| objective | what | a rank's tensor | {head} |", rule]
    for cls in COMPARED:
        tokens = NUM_VIEWS * [num_invertible * num_tokens]
        found = collectives(full_size(cls), num_images, tokens, 2)
        for name, group in groupby(found, attrgetter("what")):
            if name == "scalars to log":  # a few bytes
                continue
            rows = list(group)
            cells = [sum(row.num_bytes for row in rows)]
            cells += [round(sum(row.sent(size) for row in rows)) for size in WORLD_SIZES]
            sizes = " | ".join(f"{cell / 1e6:.3g}" if cell < 1e9 else f"{cell / 1e6:.0f}"
                               for cell in cells)  # fmt: skip
            lines.append(f"| {cls.__name__} | {name} | {sizes} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0]).parse_args()
    print(table())


if __name__ == "__main__":
    main()
