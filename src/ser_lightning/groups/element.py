"""Group elements: horizontal flip, resize to whole tokens, quarter turns.

Source: SER, section on transformation sampling; the group law is that of D4 (flips and quarter
turns of a square), extended by a size. An element acts as x -> R^k resize_grid F^f x: flip first,
then resize, then turn. Resizing commutes with flips and turns, so products and inverses keep
that normal form.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]
"""The kernels of a resize that commute with flips and turns."""


class GroupElement(NamedTuple):
    """A batch of elements x -> R^k resize_grid F^f x, one per image, k = quarter turns.

    Grid and parity are shared by the batch, so that the results stack into one tensor.

    Attributes:
        flip: (B,) bool, horizontal flip (last axis), applied first.
        half_turn: (B,) bool, adds 2 to the quarter turns.
        quarter_turn: 0 or 1, the parity of the quarter turns (counter-clockwise).
        grid: (h, w) in tokens after the resize, before the turn.
        interpolation: the resize's kernel, for pixels and token maps alike.
        angle: (B,) degrees of a further turn counter-clockwise about the middle, applied last; None
            for none. It has no exact action on a grid: `frame.py` carries maps between such views.
    """

    flip: Tensor
    half_turn: Tensor
    quarter_turn: int
    grid: tuple[int, int]
    interpolation: Interpolation = "bicubic"
    angle: Tensor | None = None

    @property
    def quarter_turns(self) -> Tensor:
        """Counter-clockwise quarter turns 0..3 as in `torch.rot90`, (B,) int64."""
        return self.half_turn.long() * 2 + self.quarter_turn

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) in tokens of the result: the grid, swapped by a quarter turn."""
        return _swapped(self.grid, self.quarter_turn)

    @classmethod
    def identity(cls, batch_size: int, grid: tuple[int, int]) -> GroupElement:
        """Elements that leave a map of this grid as it is."""
        off = torch.zeros(batch_size, dtype=torch.bool)
        return cls(off, off.clone(), 0, grid)

    @classmethod
    def from_turns(cls, flip: Tensor, quarter_turns: Tensor, grid: tuple[int, int]) -> GroupElement:
        """Elements of flips (B,) and any integers of quarter turns (B,), read on the host.

        Raises:
            ValueError: if even and odd quarter turns mix, whose results do not stack.
        """
        turns = quarter_turns.long() % 4
        parities = sorted(set((turns % 2).tolist()))
        if len(parities) > 1:
            raise ValueError(
                f"quarter turns {turns.tolist()} mix even and odd; a batch shares one parity so "
                "that its maps stack: split it by parity"
            )
        parity = int(parities[0]) if parities else 0
        return cls(flip.bool(), turns >= 2, parity, grid)

    def inverse(self, grid: tuple[int, int]) -> GroupElement:
        """What undoes the elements on a map whose grid was (h, w) before them.

        F^f resize R^-k = R^(-+k) resize F^f, minus unless flipped.

        Raises:
            ValueError: the elements turn by further angles.
        """
        _refuse_angles(self)
        turned = self.half_turn ^ ~self.flip if self.quarter_turn else self.half_turn
        return self._replace(half_turn=turned, grid=_swapped(grid, self.quarter_turn))

    def compose(self, first: GroupElement) -> GroupElement:
        """The product `self` after `first`, resizing once, as `self` asks for.

        F^f2 R^k1 = R^(+-k1) F^f2 (minus if f2), so k = k2 +- k1 and f = f1 xor f2.

        Raises:
            ValueError: one of them turns by further angles.
        """
        _refuse_angles(self, first)
        quarter_sum = self.quarter_turn + first.quarter_turn
        half_turn = self.half_turn ^ first.half_turn
        if first.quarter_turn:  # R^-1 = R^1 R^2, and 1 + 1 carries into the half turn
            half_turn = half_turn ^ self.flip
        if quarter_sum == 2:
            half_turn = ~half_turn
        grid = _swapped(self.grid, first.quarter_turn)
        return self._replace(
            flip=self.flip ^ first.flip,
            half_turn=half_turn,
            quarter_turn=quarter_sum % 2,
            grid=grid,
        )

    def to(self, device: torch.device | str) -> GroupElement:
        """The elements on a device; a copy to an accelerator is not waited for."""
        wait = torch.device(device).type == "cpu"  # a copy to the CPU is read at once
        flip, half_turn = (x.to(device, non_blocking=not wait) for x in (self.flip, self.half_turn))
        angle = None if self.angle is None else self.angle.to(device, non_blocking=not wait)
        return self._replace(flip=flip, half_turn=half_turn, angle=angle)


def relative(source: GroupElement, target: GroupElement) -> GroupElement:
    """The elements that carry a map from the view that `source` made to the frame of `target`.

    target o source^-1, that is z -> R^k2 resize_grid2 F^(f1 xor f2) R^-k1 z. With equal grids it
    is an exact permutation of tokens; otherwise it resizes once, straight to the target's size.
    """
    if source.flip.shape != target.flip.shape:
        raise ValueError(
            f"source has {source.flip.shape[0]} elements, target {target.flip.shape[0]}; they "
            "must belong to two views of the same images"
        )
    # The grid before the source's resize does not matter: the target's resize replaces it.
    return target.compose(source.inverse(source.grid))


def _refuse_angles(*elements: GroupElement) -> None:
    if any(element.angle is not None for element in elements):
        raise ValueError(
            "views turned by any angle have no exact action on a grid; carry their maps by "
            "`transport` between frames"
        )


def _swapped(grid: tuple[int, int], quarter_turn: int) -> tuple[int, int]:
    height, width = grid  # a list after torch's older ways to pin memory
    return (width, height) if quarter_turn else (height, width)
