"""Continuous transformations of the plane at the identity: how a map begins to change.

Source: Gruver et al. 2023 (arXiv 2210.02984), the Lie derivative of learned equivariance.
"""

import torch
from torch import Tensor

GENERATORS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "translation_x": ((0, 0, 1), (0, 0, 0)),
    "translation_y": ((0, 0, 0), (0, 0, 1)),
    "rotation": ((0, 1, 0), (-1, 0, 0)),
    "scale": ((1, 0, 0), (0, 1, 0)),
    "shear": ((0, 1, 0), (0, 0, 0)),
    "hyperbolic": ((0, 1, 0), (1, 0, 0)),
}
"""By name the rows (dx, dy) of the velocity A (x, y, 1) at which each point starts to move.

x points right and y down, the origin is the centre, and half of the shorter side is 1. So a unit
is: half a side of translation, a radian of rotation (counter-clockwise), a factor e of scale, a
shear by 45 degrees along x, and a hyperbolic rotation that stretches a diagonal by e.
"""


def generate(name: str, maps: Tensor) -> Tensor:
    """How fast maps change when a transformation sets in: d/dt of g_t x at t = 0.

    With the velocity v of the transformation this is - (v . grad) x, for the maps

        (g_t x)(p) = x(g_t^-1 p)

    Differences are central, and one-sided at the border, where a map goes on as a straight line.
    Inside they are what bilinear sampling gives, whose two one-sided derivatives differ at the
    points of the grid: the mean of both.

    Differs: the paper's code differentiates through bilinear sampling, which at t = 0 is one of
    these two derivatives, whichever the rounding of the grid selects.

    Args:
        name: of `GENERATORS`.
        maps: (B, C, H, W) pixels or tokens, both sides at least 2.

    Returns:
        (B, C, H, W), in the type of the maps.

    Raises:
        ValueError: if there is no such transformation, or a side is 1.
    """
    if name not in GENERATORS:
        raise ValueError(f"no transformation {name!r}; use some of {', '.join(GENERATORS)}")
    height, width = maps.shape[-2:]
    if min(height, width) < 2:
        raise ValueError(
            f"a map of {height} x {width} has no neighbours to take differences of; use images of "
            "at least 2 patches a side"
        )
    half = min(height, width) / 2
    y, x = (
        (torch.arange(n, dtype=maps.dtype, device=maps.device) + 0.5 - n / 2) / half
        for n in (height, width)
    )
    dx, dy = (a * x + b * y[:, None] + c for a, b, c in GENERATORS[name])
    along_y, along_x = torch.gradient(maps, spacing=1 / half, dim=(-2, -1))
    return -(dx * along_x + dy * along_y)
