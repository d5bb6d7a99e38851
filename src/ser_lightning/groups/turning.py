"""Turns by any angle, by bilinear sampling; `action.py` has the quarter turns, which are exact."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.groups.frame import rotations


def turn(maps: Tensor, degrees: float) -> Tensor:
    """Turns square maps about their centre, counter-clockwise; what enters at the corners is 0.

    The nearest quarter turn is exact, `torch.rot90`, and the rest of at most 45 degrees is sampled
    bilinearly: so quarter turns are those of `act`, bit by bit. In normalised pixels 0 is the mean
    colour.

    Args:
        maps: (B, C, S, S) pixels or tokens.
        degrees: the angle, any number.

    Returns:
        (B, C, S, S).

    Raises:
        ValueError: if the maps are not square.
    """
    height, width = maps.shape[-2:]
    if height != width:
        raise ValueError(
            f"a map of {height} x {width} cannot be turned in its frame; crop a square"
        )
    quarters = round(degrees / 90)
    maps, rest = torch.rot90(maps, quarters, (-2, -1)), math.radians(degrees - 90 * quarters)
    if rest == 0:
        return maps
    cos, sin = math.cos(rest), math.sin(rest)
    backwards = torch.tensor([[cos, -sin, 0], [sin, cos, 0]], dtype=torch.float64)
    return _sampled(maps, backwards.expand(len(maps), 2, 3), "zeros")


def turn_each(maps: Tensor, degrees: Tensor) -> Tensor:
    """Turns maps (B, C, H, W) counter-clockwise about their middle by angles (B,), bilinear.

    What the corners show lies outside of the map, and is reflected at its sides.
    """
    size = (maps.shape[-2], maps.shape[-1])
    axes = rotations(degrees, size).flip(-2, -1)  # grid_sample has x before y
    return _sampled(maps, F.pad(axes, (0, 1)), "reflection")


def _sampled(maps: Tensor, backwards: Tensor, outside: str) -> Tensor:
    """Maps (B, C, H, W) sampled where (B, 2, 3) matrices lead, in float32 at least.

    In half precision places have too few digits, and torch then reads beside the map.
    """
    precise = maps.to(torch.promote_types(maps.dtype, torch.float32))
    size = [len(maps), 1, *maps.shape[-2:]]
    grid = F.affine_grid(backwards.to(precise), size, align_corners=False)
    return F.grid_sample(precise, grid, "bilinear", outside, align_corners=False).to(maps.dtype)


def stays_inside(degrees: float, side: int) -> Tensor:
    """Says which cells (side, side) of a turned square show nothing from outside of it.

    A cell counts where all of it lies in the square before the turn: then its centre lies between
    centres of cells, too, so that the cell of a map is interpolated and never blended with 0.
    """
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    places = torch.arange(side, dtype=torch.float64) + 0.5 - side / 2
    x, y = places[None, :], places[:, None]
    reach = (side - abs(cos) - abs(sin)) / 2 + 1e-9  # of centres; rounding is no reason
    return ((cos * x - sin * y).abs() <= reach) & ((sin * x + cos * y).abs() <= reach)
