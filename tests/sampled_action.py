"""Transformations by bilinear sampling, a step at a time: what derivatives are tested with."""

import torch
import torch.nn.functional as F

from ser_lightning.groups.generators import GENERATORS


def sampled(name, t, maps):
    """g_t of square maps (B, C, S, S), which go on as straight lines beyond the border."""
    velocity = torch.zeros(3, 3, dtype=maps.dtype)
    velocity[:2] = torch.tensor(GENERATORS[name], dtype=maps.dtype)
    backwards = torch.linalg.matrix_exp(-t * velocity)[:2]
    for _ in range(2):  # x, then y
        maps = torch.cat(
            [2 * maps[..., :1] - maps[..., 1:2], maps, 2 * maps[..., -1:] - maps[..., -2:-1]], -1
        ).mT
    side = maps.shape[-1] - 2
    place = (torch.arange(side, dtype=maps.dtype) + 0.5 - side / 2) / (side / 2)
    y, x = torch.meshgrid(place, place, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1) @ backwards.T
    grid = (points * side / (side + 2)).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def central_difference(function, step):
    """d/dt at 0 of a function of t that returns a tensor."""
    return (function(step) - function(-step)) / (2 * step)
