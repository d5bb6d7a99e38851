"""The equivariance score: does the token map of g.x equal the action of g on the map of x?

Source: SER Table 4. Its formula is not in the text; this is the cosine over channels, averaged
over positions, that Zhang 2019 uses for shifts.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.groups import GroupElement, GroupSampler, act

FAMILIES = ("rotation", "flip", "scale")
NUM_SCALES = 8
"""How many grids the scale family uses: few, so that images with the same grid stack."""


class TokenMapper(Protocol):
    """What a backbone must offer to be scored; `SplitViT` does."""

    grid: tuple[int, int]
    patch_size: int

    def token_maps(self, images: Tensor, layers: Sequence[int], /) -> tuple[Tensor, ...]:
        """Returns the (B, C, h, w) maps of the images after each of the layers."""


def token_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Computes the cosine over channels, averaged over positions.

    Args:
        first: (B, C, h, w) token maps.
        second: (B, C, h, w) token maps in the same frame.

    Returns:
        (B,) float32 in [-1, 1].
    """
    return F.cosine_similarity(first.float(), second.float(), dim=1).flatten(1).mean(1)


def family_elements(
    family: str, position: Tensor, grid: tuple[int, int], seed: int = 0
) -> list[tuple[Tensor, GroupElement]]:
    """Gives every image an element of a transformation family, never the identity.

    The element depends on the seed and on the position of the image alone, not on its batch.
    Images are grouped by what the elements of one batch must share.

    Args:
        family: "rotation": 1, 2 or 3 quarter turns in rotation; "flip": the horizontal flip;
            "scale": one of `NUM_SCALES` grids from the sampler of pretraining.
        position: (B,) int64 counter of the images in the evaluation set.
        grid: the backbone's grid of tokens (h, w).
        seed: of the grids.

    Returns:
        Rows of the batch, int64, with their elements; together every row once.

    Raises:
        ValueError: if there is no such family.
    """
    position = position.cpu()
    if family == "rotation":
        turns = 1 + position % 3
        groups = [(turns == k, False, k, grid) for k in (1, 2, 3)]
    elif family == "flip":
        groups = [(torch.ones_like(position, dtype=torch.bool), True, 0, grid)]
    elif family == "scale":
        grids = scale_grids(grid, seed)
        groups = [(position % len(grids) == i, False, 0, size) for i, size in enumerate(grids)]
    else:
        raise ValueError(f"no transformation family {family!r}; use one of {', '.join(FAMILIES)}")
    result = []
    for chosen, flipped, quarter_turns, size in groups:
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            flip = torch.full((len(rows),), flipped)
            turns = torch.full((len(rows),), quarter_turns)
            result.append((rows, GroupElement.from_turns(flip, turns, size)))
    return result


@lru_cache(maxsize=16)
def scale_grids(grid: tuple[int, int], seed: int = 0) -> tuple[tuple[int, int], ...]:
    """Draws the grids of the scale family by the area and aspect law of pretraining.

    Args:
        grid: the backbone's grid (h, w), which is never among the results.
        seed: of the draw.

    Returns:
        `NUM_SCALES` grids (h, w).

    Raises:
        ValueError: if the grid is so small that every draw rounds to itself.
    """
    sampler = GroupSampler(rotation=False, flip=False)
    rng = np.random.default_rng([seed, *grid])
    drawn = (sampler.sample(1, grid, rng, np.zeros((1, 2, 2))) for _ in range(50 * NUM_SCALES))
    grids = [element.grid for pair in drawn for element in pair if element.grid != grid]
    if len(grids) < NUM_SCALES:
        raise ValueError(
            f"a grid of {grid[0]}x{grid[1]} tokens cannot be scaled; use more patches per side"
        )
    return tuple(grids[:NUM_SCALES])


@torch.no_grad()
def equivariance_scores(
    backbone: TokenMapper,
    pixels: Tensor,
    layers: Sequence[int],
    position: Tensor,
    seed: int = 0,
    families: Sequence[str] = FAMILIES,
) -> dict[str, dict[int, Tensor]]:
    """Scores how well token maps follow a transformation of the image.

        score(x) = mean_u cos( f(g.x)_u , (g f(x))_u ),   u over the positions of the map

    1 for an exactly equivariant encoder. A random-init ViT scores about 0.8, so a score means
    little without that baseline. Computed in float32 outside any autocast, one pass of the
    backbone for all layers.

    Args:
        backbone: the encoder f, in evaluation mode.
        pixels: (B, 3, H, W) normalised images.
        layers: after which blocks; the depth means after the final norm.
        position: (B,) int64 counter of the images in the evaluation set; picks the elements.
        seed: of the elements.
        families: which transformations.

    Returns:
        For each family and layer the (B,) float32 scores, on the device of the pixels.
    """
    scores = {
        family: {layer: pixels.new_empty(len(pixels), dtype=torch.float32) for layer in layers}
        for family in families
    }
    with torch.autocast(pixels.device.type, enabled=False):
        base = backbone.token_maps(pixels, layers)
        for family in families:
            for rows, element in family_elements(family, position, backbone.grid, seed):
                chosen = rows.to(pixels.device)
                moved = act(element, pixels[chosen], backbone.patch_size)
                maps = backbone.token_maps(moved, layers)
                for layer, before, after in zip(layers, base, maps, strict=True):
                    expected = act(element, before[chosen])
                    scores[family][layer][chosen] = token_cosine(after, expected)
    return scores
