"""The interval of a difference is that of the naive loop, and covers what it should."""

import numpy as np
import pytest
from scipy import stats

from ser_lightning.reporting.intervals import paired_difference, seed_difference


def hits(rng, num_runs, num_images, shift=0.0, spread=0.0):
    """Runs on images of common difficulty: 0 or 1, with a mean of about 0.6 + shift."""
    difficulty = rng.uniform(0.2, 1.0, num_images)
    means = shift + spread * rng.standard_normal(num_runs)
    return list((rng.random((num_runs, num_images)) < difficulty + means[:, None]).astype(np.uint8))


def looped(first, second, num_resamples, rng):
    """The loop of the docstring: variance of the difference over draws of images."""
    first, second, differences = np.stack(first), np.stack(second), []
    for _ in range(num_resamples):
        images = rng.integers(first.shape[1], size=first.shape[1])
        differences.append(100 * (first[:, images].mean() - second[:, images].mean()))
    return np.var(differences)


@pytest.mark.parametrize(
    ("num_first", "num_second", "freedom", "t"),
    [(1, 1, np.inf, 1.960), (1, 3, 2, 4.303), (3, 3, None, None)],
)
def test_interval_is_that_of_the_loop_and_of_the_spread_over_seeds(
    num_first, num_second, freedom, t
):
    rng = np.random.default_rng(1)
    first = hits(rng, num_first, 200, shift=0.05, spread=0.03)
    second = hits(rng, num_second, 200, spread=0.03)
    found = paired_difference(first, second)
    images = looped(first, second, 20_000, rng)
    sides = [100 * np.stack(side).mean(1) for side in (first, second)]
    seeds = [side.var(ddof=1) / len(side) for side in sides if len(side) > 1]
    assert found.difference == pytest.approx(sides[0].mean() - sides[1].mean())
    half = (found.high - found.low) / 2
    implied = half / np.sqrt(images + sum(seeds))
    if t is None or num_second == 3:  # between the normal's and the quantile of 2 degrees
        assert 1.9 < implied < 4.4
    else:  # the loop's variance is known to 1 % from 20,000 draws, its root to half of that
        assert implied == pytest.approx(t, rel=0.02)


def test_quantile_is_students():
    first, second = [1.0, 2.0, 3.0], [0.0, 0.5, 1.0, 1.5]
    found = seed_difference(first, second)
    variances = np.var(first, ddof=1) / 3, np.var(second, ddof=1) / 4
    assert found.difference == pytest.approx(1.25)
    # Welch: 3.23 degrees of freedom, between 3 (97.5 % quantile 3.182) and 4 (2.776)
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    assert freedom == pytest.approx(3.23, abs=0.01)
    half = (found.high - found.low) / 2
    assert half == pytest.approx(3.06 * np.sqrt(sum(variances)), rel=0.005)


@pytest.mark.parametrize("sides", [([1.0], [1.0, 2.0]), ([1.0, 2.0], [])])
def test_single_seeds_have_no_interval(sides):
    assert seed_difference(*sides) is None


def test_runs_that_share_their_mistakes_have_a_narrower_interval():
    first = hits(np.random.default_rng(0), 1, 1000)
    second = [first[0].copy()]
    second[0][:10] = 1 - second[0][:10]
    paired = paired_difference(first, second)
    shuffled = paired_difference(first, [np.random.default_rng(1).permutation(second[0])])
    assert paired.high - paired.low < 0.3 * (shuffled.high - shuffled.low)


@pytest.mark.parametrize("num_runs", [1, 3])
def test_identical_runs_differ_by_nothing(num_runs):
    runs = hits(np.random.default_rng(0), 1, 100) * num_runs
    assert paired_difference(runs, runs) == (0, 0, 0)


def test_interval_shrinks_with_the_number_of_images():
    widths = []
    for num_images in (100, 1600):
        rng = np.random.default_rng(2)
        found = paired_difference(hits(rng, 1, num_images), hits(rng, 1, num_images))
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)


def test_seeds_that_differ_widen_the_interval():
    def width(spread):
        rng = np.random.default_rng(3)
        first, second = (hits(rng, 3, 1000, spread=spread) for _ in range(2))
        found = paired_difference(first, second)
        return found.high - found.low

    assert width(0.1) > 2 * width(0.0)


def test_interval_covers_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        difficulty = rng.uniform(0.3, 0.8, 150)  # new images each time: the mean is 5 points
        first = [(rng.random(150) < difficulty + 0.05).astype(np.uint8)]
        second = [(rng.random(150) < difficulty).astype(np.uint8)]
        _, low, high = paired_difference(first, second)
        covered += low <= 5 <= high
    # 0.95 of 400 with 4 standard deviations (0.011 each)
    assert covered / 400 == pytest.approx(0.95, abs=0.045)


def test_interval_covers_with_three_seeds_that_differ():
    rng, covered = np.random.default_rng(7), 0
    difficulty = rng.uniform(0.3, 0.7, 400)
    for _ in range(300):
        sides = [
            [(rng.random(400) < difficulty + 0.05 * rng.standard_normal()).astype(np.uint8)
             for _ in range(3)]
            for _ in range(2)
        ]  # fmt: skip
        _, low, high = paired_difference(*sides)
        covered += low <= 0 <= high
    # at least 0.95 - 4 standard deviations (0.0126 each); the images' part makes it conservative
    assert covered / 300 >= 0.90


def test_interval_is_the_closed_form():
    rng = np.random.default_rng(5)
    first, second = hits(rng, 1, 1000), hits(rng, 1, 1000)
    difference = 100 * (first[0].astype(float) - second[0])
    half = 1.959964 * difference.std() / np.sqrt(1000)
    expected = (difference.mean(), difference.mean() - half, difference.mean() + half)
    assert paired_difference(first, second) == pytest.approx(expected, rel=1e-6)


def test_seeds_alone_are_welchs_test():
    first, second = [1.0, 2.5, 3.0, 0.5], [0.0, 0.5, 1.0]
    welch = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    found = seed_difference(first, second, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))


@pytest.mark.parametrize(
    ("first", "second"), [([], [[1]]), ([[1]], []), ([[1, 0]], [[1]]), ([[]], [[]])]
)
def test_runs_that_cannot_be_paired_are_refused(first, second):
    sides = [[np.array(run, dtype=np.uint8) for run in side] for side in (first, second)]
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(*sides)
