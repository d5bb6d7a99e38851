"""The action of group elements: one function for pixels and for token maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.groups.element import GroupElement, Interpolation
from ser_lightning.groups.turning import turn_each


def act(element: GroupElement, maps: Tensor, cell: int = 1) -> Tensor:
    """Applies one group element to each map: x -> R^k resize_grid F^f x.

    For every image i, with k = element.quarter_turns[i]:

        x = maps[i].flip(-1) if element.flip[i] else maps[i]
        result[i] = torch.rot90(resize(x, grid), k, dims=(-2, -1))

    and then turned by element.angle[i] degrees where elements have an angle, for the whole batch
    at once and without waiting for the device. Flips and quarter turns only permute, so without a
    change of size the result is bit-equal to `torch.flip` and `torch.rot90`.

    Args:
        element: one element per map.
        maps: (B, C, H, W) pixels or tokens.
        cell: side of one token in `maps`: the patch size for pixels, 1 for token maps.

    Returns:
        (B, C, cell * h, cell * w) with (h, w) = element.shape.
    """
    if maps.dim() != 4 or maps.shape[0] != element.flip.shape[0]:
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} with {element.flip.shape[0]} group elements; "
            "pass (B, C, H, W) with one element per map"
        )
    element = element.to(maps.device)
    # A half turn flips both axes. It commutes with the resize, so both mirrors come before it.
    maps = _flip_where(element.flip ^ element.half_turn, maps, -1)
    maps = _flip_where(element.half_turn, maps, -2)
    size = (cell * element.grid[0], cell * element.grid[1])
    maps = resize(maps, size, element.interpolation)
    maps = torch.rot90(maps, element.quarter_turn, dims=(-2, -1))
    return maps if element.angle is None else turn_each(maps, element.angle)


# Differs: in the paper, scaling uses the resize of the base objective's pipeline, which is bilinear
# for MoCo-v3. As in its public code it is bicubic here for every objective, and for token maps too.
def resize(maps: Tensor, size: tuple[int, int], mode: Interpolation | str = "bicubic") -> Tensor:
    """Resizes maps (B, C, H, W) to (B, C, *size); a map of that size is returned as it is.

    No antialiasing and align_corners false, as the public code does on pixels and tokens.
    """
    if mode not in ("bicubic", "bilinear"):
        reason = "is not symmetric: it does not commute with turns" if "near" in mode else "unknown"
        raise ValueError(f'resize mode "{mode}" {reason}; use "bicubic" or "bilinear"')
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode=mode, align_corners=False, antialias=False)


def _flip_where(chosen: Tensor, maps: Tensor, axis: int) -> Tensor:
    return torch.where(chosen[:, None, None, None], maps.flip(axis), maps)
