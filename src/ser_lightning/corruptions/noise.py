"""Noise: Gaussian, shot, impulse, speckle. Images are (3, H, W) uint8.

Parameters by severity are in `tables.py`.
"""

from functools import lru_cache

import numpy as np
import scipy.special
import torch
from numpy.random import Generator
from torch import Tensor

from ser_lightning.corruptions.filters import to_uint8

_NUM_BINS = 1024
_TAIL = 12  # standard deviations that the tables of a Poisson distribution reach


def normal(shape: tuple[int, ...], rng: Generator) -> Tensor:
    """Standard normal numbers of a shape."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def gaussian_noise(image: Tensor, rng: Generator, scale: float) -> Tensor:
    """Adds normal noise of a standard deviation of scale times the full range."""
    return to_uint8(normal(image.shape, rng).mul_(255 * scale).add_(image))


def speckle_noise(image: Tensor, rng: Generator, scale: float) -> Tensor:
    """Adds normal noise in proportion to the level."""
    return to_uint8(normal(image.shape, rng).mul_(scale).add_(1).mul_(image))


def impulse_noise(image: Tensor, rng: Generator, amount: float) -> Tensor:
    """Sets a share of the values, each channel for itself, to 0 or 255 with equal probability."""
    u = torch.from_numpy(rng.random(tuple(image.shape), dtype=np.float32))
    return image.masked_fill(u < amount, 0).masked_fill_(u < amount / 2, 255)


def shot_noise(image: Tensor, rng: Generator, photons: float) -> Tensor:
    """Replaces every level x by Poisson(x * photons) / photons, in parts of the full range.

    A Poisson number is the smallest k with u < P(<= k). There are only 256 means, so the answer
    is looked up by the mean and the first ten bits of u; where these leave several k, they are
    tried in turn.
    """
    guess, ambiguous, cumulative, levels = _poisson_tables(photons)
    u = rng.random(image.numel(), dtype=np.float32)
    value = image.numpy().ravel()
    cell = (u * np.float32(_NUM_BINS)).astype(np.int32)
    cell += value.astype(np.int32) * _NUM_BINS
    counts = guess.take(cell)
    open_cases = np.flatnonzero(ambiguous.take(cell))
    while open_cases.size:
        larger = u[open_cases] >= cumulative[value[open_cases], counts[open_cases]]
        open_cases = open_cases[larger]
        counts[open_cases] += 1
    return torch.from_numpy(levels.take(counts)).view(image.shape)


@lru_cache(maxsize=8)
def _poisson_tables(photons: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the 256 means: smallest count per bin of u, is it not the only one, P(<= k), levels."""
    mean = np.arange(256)[:, None] / 255 * photons
    num_counts = int(photons + _TAIL * np.sqrt(photons) + _TAIL)
    k = np.arange(num_counts)
    cumulative = scipy.special.pdtr(k, mean)
    cumulative[:, -1] = 2  # above every u, so that a search ends
    edges = np.arange(_NUM_BINS + 1) / _NUM_BINS
    guess = np.stack([np.searchsorted(row, edges, side="right") for row in cumulative])
    ambiguous = guess[:, 1:] != guess[:, :-1]
    levels = (np.minimum(k / photons, 1) * 255).astype(np.uint8)
    return guess[:, :-1].astype(np.int16).ravel(), ambiguous.ravel(), cumulative, levels
