"""Blurs: defocus, glass, motion, zoom, Gaussian. Images are (3, H, W) uint8."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from scipy import ndimage
from torch import Tensor

from ser_lightning.corruptions.filters import smear, smooth, to_uint8, zoom


def gaussian_blur(image: Tensor, rng: Generator, sigma: float) -> Tensor:
    """Gaussian blur."""
    return to_uint8(smooth(image.float(), sigma))


def defocus_blur(image: Tensor, rng: Generator, radius: float, alias: float) -> Tensor:
    """Averages over a disk whose edge is softened by a Gaussian of standard deviation alias.

    The border is mirrored without its edge pixel: d c b | a b c d.
    """
    height, width = image.shape[-2:]
    kernel = torch.from_numpy(_disk(radius, alias))
    reach = len(kernel) // 2
    padded = F.pad(image[None].float(), (reach,) * 4, mode="reflect")[0]
    size = (height + 2 * reach, width + 2 * reach)
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, s=size)  # the disk is symmetric
    return to_uint8(torch.fft.irfft2(spectrum, s=size)[:, 2 * reach :, 2 * reach :].contiguous())


@lru_cache(maxsize=32)
def _disk(radius: float, alias: float) -> np.ndarray:
    """The softened disk, (2 * reach + 1, 2 * reach + 1) float32, empty margins cut off.

    The official array is 17 x 17 up to a radius of 8, and the Gaussian is mirrored at its border,
    which a radius of 8 touches: that kernel sums to more than 1.
    """
    reach = 8 if radius <= 8 else int(radius)
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    gaussian = np.exp(-0.5 * (taps / alias) ** 2)
    gaussian /= gaussian.sum()
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, gaussian, axis, mode="mirror")
    while reach > 1 and disk[0].max() < 1e-9:
        reach, disk = reach - 1, disk[1:-1, 1:-1]
    return disk.astype(np.float32)


def glass_blur(
    image: Tensor, rng: Generator, sigma: float, reach: float, num_rounds: float
) -> Tensor:
    """Blurs, copies pixels from random neighbours, and blurs again.

    The official script means to swap neighbours, but its assignment to two views of one array
    only copies the neighbour, and so does this.
    """
    blurred = to_uint8(smooth(image.float(), sigma))
    height, width = image.shape[-2:]
    source = np.arange(height * width)
    for _ in range(int(num_rounds)):
        source = source[_copies(height, width, int(reach), rng)]
    moved = blurred.flatten(1)[:, torch.from_numpy(source)].view(image.shape)
    return to_uint8(smooth(moved.float(), sigma))


def _copies(height: int, width: int, reach: int, rng: Generator) -> np.ndarray:
    """Where every pixel's value comes from after one round of copies, as flat positions.

    Equal to visiting the pixels from the last to the first (but for a border), each one taking
    the present value of a neighbour at most reach above or left, reach - 1 below or right:

        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                x[h, w] = x[h + dy, w + dx]

    A neighbour that was visited before hands on what it took itself. So the neighbours form
    chains, and all chains are followed to their ends at once by doubling the step.
    """
    h, w = np.ogrid[height - reach : reach : -1, width - reach : reach : -1]
    place = h * width + w
    dx, dy = np.moveaxis(rng.integers(-reach, reach, size=(*place.shape, 2), dtype=np.int8), 2, 0)
    neighbour = (h + dy) * width + (w + dx)
    source = np.arange(height * width)
    source[place] = neighbour
    visited = np.zeros(height * width, dtype=bool)
    visited[place] = True
    handed_on = (neighbour > place) & visited[neighbour]
    link = np.arange(height * width)
    link[place[handed_on]] = neighbour[handed_on]
    while True:
        further = link[link]
        if np.array_equal(further, link):
            return source[link]
        link = further


def motion_blur(image: Tensor, rng: Generator, radius: float, sigma: float) -> Tensor:
    """Smears in one direction, drawn within 45 degrees of the horizontal."""
    return to_uint8(smear(image.float(), radius, sigma, rng.uniform(-45, 45)))


def zoom_blur(image: Tensor, rng: Generator, stop: float, step: float) -> Tensor:
    """Averages enlargements by 1, 1 + step, ... below stop, the image itself counting twice."""
    levels = image.float()
    factors = np.arange(1, stop, step)  # rounding decides about the last one, as officially
    total = levels + levels
    for factor in factors[1:]:
        total += zoom(levels, float(factor))
    return to_uint8(total.div_(len(factors) + 1))
