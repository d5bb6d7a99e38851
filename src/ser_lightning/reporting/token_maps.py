"""Token maps to look at: f(g.x) next to g.f(x), as colours, and where they agree."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import ViewRecord
from ser_lightning.groups import GroupElement, act

_WHOLE = 0.995  # share of an image that counts as all of it
_DRAWN = {
    "flip": "flip", "colours": "jitter", "grey": "gray", "blur": "blur_sigma",
    "solarized": "solarize",
}  # fmt: skip
_BLUE, _ORANGE = (0.0, 0.447, 0.698), (0.902, 0.624, 0.0)  # Okabe and Ito's, told apart by all


def describe_element(element: GroupElement, i: int = 0) -> str:
    """Describes element `i` of a batch: "flip, 90 deg, 9x7 grid".

    Turns are counter-clockwise; the grid is that of the result, height first.
    """
    parts = ["flip"] if bool(element.flip[i]) else []
    turn = 90 * int(element.quarter_turns[i])
    parts += [f"{turn} deg"] if turn else []
    parts += [f"{float(element.angle[i]):+.0f} deg"] if element.angle is not None else []
    height, width = element.shape
    return ", ".join([*(parts or ["upright"]), f"{height}x{width} grid"])


def describe_draws(record: ViewRecord[Tensor], i: int = 0) -> str:
    """Describes what was drawn of view `i` beside its element: "34 % of it, flip, blur"."""
    share = record.box[i, 2:].prod().item() / record.source_size[i].prod().item()
    parts = [f"{100 * share:.0f} % of it"] if share < _WHOLE else []
    parts += [f"{float(record.turn[i]):+.0f} deg"] if record.turn[i] else []
    parts += [word for word, name in _DRAWN.items() if getattr(record, name)[i]]
    return ", ".join(parts)


class TokenMaps(NamedTuple):
    """The token maps of one image by one encoder f.

    Attributes:
        transformed: (C, h', w') f(g.x).
        acted: (C, h', w') the action of g on f(x); equal to `transformed` if f is equivariant.
        agreement: (h', w') cosine over channels between the two, both without the mean token.
        centred: the agreement averaged over positions: the score of this image.
    """

    transformed: Tensor
    acted: Tensor
    agreement: Tensor
    centred: float


class TokenComparison(NamedTuple):
    """One transformation of one image, and its token maps by several encoders.

    Attributes:
        caption: the transformation in words.
        image: (3, H, W) in [0, 1].
        transformed: (3, H', W') in [0, 1].
        maps: those of each encoder by its name, in the order to be shown.
    """

    caption: str
    image: Tensor
    transformed: Tensor
    maps: Mapping[str, TokenMaps]


@torch.no_grad()
def token_maps_of(
    backbone: SplitViT, pixels: Tensor, element: GroupElement, layer: int, mean: Tensor
) -> TokenMaps:
    """Computes the token maps of an image and of its transformed copy.

    Args:
        backbone: the encoder, in evaluation mode.
        pixels: (3, H, W) one normalised image.
        element: a batch of one element.
        layer: after which block; the depth means after the final norm.
        mean: (C,) the encoder's mean token over a data set, after the same block.

    Returns:
        The maps in float32 on the CPU.
    """
    (original,) = backbone.token_maps(pixels[None], [layer])
    (transformed,) = backbone.token_maps(act(element, pixels[None], backbone.patch_size), [layer])
    first, second = transformed[0].float().cpu(), act(element, original)[0].float().cpu()
    centre = mean.float().cpu()[:, None, None]
    agreement = F.cosine_similarity(first - centre, second - centre, dim=0)
    return TokenMaps(first, second, agreement, agreement.mean().item())


def colour_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """Shows token maps as colours: brightness is the first principal component, hue the second.

    The second one runs from blue through grey to orange, so that nobody needs to tell red from
    green. Components and ranges are common to all maps: equal colours mean similar tokens. The sign
    of a component is fixed by making its largest channel positive.

    Args:
        maps: (C, h, w) each, with C of at least 2 and of any size.

    Returns:
        (h, w, 3) in [0, 1] for each map.
    """
    tokens = torch.cat([x.flatten(1).T for x in maps]).double()
    mean = tokens.mean(0)
    _, _, directions = torch.linalg.svd(tokens - mean, full_matrices=False)
    directions = directions[:2]
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    projected = (tokens - mean) @ directions.T
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)
    first, second = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).T
    blue, orange = tokens.new_tensor(_BLUE), tokens.new_tensor(_ORANGE)
    hue = blue + second[:, None] * (orange - blue)
    level = 0.15 + 0.85 * first[:, None]  # dark, then the hue itself, then light
    colours = torch.where(level < 0.5, 2 * level * hue, 1 - 2 * (1 - level) * (1 - hue)).float()
    parts = colours.split([x.shape[1] * x.shape[2] for x in maps])
    return [part.reshape(*x.shape[1:], 3) for part, x in zip(parts, maps, strict=True)]
