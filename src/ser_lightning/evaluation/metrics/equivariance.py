"""The equivariance score: does the token map of g.x equal the action of g on the map of x?

A score alone says little, so companions stand next to it: the chance level, the score without an
action, and the score without what all tokens have in common.

Source: SER Table 4. Its formula is not in the text; this is the cosine over channels, averaged
over positions, that Zhang 2019 uses for shifts.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.batch import TapFeatures
from ser_lightning.groups import GroupElement, GroupSampler, act

FAMILIES = ("rotation", "flip", "scale")
NUM_SCALES = 8
"""How many grids the scale family uses: few, so that images with the same grid stack."""

ROWS = ("score", "chance", "no_action", "mean_centred")
_PASS = 32
"""Of how many images the moved ones share a pass of the backbone, three of each."""

NUM_REFERENCES = 16
"""How many images lend their maps for the chance level; few, so that every process holds them."""


class TokenMapper(Protocol):
    """What a backbone must offer to be scored; `SplitViT` does."""

    grid: tuple[int, int]
    patch_size: int

    def walk(
        self, images: Sequence[Tensor], layers: Sequence[int], /
    ) -> Sequence[tuple[TapFeatures, ...]]:
        """For each group (B, 3, H, W) the (B, C, h, w) maps after each of the layers."""


def place_of(layer: int, depth: int) -> str:
    """What metrics call the map after a block; after the last one it has the final norm."""
    return "final" if layer == depth else f"block{layer}"


def token_cosine(first: Tensor, second: Tensor, inside: Tensor | None = None) -> Tensor:
    """The cosine over channels of (B, C, h, w) maps in one frame, averaged over positions: (B,).

    Over all positions, or those of a mask (h, w); nan if there are none.
    """
    cosine = F.cosine_similarity(first.float(), second.float(), dim=1).flatten(1)
    if inside is not None:
        cosine = cosine[:, inside.flatten().to(cosine.device)]
    return cosine.mean(1)


def family_elements(
    family: str, position: Tensor, grid: tuple[int, int], seed: int = 0
) -> list[tuple[Tensor, GroupElement]]:
    """Gives every image an element of a transformation family, never the identity.

    "rotation" is 1, 2 or 3 quarter turns in rotation; "flip" the horizontal flip; "scale" one of
    `NUM_SCALES` grids from the sampler of pretraining. The element depends on the seed and on the
    position of the image alone, not on its batch.

    Args:
        family: one of `FAMILIES`.
        position: (B,) int64 counter of the images in the evaluation set.
        grid: the backbone's grid of tokens (h, w).
        seed: seed of the grids.

    Returns:
        Rows of the batch, int64, with the elements that they share; together every row once.

    Raises:
        ValueError: if there is no such family.
    """
    if family == "rotation":
        kinds = [(False, turns, grid) for turns in (1, 2, 3)]
    elif family == "flip":
        kinds = [(True, 0, grid)]
    elif family == "scale":
        kinds = [(False, 0, size) for size in scale_grids(grid, seed)]
    else:
        raise ValueError(f"no transformation family {family!r}; use one of {', '.join(FAMILIES)}")
    result = []
    for number, (flip, turns, size) in enumerate(kinds):
        rows = (position.cpu() % len(kinds) == number).nonzero()[:, 0]
        if len(rows):
            drawn = torch.full((len(rows),), flip), torch.full((len(rows),), turns)
            result.append((rows, GroupElement.from_turns(*drawn, size)))
    return result


@lru_cache(maxsize=16)
def scale_grids(grid: tuple[int, int], seed: int = 0) -> tuple[tuple[int, int], ...]:
    """`NUM_SCALES` grids (h, w) by the area and aspect law of pretraining, never the given one.

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


class Reference(NamedTuple):
    """What the companions of a score need to know of the evaluation set.

    Attributes:
        mean: per layer the (C,) mean token over all images and positions.
        positions: (R,) int64 counters of some images, at least two; none leave the chance level
            undefined.
        maps: per layer their (R, C, h, w) maps.
    """

    mean: tuple[Tensor, ...]
    positions: Tensor = torch.empty(0, dtype=torch.int64)
    maps: tuple[Tensor, ...] = ()

    def at(self, numbers: Sequence[int]) -> "Reference":
        """What is known of some of the layers, by their places in the order."""
        mean = tuple(self.mean[i] for i in numbers)
        return Reference(mean, self.positions, tuple(self.maps[i] for i in numbers if self.maps))

    def other_maps(self, number: int, position: Tensor) -> Tensor:
        """For every counter (B,) of an image the map (B, C, h, w) of another one."""
        maps = self.maps[number]
        return maps[other_image(position, self.positions).to(maps.device)]


def reference_positions(num_images: int) -> Tensor:
    """Counters (R,) of the images that lend their maps for the chance level, evenly over the set.

    Raises:
        ValueError: if there is only one image, which has no other one.
    """
    if num_images < 2:
        raise ValueError(
            f"{num_images} images have no chance level, which compares different images; use at "
            "least 2"
        )
    count = min(NUM_REFERENCES, num_images)
    return torch.arange(count) * num_images // count


def other_image(position: Tensor, references: Tensor) -> Tensor:
    """Numbers (B,) of references (R,), one for every counter (B,) of an image and never itself."""
    position = position.cpu()
    chosen = position % len(references)
    return (chosen + (references[chosen] == position).long()) % len(references)


@torch.no_grad()
def companion_scores(
    backbone: TokenMapper,
    pixels: Tensor,
    layers: Sequence[int],
    position: Tensor,
    reference: Reference | None,
    seed: int = 0,
    maps: Sequence[Tensor] | None = None,
) -> dict[str, dict[str, dict[int, Tensor]]]:
    """Scores how well token maps follow a transformation, with companions that tell its worth.

        score:        mean_u cos( f(g.x)_u ,     (g f(x))_u     )
        chance:       mean_u cos( f(g.x)_u ,     (g f(y))_u     ),   y another image
        no_action:    mean_u cos( f(g.x)_u ,     f(x)_u         ),   where the maps have one size
        mean_centred: mean_u cos( f(g.x)_u - m , (g f(x))_u - m ),   m the mean token of the set

    The mean is over the positions u of the map. An exactly equivariant encoder scores 1, a ViT at
    random init about 0.8: a score means little without that. In float32, outside of any autocast.
    The moved images of all families and sizes share passes of the backbone.

    Args:
        backbone: the encoder f, in evaluation mode.
        pixels: (B, 3, H, W) normalised images.
        layers: after which blocks; the depth means after the final norm.
        position: (B,) int64 counter of the images in the evaluation set; picks g and y.
        reference: mean tokens and further images, for the same layers in the same order; None
            leaves all but the score undefined.
        seed: seed of the elements.
        maps: f(x), (B, C, h, w) float32 for each layer, where it is known already.

    Returns:
        For each of `ROWS`, family and layer the (B,) float32 values, on the device of the pixels;
        nan where a row is not defined, as `no_action` where the size of the map changes.
    """
    nothing = torch.full((len(pixels),), torch.nan, dtype=torch.float32, device=pixels.device)
    values = {
        row: {family: {layer: nothing.clone() for layer in layers} for family in FAMILIES}
        for row in ROWS
    }
    position = position.cpu()
    with torch.autocast(pixels.device.type, enabled=False):
        base = maps or [prefix.tokens for prefix in backbone.walk([pixels], layers)[0]]
        for part in torch.arange(len(pixels)).split(_PASS):
            moves = [
                (family, part[rows], element)
                for family in FAMILIES
                for rows, element in family_elements(family, position[part], backbone.grid, seed)
            ]
            moved = [act(g, pixels[_at(rows, pixels)], backbone.patch_size) for _, rows, g in moves]
            for (family, rows, element), prefixes in zip(
                moves, backbone.walk(moved, layers), strict=True
            ):
                of_batch = _at(rows, pixels)
                for i, layer in enumerate(layers):
                    before, after = base[i][of_batch], prefixes[i].tokens
                    others = None
                    if reference is not None and reference.maps:
                        others = act(element, reference.other_maps(i, position[rows]))
                    expected = act(element, before)
                    found = row_scores(after, before, expected, others, reference, i)
                    for row, value in found.items():
                        values[row][family][layer][of_batch] = value
    return values


def _at(rows: Tensor, pixels: Tensor) -> Tensor:
    return rows.to(pixels.device)


def row_scores(
    after: Tensor,
    before: Tensor,
    expected: Tensor,
    others: Tensor | None,
    reference: Reference | None,
    number: int,
    inside: Tensor | None = None,
) -> dict[str, Tensor]:
    """The rows that are defined for maps of one layer, each (B,).

    Args:
        after: f(g.x), (B, C, h, w).
        before: f(x).
        expected: g f(x), of the shape of f(g.x).
        others: g f(y) of other images y, if known.
        reference: what is known of the set, if anything.
        number: the layer's place in the reference.
        inside: (h, w) which positions count; all by default.
    """
    found = {"score": token_cosine(after, expected, inside)}
    if reference is None:
        return found
    if after.shape == before.shape:
        found["no_action"] = token_cosine(after, before, inside)
    if others is not None:
        found["chance"] = token_cosine(after, others, inside)
    mean = reference.mean[number][:, None, None]
    found["mean_centred"] = token_cosine(after - mean, expected - mean, inside)
    return found
