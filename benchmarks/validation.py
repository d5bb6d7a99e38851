"""Validation while training: passes of the backbone, images and seconds, before and after.

Run: python -m benchmarks.validation --json result.json

"Before" is what version 0.1.0 did: every batch of queries passes for its features; the chosen
images of a batch, a dozen, pass again for the mean token, and for the scores upright and once for
each element that some of them got. "After" is `OnlineEvaluation`. Both are called here with the
same images in batches of 64, without a trainer. Times are medians of interleaved repetitions; only
ratios of one run mean something, on a machine with nothing else to do.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.turns import medians
from ser_lightning.backbones import SplitViT
from ser_lightning.evaluation.chosen import ChosenQueries, Images, enough, query_values
from ser_lightning.evaluation.metrics.equivariance import FAMILIES, family_elements, token_cosine
from ser_lightning.evaluation.per_image import Rows, even_subset
from ser_lightning.groups import act

BATCH = 64
OPTIONS = {"embed_dim": 192, "depth": 6, "num_heads": 3}


class CountedViT(SplitViT):
    """Counts passes, and the images in them."""

    passes = 0
    images = 0

    def _walk(self, images, layers):  # type: ignore[no-untyped-def]
        self.passes += 1
        self.images += sum(map(len, images))
        return super()._walk(images, layers)


def before(backbone: SplitViT, pixels: Tensor, count: int) -> float:
    """The mean score of rotations after the layer, as version 0.1.0 computed it."""
    layers, scores = [backbone.layer, backbone.depth], []
    for index in torch.arange(len(pixels)).split(BATCH):
        backbone.encode([pixels[index]])
        chosen, position = even_subset(index, len(pixels), count)
        images = pixels[index[chosen]]
        backbone.token_maps(images, layers)  # for the mean token
        base = backbone.token_maps(images, layers)
        for family in FAMILIES:
            for rows, element in family_elements(family, position, backbone.grid):
                maps = backbone.token_maps(act(element, images[rows], backbone.patch_size), layers)
                found = [
                    token_cosine(after, act(element, upright[rows]))
                    for after, upright in zip(maps, base, strict=True)
                ]
                scores += [found[0]] if family == "rotation" else []
    return torch.cat(scores).mean().item()


def after(backbone: SplitViT, pixels: Tensor, count: int) -> float:
    """The same score as `OnlineEvaluation` computes it."""
    chosen, queries = ChosenQueries(), Rows(2 * backbone.width + 1)
    for index in torch.arange(len(pixels)).split(BATCH):
        images = chosen.take(
            Images(index, torch.zeros_like(index), pixels[index]), len(pixels), count
        )
        if len(images.indices):
            ((prefixes, embedding),) = backbone.encode([enough(images.pixels)])
            assert embedding is not None
            features = embedding[: len(images.indices)]
            tokens = prefixes[-1].tokens[: len(features)]
            queries.add(images.indices, images.label, query_values(features, tokens))
    scores = chosen.measure(backbone, queries)
    return scores[f"equivariance/rotation_block{backbone.layer}"]


def main() -> None:
    """Counts and times both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=2500)
    parser.add_argument("--chosen", type=int, default=512)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    backbone = CountedViT(
        "vit_tiny_patch16_224", options.image_size, 2, 2, 4, vit_options=OPTIONS
    ).eval()
    pixels = torch.randn(options.queries, 3, options.image_size, options.image_size)
    ways: dict[str, Callable[[SplitViT, Tensor, int], float]] = {"before": before, "after": after}
    result: dict[str, dict[str, float]] = {}

    def measure(name: str) -> None:
        backbone.passes = backbone.images = 0
        score = ways[name](backbone, pixels, options.chosen)
        result[name] = {"score": score, "passes": backbone.passes, "images": backbone.images}

    works = {name: partial(measure, name) for name in ways}
    with torch.no_grad():
        seconds = medians(works, options.repeats, num_warm=0)
    for name, row in result.items():
        row["seconds"] = seconds[name]
        print(name, row)
    ratios = {key: row / result["after"][key] for key, row in result["before"].items()}
    print(f"before over after: {ratios}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
