"""Token maps to look at: f(g.x) next to g.f(x), as colours."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ser_lightning.backbones import SplitViT
from ser_lightning.groups import GroupElement, act


def describe_element(element: GroupElement, i: int = 0) -> str:
    """Describes one element of a batch, such as "flip, 90 deg, 9x7 grid".

    Args:
        element: a batch of elements.
        i: which of them.

    Returns:
        Flip, counter-clockwise turn and the grid of the result, height first.
    """
    parts = ["flip"] if bool(element.flip[i]) else []
    turn = 90 * int(element.quarter_turns[i])
    parts += [f"{turn} deg"] if turn else []
    height, width = element.shape
    return ", ".join([*(parts or ["upright"]), f"{height}x{width} grid"])


class TokenMaps(NamedTuple):
    """The token maps of one image by one encoder f.

    Attributes:
        original: (C, h, w) f(x).
        transformed: (C, h', w') f(g.x).
        acted: (C, h', w') the action of g on f(x); equal to `transformed` if f is equivariant.
        cosine: over channels between the last two, averaged over positions.
    """

    original: Tensor
    transformed: Tensor
    acted: Tensor
    cosine: float


class TokenComparison(NamedTuple):
    """One transformation of one image, and its token maps before and after training.

    Attributes:
        caption: the transformation in words.
        image: (3, H, W) in [0, 1].
        transformed: (3, H', W') in [0, 1].
        random_init: maps of the encoder as initialised.
        trained: maps of the encoder as trained.
    """

    caption: str
    image: Tensor
    transformed: Tensor
    random_init: TokenMaps
    trained: TokenMaps


@torch.no_grad()
def token_maps_of(
    backbone: SplitViT, pixels: Tensor, element: GroupElement, layer: int
) -> TokenMaps:
    """Computes the token maps of an image and of its transformed copy.

    Args:
        backbone: the encoder, in evaluation mode.
        pixels: (3, H, W) one normalised image.
        element: a batch of one element.
        layer: after which block; the depth means after the final norm.

    Returns:
        The maps in float32 on the CPU.
    """
    (original,) = backbone.token_maps(pixels[None], [layer])
    (transformed,) = backbone.token_maps(act(element, pixels[None], backbone.patch_size), [layer])
    acted = act(element, original)
    cosine = torch.cosine_similarity(transformed.float(), acted.float(), dim=1).mean().item()
    original, transformed, acted = (x[0].float().cpu() for x in (original, transformed, acted))
    return TokenMaps(original, transformed, acted, cosine)


def colour_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """Shows token maps as colours: red, green, blue are the first three principal components.

    The components and the range of each colour are common to all maps, so that equal colours mean
    similar tokens. The sign of a component is fixed by making its largest channel positive.

    Args:
        maps: (C, h, w) each, with C of at least 3 and of any size.

    Returns:
        (h, w, 3) in [0, 1] for each map.
    """
    tokens = torch.cat([x.flatten(1).T for x in maps]).double()
    mean = tokens.mean(0)
    _, _, directions = torch.linalg.svd(tokens - mean, full_matrices=False)
    directions = directions[:3]
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    projected = (tokens - mean) @ directions.T
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)
    colours = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()
    parts = colours.split([x.shape[1] * x.shape[2] for x in maps])
    return [part.reshape(*x.shape[1:], 3) for part, x in zip(parts, maps, strict=True)]
