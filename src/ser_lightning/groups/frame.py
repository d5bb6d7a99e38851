"""Partial actions: where a view lies in its source image, and maps carried between views.

A group element needs views that show the whole image. Between crops, or views turned by any
angle, an action is defined where both of them see the image; corners that a turn fills by
reflection do not. This file is self-contained: SER's
exact action on whole views is in `action.py`.
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
"""Shares of a side: places as near to a view's border lie in it."""


class Frame(NamedTuple):
    """Where the views of some images lie in their sources: u = centre + axes (v - 1/2).

    v and u are (y, x) in [0, 1]^2 of the view and of the source image, corner to corner.

    Attributes:
        centre: (B, 2) float64, the middle of the view.
        axes: (B, 2, 2) float64, where its sides point, in shares of the source's sides.
        turn: (B, 2, 2) float64, the part of the axes that turned a view made before: what lies
            outside of that one, |turn (v - 1/2)| > 1/2, is its reflection.
        grid: (h, w) tokens of the view.
    """

    centre: Tensor
    axes: Tensor
    turn: Tensor
    grid: tuple[int, int]

    def select(self, num: int, rows: Tensor) -> list[Frame]:
        """The frames (R,) of the same rows (R,) of every `num` images, which are a view's."""
        parts = (
            part.unflatten(0, (-1, num))[:, rows] for part in (self.centre, self.axes, self.turn)
        )
        views = zip(*parts, strict=True)
        return [Frame(centre, axes, turn, self.grid) for centre, axes, turn in views]

    @classmethod
    def cat(cls, frames: Sequence[Frame]) -> Frame:
        """The frames of several views of one grid, one view after the other."""
        centres, axes, turns, grids = zip(*frames, strict=True)
        return cls(torch.cat(centres), torch.cat(axes), torch.cat(turns), grids[0])

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
        centre = box[:, :2] / size + share / 2
        signs = torch.stack([torch.ones_like(centre[:, 0]), 1 - 2 * record.flip.double()], dim=1)
        turn = rotations(record.turn, grid)
        return cls(centre, (share * signs)[:, :, None] * turn, turn, grid)

    @classmethod
    def of_element(cls, element: GroupElement) -> Frame:
        """The frames of whole views that group elements made."""
        half = 1 - 2 * element.half_turn.double()
        signs = torch.stack([half, half * (1 - 2 * element.flip.double())], dim=1)
        angle = torch.zeros_like(half) if element.angle is None else element.angle
        turned = turn = rotations(angle, element.shape)
        if element.quarter_turn:  # (y, x) of the turned view shows (x, 1 - y)
            turned = torch.stack([turned[:, 1], -turned[:, 0]], dim=1)
        return cls(torch.full_like(signs, 0.5), signs[:, :, None] * turned, turn, element.shape)


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
    places, seen, scale = _places(source, target)
    last = [side - 1 for side in source.grid]
    inside = [(place >= 0) & (place <= end) for place, end in zip(places, last, strict=True)]
    similar = (scale <= max_scale) & (scale >= 1 / max_scale)
    valid = inside[0] & inside[1] & seen & similar[:, None]
    rows, columns = (
        _hat(place, side).to(dtype) for place, side in zip(places, source.grid, strict=True)
    )  # (B, target tokens, h) and (.., w)
    weights = (rows[..., :, None] * columns[..., None, :]).flatten(2)
    return weights, valid.unflatten(1, target.grid)


def carried(maps: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Token maps (B, C, h, w) by the weights of `transport_weights`: (B, C, h', w')."""
    with torch.autocast(maps.device.type, enabled=False):
        moved = torch.bmm(weights, maps.flatten(2).mT).mT
    return moved.unflatten(2, grid)


def between(source: Frame, target: Frame) -> tuple[Tensor, Tensor]:
    """The map of places in the target view to those in the source view: axes (v - 1/2) + middle.

    Returns:
        (B, 2, 2) axes and (B, 2) middle, of (y, x) in [0, 1]^2 where the views show the same.
    """
    inverse = torch.linalg.inv_ex(source.axes).inverse
    middle = (inverse @ (target.centre - source.centre)[..., None]).squeeze(-1) + 0.5
    return inverse @ target.axes, middle


def _places(source: Frame, target: Frame) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Where the target's tokens lie among the source's, and how large they are there.

    Returns:
        (B, target tokens) rows and columns in tokens of the source, 0 for the first token's
        centre; (B, target tokens) bool, neither view reflects what it shows there; (B,) sides in
        tokens of the source, geometric mean of both.
    """
    axes, middle = between(source, target)
    halves = [0.5 - 0.5 / side for side in target.grid]  # from the middle to the last token's
    down, right = (
        torch.linspace(-half, half, side, dtype=axes.dtype, device=axes.device)
        for half, side in zip(halves, target.grid, strict=True)
    )
    tokens = torch.cartesian_prod(down, right).reshape(-1, 2)
    shares = tokens @ axes.mT + middle[:, None]
    height, width = source.grid
    places = torch.stack([shares[..., 0] * height, shares[..., 1] * width]) - 0.5
    seen = _is_seen(target, tokens) & _is_seen(source, shares - 0.5)
    whole = places.round()
    rows, columns = torch.where((places - whole).abs() < _SNAP, whole, places)
    area = torch.linalg.det(axes).abs() * math.prod(source.grid) / len(tokens)
    return (rows, columns), seen, area.sqrt()


def _is_seen(view: Frame, offsets: Tensor) -> Tensor:
    """Whether places (B or 1, n, 2), from the view's middle, lay in it before its turn: (B, n)."""
    return ((offsets @ view.turn.mT).abs() <= 0.5 + _ROUNDING).all(dim=-1)


def _hat(places: Tensor, side: int) -> Tensor:
    """Bilinear weights (..., side) of the tokens on a line; less than 1 in all beyond its ends."""
    line = torch.arange(side, dtype=places.dtype, device=places.device)
    return (1 - (places[..., None] - line).abs()).clamp_min(0)
