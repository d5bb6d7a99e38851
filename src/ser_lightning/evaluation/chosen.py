"""The queries whose equivariance is scored while training, in as few passes as there can be."""

from typing import NamedTuple

import torch
from torch import Tensor

from ser_lightning.backbones import SplitViT
from ser_lightning.evaluation.metrics.diagnostics import spatial_moments
from ser_lightning.evaluation.metrics.equivariance import (
    FAMILIES,
    Reference,
    companion_scores,
    place_of,
)
from ser_lightning.evaluation.per_image import Rows, even_subset, full_batches

_PASS = 64  # images
_FEWEST = 16
_ROWS = {"mean_centred": "mean_centred/", "score": ""}
"""The two scores of equivariance, and what stands before the family in their names."""


class Images(NamedTuple):
    """Positions in the data set (B,) and classes (B,), on the CPU, and pixels (B, 3, H, W)."""

    indices: Tensor
    label: Tensor
    pixels: Tensor

    def at(self, rows: Tensor) -> "Images":
        """Some of the images, by their numbers (n,)."""
        return Images(
            self.indices[rows], self.label[rows], self.pixels[rows.to(self.pixels.device)]
        )


class ChosenQueries:
    """Collects the chosen images over the batches, for passes that are full.

    Upright images pass once, with all tokens in all blocks: that gives their token maps, and the
    features and moments that every query has. Moved ones share passes whatever their size.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []

    def take(self, images: Images, total: int, count: int) -> Images:
        """Takes what belongs to the `even_subset` of the data set, and returns the others."""
        chosen, position = even_subset(images.indices, total, count)
        if len(chosen):
            self._parts.append((position, *images.at(chosen)))
        rows = torch.arange(len(images.indices))
        return images.at(rows[~torch.isin(rows, chosen)]) if len(chosen) else images

    @torch.no_grad()
    def measure(self, backbone: SplitViT, queries: Rows) -> dict[str, float]:
        """The mean scores of the images of all processes; every process must call it.

        Empty where no image was chosen. `queries` gets what these images are as queries.
        """
        layers = sorted({backbone.layer, backbone.depth})
        columns = [(row, f, layer) for row in _ROWS for f in FAMILIES for layer in layers]
        means, scores = Rows(len(layers) * backbone.width), Rows(len(columns))
        walked = []
        for position, index, label, pixels in full_batches(self._parts, _PASS):
            with torch.autocast(pixels.device.type, enabled=False):
                prefixes = backbone.walk([pixels], layers)[0]
            maps = [prefix.tokens for prefix in prefixes]
            embedding = prefixes[-1].cls
            assert embedding is not None
            queries.add(index, label, query_values(embedding, maps[0]))
            tokens = torch.stack([x.flatten(2).mean(2) for x in maps], 1)
            means.add(position, label, tokens.flatten(1))
            walked.append((position, label, pixels, maps))
        mean = means.gather().values.double().mean(0).float().unflatten(0, (len(layers), -1))
        for position, label, pixels, maps in walked:
            reference = Reference(tuple(mean.to(pixels.device)))
            found = companion_scores(backbone, pixels, layers, position, reference, maps=maps)
            values = torch.stack([found[row][f][layer] for row, f, layer in columns], 1)
            scores.add(position, label, values)
        gathered = scores.gather().values
        names = [f"{_ROWS[row]}{f}_{place_of(layer, backbone.depth)}" for row, f, layer in columns]
        means_of = zip(names, gathered.T, strict=True)
        return {f"equivariance/{name}": x.mean().item() for name, x in means_of if len(x)}


def query_values(features: Tensor, tokens: Tensor) -> Tensor:
    """A query's embedding (B, C), and the moments of its token map (B, C, h, w)."""
    within, mean = spatial_moments(tokens)
    return torch.cat([features, within[:, None], mean], dim=1)


def enough(pixels: Tensor) -> Tensor:
    """The images, repeated where they are so few that a matrix product would round otherwise.

    On [CLS] alone, a product has as many rows as there are images, and up to three go through
    another kernel (MKL), up to eleven where threads share them. What is added comes last.
    """
    num = len(pixels)
    return pixels if num >= _FEWEST else pixels[torch.arange(_FEWEST, device=pixels.device) % num]
