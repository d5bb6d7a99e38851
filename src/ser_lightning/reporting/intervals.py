"""How sure a difference between two groups of runs is."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
_NUM_T = 400_000  # draws that a quantile of Student's t is read from; good to 1 %


class Interval(NamedTuple):
    """A difference, and between which values it lies with the given confidence."""

    difference: float
    low: float
    high: float


class _Part(NamedTuple):
    """A part of a difference's variance and how many degrees of freedom it was estimated with."""

    variance: float
    freedom: float


def paired_difference(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Estimates the interval of a difference in accuracy between two groups of runs.

    Two things make the difference uncertain. Which images are in the test set: a bootstrap over
    images, paired, as the same images count for all runs. With N images, the naive loop:

        for _ in range(num_resamples):
            images = draw N of N with replacement
            differences += 100 * (mean(first[:, images]) - mean(second[:, images]))

    Which seeds were run: the variance of a side's accuracies over its S seeds, divided by S. The
    interval is the difference -+ t * sqrt(var(differences) + both sides' variances over seeds), t
    being Student's with Welch's degrees of freedom: resampling three seeds would give an interval
    that is too narrow. A single run says nothing about seeds; its side then has no such part, and
    the interval is about images alone.

    Args:
        first: of S1 runs, (N,) whether each was right on each image, 0 or 1.
        second: of S2 runs to compare with, the same, of the same images in the same order.
        num_resamples: draws of images.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        Accuracy of the first minus that of the second, in points.

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
    num_images = sizes[0]
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_images, counts / num_images, size=num_resamples)
    accuracies = drawn @ kinds.T * (100 / num_images)  # (draws, runs)
    sides = accuracies[:, : len(first)], accuracies[:, len(first) :]
    images = _Part(float(np.var(sides[0].mean(1) - sides[1].mean(1))), math.inf)
    observed = 100 * hits.mean(1)
    return _interval(observed[: len(first)], observed[len(first) :], [images], confidence)


def seed_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Interval | None:
    """Estimates the interval of a difference from the spread over seeds alone (Welch's t).

    Args:
        first: a number of each run.
        second: the same of the runs to compare with.
        confidence: of the interval.

    Returns:
        Mean of the first minus that of the second; None if a side has fewer than two runs.
    """
    if min(len(first), len(second)) < 2:
        return None
    return _interval(np.array(first), np.array(second), [], confidence)


def _interval(
    first: np.ndarray, second: np.ndarray, parts: list[_Part], confidence: float
) -> Interval:
    """Means of both sides, whose spread over seeds adds to the variance."""
    seeds = [
        _Part(float(side.var(ddof=1)) / len(side), len(side) - 1)
        for side in (first, second)
        if len(side) > 1
    ]
    difference = float(first.mean() - second.mean())
    half = _half_width([*parts, *seeds], confidence)
    return Interval(difference, difference - half, difference + half)


def _half_width(parts: Sequence[_Part], confidence: float) -> float:
    """T * sqrt(sum of the variances), with the degrees of freedom of Welch and Satterthwaite."""
    total = sum(part.variance for part in parts)
    if total <= 0:
        return 0.0
    uncertain = sum(part.variance**2 / part.freedom for part in parts)
    rng, quantile = np.random.default_rng(0), (1 + confidence) / 2
    drawn = rng.standard_normal(_NUM_T)
    if uncertain > 0:
        drawn = rng.standard_t(total**2 / uncertain, _NUM_T)
    return float(np.quantile(np.abs(drawn), 2 * quantile - 1)) * math.sqrt(total)
