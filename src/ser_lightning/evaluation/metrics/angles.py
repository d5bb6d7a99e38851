"""The equivariance score over angles: the same as `equivariance.py`, for turns by any angle."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ser_lightning.evaluation.metrics.equivariance import (
    ROWS,
    Reference,
    TokenMapper,
    row_scores,
)
from ser_lightning.groups.turning import stays_inside, turn


def angle_name(degrees: float) -> str:
    """What metrics call a turn: "turn45" or "turn22.5"."""
    return f"turn{degrees:g}"


@torch.no_grad()
def angle_scores(
    backbone: TokenMapper,
    pixels: Tensor,
    layers: Sequence[int],
    position: Tensor,
    reference: Reference | None,
    angles: Sequence[float],
) -> dict[str, dict[str, dict[int, Tensor]]]:
    """Scores as `companion_scores`, for images and maps that are turned by some angles.

    Averaged over the tokens whose patch lies inside of the image before the turn. Of small grids
    none does for some angles, and nothing is defined.

    Arguments are `companion_scores`'s, of a backbone with a square grid, and the angles in degrees,
    counter-clockwise.

    Returns:
        For each of `ROWS`, `angle_name` and layer the (B,) float32 values; nan where not defined.
    """
    nothing = torch.full((len(pixels),), torch.nan, dtype=torch.float32, device=pixels.device)
    values: dict[str, dict[str, dict[int, Tensor]]] = {
        row: {angle_name(angle): dict.fromkeys(layers, nothing) for angle in angles} for row in ROWS
    }
    with torch.autocast(pixels.device.type, enabled=False):
        base = [prefix.tokens for prefix in backbone.walk([pixels], layers)[0]]
        for angle in angles:
            inside = stays_inside(angle, backbone.grid[0])
            turned = backbone.walk([turn(pixels, angle)], layers)[0]
            for i, layer in enumerate(layers):
                expected = turn(base[i], angle)
                others = None
                if reference is not None and reference.maps:
                    others = turn(reference.other_maps(i, position), angle)
                found = row_scores(
                    turned[i].tokens, base[i], expected, others, reference, i, inside
                )
                for row, value in found.items():
                    values[row][angle_name(angle)][layer] = value
    return values
