"""Spatter: drops of water or mud on the lens, with the edge and distance maps they need."""

import math

import numpy as np
import torch
from numpy.random import Generator
from scipy import ndimage
from torch import Tensor

from ser_lightning.corruptions.filters import smooth, to_uint8
from ser_lightning.corruptions.noise import normal

_WATER = (175.0, 238.0, 238.0)
_MUD = (63.0, 42.0, 20.0)
_CANNY_LOW, _CANNY_HIGH = 50, 150
_MAX_DISTANCE = 20
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
_TAN_22 = math.tan(math.radians(22.5))


def spatter(
    image: Tensor,
    rng: Generator,
    mean: float,
    scale: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: float,
) -> Tensor:
    """Adds drops of water, or covers with mud if mud is not 0.

    Mean and scale are those of the liquid's normal noise, sigma that of the Gaussian that smooths
    it; below threshold there is none. Strength is how much water is added, or how softly mud ends.
    """
    liquid = draw_liquid(image.shape[-2:], rng, mean, scale, sigma, threshold)
    if not mud:
        return add_water(image, liquid, strength)
    share = smooth((liquid > threshold).float(), strength)
    share.masked_fill_(share < 0.8, 0)
    return to_uint8(image * (1 - share) + torch.tensor(_MUD)[:, None, None] * share)


def draw_liquid(
    shape: tuple[int, ...],
    rng: Generator,
    mean: float,
    scale: float,
    sigma: float,
    threshold: float,
) -> Tensor:
    """Smoothed normal noise without what is below threshold: (1, H, W) float."""
    liquid = smooth(normal((1, *shape), rng).mul_(scale).add_(mean), sigma)
    return liquid.masked_fill_(liquid < threshold, 0)


def add_water(image: Tensor, liquid: Tensor, strength: float) -> Tensor:
    """Adds pale turquoise where the liquid lies, embossed by the distance to its edges.

    Differs: distances are Euclidean; the official script's approximate them by steps on a 5 x 5
    neighbourhood, within 2 percent.

    Args:
        image: (3, H, W) uint8.
        liquid: (1, H, W) float in parts of the full range.
        strength: of the brightest place.
    """
    # the cast of the official script wraps around above the full range
    amount = (liquid[0] * 255).to(torch.int64).remainder(256)
    distance = _distance(_canny(amount.numpy().astype(np.int32)))
    relief = _equalized(_mean_3x3(distance).astype(np.uint8)).astype(np.float32)
    embossed = ndimage.correlate(relief, _EMBOSS, mode="mirror").clip(0, 255)
    water = torch.from_numpy(_mean_3x3(embossed).round()).mul_(amount)
    largest = float(water.max())
    if largest <= 0:
        return image.clone()
    return to_uint8(image + torch.tensor(_WATER)[:, None, None] * water.mul_(strength / largest))


def _mean_3x3(field: np.ndarray) -> np.ndarray:
    """The mean of (H, W) float32 and its neighbours, mirrored at the border: c b | a b c."""
    total: np.ndarray = ndimage.correlate(field, np.ones((3, 3)), mode="mirror")
    return total / 9


def _equalized(levels: np.ndarray) -> np.ndarray:
    """Spreads the histogram of uint8 levels: the lowest present level becomes 0, the highest 255.

    A constant field stays as it is.
    """
    histogram = np.bincount(levels.ravel(), minlength=256)
    lowest = int(np.flatnonzero(histogram)[0])
    rest = levels.size - histogram[lowest]
    if rest == 0:
        return levels
    below = np.cumsum(histogram) - histogram[lowest]
    table = np.rint(np.clip(below, 0, None) * (255 / rest)).astype(np.uint8)
    return table[levels]


def _canny(levels: np.ndarray) -> np.ndarray:
    """Edges of whole levels (H, W): bool of the same shape.

    Sobel gradients, their L1 norm thinned to its ridges, then hysteresis: what exceeds the lower
    threshold is an edge if a chain of such pixels leads to one above the higher threshold.
    """
    gy, gx = (ndimage.sobel(levels, axis, mode="nearest") for axis in (0, 1))
    norm = np.abs(gx) + np.abs(gy)
    candidate = _ridges(norm, gx, gy) & (norm > _CANNY_LOW)
    edges: np.ndarray = ndimage.binary_propagation(
        candidate & (norm > _CANNY_HIGH), structure=np.ones((3, 3)), mask=candidate
    )
    return edges


def _ridges(norm: np.ndarray, gx: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Where the norm is not below its two neighbours along the gradient's direction."""
    height, width = norm.shape
    padded = np.pad(norm, 1)

    def at(dy: int, dx: int) -> np.ndarray:
        return padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    x, y = np.abs(gx), np.abs(gy)
    level = y < x * _TAN_22
    steep = ~level & (y > x * (_TAN_22 + 2))
    falling = (gx ^ gy) >= 0  # the signs agree: the gradient points down right or up left
    along_row = (norm > at(0, -1)) & (norm >= at(0, 1))
    along_column = (norm > at(-1, 0)) & (norm >= at(1, 0))
    down = (norm > at(-1, -1)) & (norm > at(1, 1))
    up = (norm > at(-1, 1)) & (norm > at(1, -1))
    return np.select([level, steep, falling], [along_row, along_column, down], up)


def _distance(edges: np.ndarray) -> np.ndarray:
    """Distance (H, W) float32 of every pixel to the nearest edge, at most _MAX_DISTANCE."""
    if not edges.any():
        return np.full(edges.shape, _MAX_DISTANCE, np.float32)
    distance: np.ndarray = ndimage.distance_transform_edt(~edges)
    return distance.clip(max=_MAX_DISTANCE).astype(np.float32)
