"""How sure a difference in accuracy is: a paired bootstrap over test images and seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A difference in points, and between which values it lies with the given confidence."""

    difference: float
    low: float
    high: float


def paired_difference(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Estimates the interval of a difference in accuracy between two groups of runs.

    The naive loop, with N test images and draws with replacement:

        for _ in range(num_resamples):
            images = draw N of N                          # the same for all runs: paired
            a, b = draw S1 of the first's runs, S2 of the second's
            differences += 100 * (mean(first[a][:, images]) - mean(second[b][:, images]))
        low, high = percentiles of the differences

    A single run is no sample of seeds: then the interval is about the images alone. With S seeds
    their part of the variance comes out (S - 1) / S of what it is, so with few it is too narrow.

    Args:
        first: of S1 runs, (N,) whether each was right on each image, 0 or 1.
        second: of S2 runs to compare with, the same, of the same images in the same order.
        num_resamples: draws.
        confidence: share of the draws inside the interval.
        seed: of the draws.

    Returns:
        Accuracy of the first minus that of the second.

    Raises:
        ValueError: if there are no runs or images, or their numbers of images differ.
    """
    sizes = [len(hits) for hits in (*first, *second)]
    if not first or not second or len(set(sizes)) != 1 or not sizes[0]:
        raise ValueError(
            f"hits of {len(first)} and {len(second)} runs on {sizes} images cannot be paired; give "
            "at least one run for each side, all on the same images"
        )
    # Images with the same hits in all runs are alike, and there are few kinds of them: how often
    # each kind is drawn says all.
    hits = np.stack([*first, *second]).astype(np.int8)
    kinds, counts = np.unique(hits, axis=1, return_counts=True)
    num_first, num_images = len(first), sizes[0]
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_images, counts / num_images, size=num_resamples)
    accuracies = drawn @ kinds.T * (100 / num_images)  # (draws, runs)
    sides = accuracies[:, :num_first], accuracies[:, num_first:]
    means = [_mean_of_resampled(side, rng) for side in sides]
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    low, high = np.percentile(means[0] - means[1], tails)
    difference = 100 * float(hits[:num_first].mean() - hits[num_first:].mean())
    return Interval(difference, float(low), float(high))


def _mean_of_resampled(accuracies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean over runs drawn with replacement, anew in each row: (draws, runs) to (draws,)."""
    num_runs = accuracies.shape[1]
    weights = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=len(accuracies))
    means: np.ndarray = (weights * accuracies).sum(axis=1) / num_runs
    return means
