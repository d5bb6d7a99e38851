"""Partial actions: where a view lies in its source image, and maps carried between views.

A group element needs views that show the whole image. Between crops, or views turned by any
angle, an action is defined where both of them see the image; corners that a turn fills by
reflection do not. This file is self-contained: SER's exact action on whole views is in `action.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ser_lightning.groups.element import GroupElement

MAX_SCALE = 2.0
"""Largest ratio of token sizes, on a side, at which tokens are compared by default."""

_SNAP = 1e-4
"""Tokens: places as near to a token as this lie on it, so that exact actions stay exact."""

_ROUNDING = 1e-9
"""Shares of a side of the source image: places as near to a view's border lie in it."""


class Frame(NamedTuple):
    """Where the views of some images lie in their sources: u = centre + axes (v - 1/2).

    v and u are (y, x) in [0, 1]^2 of the view and of the source image, corner to corner.

    Attributes:
        centre: (B, 2) float64, the middle of the view.
        axes: (B, 2, 2) float64, where its sides point, in shares of the source's sides.
        reach: (B, 2) float64, how far from the centre the view shows the image, in shares of its
            sides: farther places, |u - centre| > reach, are reflections in the corners of a turn.
        grid: (h, w) tokens of the view.
    """

    centre: Tensor
    axes: Tensor
    reach: Tensor
    grid: tuple[int, int]

    def select(self, num: int, rows: Tensor) -> list[Frame]:
        """The frames (R,) of the same rows (R,) of every `num` images, which are a view's."""
        parts = (
            part.unflatten(0, (-1, num))[:, rows] for part in (self.centre, self.axes, self.reach)
        )
        views = zip(*parts, strict=True)
        return [Frame(centre, axes, reach, self.grid) for centre, axes, reach in views]

    @classmethod
    def cat(cls, frames: Sequence[Frame]) -> Frame:
        """The frames of several views of one grid, one view after the other."""
        centres, axes, reaches, grids = zip(*frames, strict=True)
        return cls(torch.cat(centres), torch.cat(axes), torch.cat(reaches), grids[0])

    @classmethod
    def of_crop(cls, record: Any, grid: tuple[int, int]) -> Frame:
        """The frames of crops from the `ViewRecord` of their views: box, mirror and turn.

        Args:
            record: what was drawn; the turn is about the crop's middle, counted in pixels of the
                square view.
            grid: (h, w) tokens of the view.
        """
        box, size = record.box.double(), record.source_size.double()
        share = box[:, 2:] / size
        reach = share / 2
        centre = box[:, :2] / size + reach
        signs = torch.stack([torch.ones_like(centre[:, 0]), 1 - 2 * record.flip.double()], dim=1)
        axes = (share * signs)[:, :, None] * rotations(record.turn, grid)
        return cls(centre, axes, reach, grid)

    @classmethod
    def of_element(cls, element: GroupElement) -> Frame:
        """The frames of whole views that group elements made."""
        half = 1 - 2 * element.half_turn.double()
        signs = torch.stack([half, half * (1 - 2 * element.flip.double())], dim=1)
        angle = torch.zeros_like(half) if element.angle is None else element.angle
        turned = rotations(angle, element.shape)
        if element.quarter_turn:  # (y, x) of the turned view shows (x, 1 - y)
            turned = torch.stack([turned[:, 1], -turned[:, 0]], dim=1)
        middle = torch.full_like(signs, 0.5)
        return cls(middle, signs[:, :, None] * turned, middle, element.shape)


def rotations(degrees: Tensor, grid: tuple[int, int]) -> Tensor:
    """Where a view turned counter-clockwise about its middle finds what it shows: (B, 2, 2).

    Angles (B,) count in pixels, so for a view of unequal sides, given in tokens, the matrix of
    shares of these is no rotation. Multiples of 90 degrees are exact.
    """
    radians = degrees.double().deg2rad()
    both = torch.stack([radians.cos(), radians.sin()])
    cos, sin = torch.where(degrees % 90 == 0, both.round(), both)
    height, width = grid
    entries = [cos, sin * (width / height), sin * (-height / width), cos]
    return torch.stack(entries, dim=-1).unflatten(-1, (2, 2))


def transport(
    maps: Tensor, source: Frame, target: Frame, max_scale: float = MAX_SCALE
) -> tuple[Tensor, Tensor]:
    """Carries the token maps of one view of some images to the frame of another view of them.

    Args:
        maps: (B, C, h, w) of the source's grid.
        source: the frames that the maps are in.
        target: the frames that they are carried to.
        max_scale: largest ratio of the two views' token sizes, on a side; at least 1.

    Returns:
        (B, C, h', w') maps of the target's grid, and (B, h', w') bool.

    Raises:
        ValueError: if the maps do not have the source's grid, or the frames belong to other images.
    """
    if tuple(maps.shape[-2:]) != source.grid or len(maps) != len(source.centre):
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} for {len(source.centre)} frames with grid "
            f"{source.grid}; give one map and one frame per image"
        )
    weights, valid = transport_weights(source, target, maps.dtype, max_scale)
    return carried(maps, weights, target.grid), valid


def transport_weights(
    source: Frame, target: Frame, dtype: torch.dtype, max_scale: float = MAX_SCALE
) -> tuple[Tensor, Tensor]:
    """What carries token maps of the source to the target: a matrix for each image.

    For every image and every token p of the target, at v = ((row + 1/2) / h, (column + 1/2) / w):

        q = source^-1(target(v)), in tokens of the source
        weights[p] = those of the bilinear sample at q
        valid[p] = q lies within the hull of the source's token centres, neither view reflects what
                   it shows there, and a token of one view is at most `max_scale` tokens of the
                   other on a side

    Equal frames up to flips and quarter turns give an exact permutation, and by a matrix the
    gradient adds up in a fixed order.

    Returns:
        (B, target tokens, source tokens) weights in the given dtype, and (B, h', w') bool.

    Raises:
        ValueError: if the frames belong to other images.
    """
    if len(source.centre) != len(target.centre):
        raise ValueError(
            f"{len(source.centre)} frames, carried to {len(target.centre)}; give a frame of either "
            "view per image"
        )
    height, width = source.grid
    from_target = _tokens(target) @ target.axes.mT  # in shares of the source image's sides
    from_source = from_target + (target.centre - source.centre)[:, None]
    shares = from_source @ torch.linalg.inv_ex(source.axes).inverse.mT + 0.5
    places = torch.stack([shares[..., 0] * height, shares[..., 1] * width]) - 0.5
    whole = places.round()
    places = torch.where((places - whole).abs() < _SNAP, whole, places)
    rows, columns = places
    inside = (rows == rows.clamp(0, height - 1)) & (columns == columns.clamp(0, width - 1))
    seen = (_is_seen(from_target, target) & _is_seen(from_source, source)).all(dim=-1)
    valid = inside & seen & _is_similar(source, target, max_scale)[:, None]
    by_row, by_column = _hat(places, max(height, width))
    weights = by_row[..., :height, None] * by_column[..., None, :width]
    return weights.flatten(2).to(dtype), valid.unflatten(1, target.grid)


def carried(maps: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Token maps (B, C, h, w) by the weights of `transport_weights`: (B, C, h', w')."""
    with torch.autocast(maps.device.type, enabled=False):
        moved = torch.bmm(weights, maps.flatten(2).mT).mT
    return moved.unflatten(2, grid)


def _tokens(view: Frame) -> Tensor:
    """(tokens, 2) places of the view's tokens from its middle, in shares of its sides."""
    down, right = (
        torch.linspace(-half, half, side, dtype=view.axes.dtype, device=view.axes.device)
        for side, half in ((side, 0.5 - 0.5 / side) for side in view.grid)
    )
    return torch.cartesian_prod(down, right).reshape(-1, 2)


def _is_seen(offsets: Tensor, view: Frame) -> Tensor:
    """Whether places of the source, from the view's centre, are in its reach: (B, n, 2), each."""
    return offsets.abs() <= view.reach[:, None] + _ROUNDING


def _is_similar(source: Frame, target: Frame, max_scale: float) -> Tensor:
    """Whether a side of a token, geometric mean of both, is similar in the two views: (B,)."""
    of_views = (target.reach / source.reach).prod(dim=1)
    of_tokens = math.prod(target.grid) / math.prod(source.grid)
    return (of_views <= of_tokens * max_scale**2) & (of_views >= of_tokens / max_scale**2)


def _hat(places: Tensor, side: int) -> Tensor:
    """Bilinear weights (..., side) of the tokens on a line; less than 1 in all beyond its ends."""
    line = torch.arange(side, dtype=places.dtype, device=places.device)
    return (1 - (places[..., None] - line).abs()).clamp_min(0)
