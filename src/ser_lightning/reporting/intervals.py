"""How sure a difference between two groups of runs is."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

CONFIDENCE = 0.95
"""Share of the intervals that hold the true difference."""


class Interval(NamedTuple):
    """A difference, and between which values it lies with the given confidence."""

    difference: float
    low: float
    high: float


def paired_difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Interval:
    """The interval of a difference in accuracy between two groups of runs, in points.

    Two things make the difference uncertain. Which images are in the test set: the variance of a
    bootstrap over images, paired, as the same images count for all runs. With N images and d the
    difference of each, its mean over N images drawn with replacement has the variance Var(d) / N.
    Which seeds were run: the variance of a side's accuracies over its S seeds, divided by S. The
    interval is the difference -+ t * sqrt(sum of these variances), t being Student's with Welch's
    degrees of freedom: resampling three seeds would give an interval that is too narrow. A single
    run says nothing about seeds; its side then has no such part, and the interval is about images
    alone.

    Args:
        first: (N,) of each run, whether it was right on each image, 0 or 1.
        second: the same of the runs to compare with, for the same images in the same order.

    Raises:
        ValueError: if there are no runs or images, or their numbers of images differ.
    """
    sizes = [len(hits) for hits in (*first, *second)]
    if not first or not second or len(set(sizes)) != 1 or not sizes[0]:
        raise ValueError(
            f"hits of {len(first)} and {len(second)} runs on {sizes} images cannot be paired; give "
            "at least one run for each side, all on the same images"
        )
    sides = [100.0 * np.stack(side) for side in (first, second)]
    images = float(np.var(sides[0].mean(0) - sides[1].mean(0))) / sizes[0]
    return _interval(sides[0].mean(1), sides[1].mean(1), images, CONFIDENCE)


def seed_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Interval | None:
    """The interval of a difference of means from the spread over seeds alone (Welch's t).

    None if a side has fewer than two runs.
    """
    if min(len(first), len(second)) < 2:
        return None
    return _interval(np.array(first), np.array(second), 0.0, confidence)


def _interval(first: np.ndarray, second: np.ndarray, known: float, confidence: float) -> Interval:
    """Difference of the means, with a variance that is known and the sides' spread over seeds.

    Source: degrees of freedom of Welch and Satterthwaite.
    """
    sides = [side for side in (first, second) if len(side) > 1]
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    total = known + sum(parts)
    uncertain = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    freedom = total**2 / uncertain if uncertain else math.inf
    share = (1 + confidence) / 2  # `special` has these quantiles without all that `stats` imports
    quantile = special.ndtri(share) if math.isinf(freedom) else special.stdtrit(freedom, share)
    half = float(quantile) * math.sqrt(total)
    difference = float(first.mean() - second.mean())
    return Interval(difference, difference - half, difference + half)
