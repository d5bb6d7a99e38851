"""MoCo-v3's step, eager and compiled, beside the same step as one writes it first with timm.

Run: python -m benchmarks.step --json result.json

The baseline is timm's ViT as it comes, one view after the other, with PyTorch's AdamW and a loop
over the momentum encoder's weights; both have the same images, heads and frozen patch embedding.
A step is forward, backward, optimizer and momentum encoder; rendering is left out. Medians of
steps that take turns, in bf16 where the processor multiplies in that, and beside them what the
matrix products of this machine reach. Only ratios of one run mean something, on a machine with
nothing else to do, and the load that is printed says whether it had.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.operations import HEADS, SIZES, Size, made
from benchmarks.turns import medians
from ser_lightning.backbones.compiled import require_compiler
from ser_lightning.backbones.ema import update_momentum
from ser_lightning.backbones.heads import mlp
from ser_lightning.data.render import render
from ser_lightning.losses import contrastive_loss
from ser_lightning.trainer_rules import multiplies_in_bf16

MOMENTUM = 0.99


class First(nn.Module):
    """MoCo-v3 with timm's ViT, one view after the other."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"img_size": size.image_size, "patch_size": size.patch_size}
        vit: Any = timm.create_model(size.name, num_classes=0, **sizes, **size.options)
        self.vit = vit
        vit.patch_embed.requires_grad_(False)
        hidden, projection = HEADS.values()
        widths = (vit.embed_dim, hidden, hidden, projection)
        self.projector = mlp(widths, last_norm="affine_free")
        self.predictor = mlp((projection, hidden, projection), last_norm="affine_free")
        self.followers = [
            copy.deepcopy(part).requires_grad_(False) for part in (self.vit, self.projector)
        ]

    @override
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        queries = [self.predictor(self.projector(self.vit(view))) for view in (first, second)]
        vit, projector = self.followers
        with torch.no_grad():
            keys = [projector(vit(view)) for view in (first, second)]
        losses = [contrastive_loss(q, k, 0.2) for q, k in zip(queries, keys[::-1], strict=True)]
        return losses[0] + losses[1]

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the momentum encoder, weight by weight."""
        for leader, follower in zip((self.vit, self.projector), self.followers, strict=True):
            for ours, theirs in zip(leader.parameters(), follower.parameters(), strict=True):
                theirs.mul_(MOMENTUM).add_(ours, alpha=1 - MOMENTUM)


def with_optimizer(
    loss_of: Callable[[], Tensor], module: nn.Module, follow: Callable[[], None], fused: bool
) -> Callable[[], None]:
    """The whole step."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.1, fused=fused)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_in_bf16()):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        follow()

    return step


def ours(size: Size, is_compiled: bool) -> Callable[[], None]:
    """This project's step."""
    module, batch = made(size, None)
    rendered = render(batch, size.patch_size)
    module.backbone.compiles = is_compiled

    def follow() -> None:
        update_momentum(module.backbone, module.momentum_backbone, MOMENTUM)
        update_momentum(module.projector, module.momentum_projector, MOMENTUM)

    return with_optimizer(lambda: module.training_step(rendered, 0), module, follow, fused=True)


def timms(size: Size) -> Callable[[], None]:
    """The baseline's, with images of the same sizes."""
    module, batch = First(size), made(size, None)[1]
    views = [view.pixels for view in render(batch, size.patch_size).crop]
    return with_optimizer(lambda: module(*views), module, module.follow, fused=False)


def steps(size: Size, with_compiler: bool) -> dict[str, Callable[[], None]]:
    """What is timed, by name."""
    compiled = {"compiled": ours(size, True)} if with_compiler else {}
    return {"timm": timms(size), "eager": ours(size, False), **compiled}


def seconds_of(run: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def products(side: int = 2048) -> float:
    """GFLOP/s of this machine's matrix products, the best of ten."""
    kind = torch.bfloat16 if multiplies_in_bf16() else torch.float32
    left, right = (torch.randn(side, side).to(kind) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: left @ right) for _ in range(10)) / 1e9


def main() -> None:
    """Times both sizes, and prints their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with_compiler = False
    with suppress(ValueError):
        require_compiler(torch.device("cpu"))
        with_compiler = True
    result: dict[str, Any] = {}
    for label in options.sizes:
        result[label] = medians(steps(SIZES[label], with_compiler), options.repeats)
        for name, seconds in result[label].items():
            speed = SIZES[label].batch_size / seconds
            ratio = result[label]["timm"] / seconds
            print(f"{label:6}{name:10}{speed:8.1f} images/s  {ratio:5.2f} of timm's", flush=True)
    print(f"matrix products {products():.0f} GFLOP/s; load {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
