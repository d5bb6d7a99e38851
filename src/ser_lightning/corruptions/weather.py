"""Weather: snow, fog, and the growth of random height maps. Images are (3, H, W) uint8."""

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from ser_lightning.corruptions.filters import luma, smear, to_uint8, zoom
from ser_lightning.corruptions.noise import normal


def snow(
    image: Tensor,
    rng: Generator,
    mean: float,
    scale: float,
    factor: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Tensor:
    """Whitens the image and adds smeared flakes twice, the second time turned by 180 degrees."""
    flakes = draw_flakes(image.shape[-2:], rng, mean, scale, factor, threshold)
    return add_flakes(whiten(image, share), smear(flakes, radius, sigma, rng.uniform(-135, -45)))


def draw_flakes(
    shape: tuple[int, ...],
    rng: Generator,
    mean: float,
    scale: float,
    factor: float,
    threshold: float,
) -> Tensor:
    """Normal noise, enlarged by factor, without what is below threshold: (1, H, W) whole levels."""
    layer = zoom(normal(shape, rng).mul_(scale).add_(mean)[None], factor)
    return layer.masked_fill(layer < threshold, 0).mul_(255).clamp_(0, 255).floor_()


def whiten(image: Tensor, share: float) -> Tensor:
    """Mixes a share of the image with its whitened gray: (3, H, W) float levels."""
    levels = image.float()
    pale = torch.maximum(levels, luma(levels).mul_(1.5).add_(127.5))
    return levels.mul_(share).add_(pale, alpha=1 - share)


def add_flakes(levels: Tensor, flakes: Tensor) -> Tensor:
    """Adds flakes (1, H, W), rounded, and the same turned by 180 degrees; (3, H, W) uint8."""
    flakes = flakes.round()
    return to_uint8(levels + flakes + flakes.flip(-2, -1))


def fog(image: Tensor, rng: Generator, thickness: float, decay: float) -> Tensor:
    """Adds a height map and scales back to the image's largest level."""
    height, width = image.shape[-2:]
    haze = torch.from_numpy(plasma(max(height, width), decay, rng)[:height, :width])
    largest = int(image.max())
    scale = largest / (largest + 255 * thickness) if largest else 0.0
    return to_uint8(haze.float().mul_(255 * thickness).add(image).mul_(scale))


def plasma(side: int, decay: float, rng: Generator) -> np.ndarray:
    """Grows a height map by the diamond-square algorithm on a torus.

    Midpoints get the mean of their four neighbours and a uniform number, whose range shrinks by
    decay**2 from one grid to the next finer one. (S, S) float64 from 0 to 1; S is the next power
    of two from side.
    """
    size = 1 << (side - 1).bit_length()
    field = np.zeros((1, 1))
    reach = 100.0**2
    while len(field) < size:
        coarse, num = field, len(field)
        field = np.empty((2 * num, 2 * num))

        def midpoints(neighbours: np.ndarray, reach: float = reach) -> np.ndarray:
            return neighbours / 4 + rng.uniform(-reach, reach, neighbours.shape)

        below = coarse + np.roll(coarse, -1, 0)
        right = coarse + np.roll(coarse, -1, 1)
        centre = midpoints(below + np.roll(below, -1, 1))
        field[::2, ::2] = coarse
        field[1::2, 1::2] = centre
        field[::2, 1::2] = midpoints(right + centre + np.roll(centre, 1, 0))
        field[1::2, ::2] = midpoints(below + centre + np.roll(centre, 1, 1))
        reach /= decay**2
    field -= field.min()
    return field / field.max()
