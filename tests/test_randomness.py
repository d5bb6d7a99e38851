"""Tests of the counter-based random numbers."""

import numpy as np
import pytest

from ser_lightning.randomness import MAX_SEED, Stream, generator, uniforms


def test_generator_is_a_pure_function_of_its_arguments():
    first = generator(7, Stream.ORDER, 3).permutation(100)
    again = generator(7, Stream.ORDER, 3).permutation(100)
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    "other",
    [
        (8, Stream.ORDER, 3, 4, 5),
        (7, Stream.AUGMENT, 3, 4, 5),
        (7, Stream.ORDER, 2, 4, 5),
        (7, Stream.ORDER, 3, 5, 5),
        (7, Stream.ORDER, 3, 4, 6),
        (7 + 2**63, Stream.ORDER, 3, 4, 5),
    ],
)
def test_generator_differs_when_any_argument_differs(other):
    reference = generator(7, Stream.ORDER, 3, 4, 5).random(4)
    assert not np.isin(generator(*other).random(4), reference).any()


def test_generator_pads_missing_counters_with_zero():
    assert generator(1, Stream.STEP, 2).random() == generator(1, Stream.STEP, 2, 0, 0).random()


def test_generator_draws_at_neighbouring_counters_do_not_overlap():
    draws = np.concatenate([generator(0, Stream.STEP, 0, step).random(1000) for step in range(20)])
    assert len(np.unique(draws)) == len(draws)


@pytest.mark.parametrize("count", [1, 3, 4, 7, 43])
def test_uniforms_equal_one_generator_per_row(count):
    indices = [5, 0, 2**40, 5, MAX_SEED]
    block = uniforms(11, Stream.AUGMENT, 2, indices, 1, count)
    rows = [generator(11, Stream.AUGMENT, 2, index, 1).random(count) for index in indices]
    assert np.array_equal(block, np.stack(rows))


def test_uniforms_row_does_not_depend_on_its_neighbours():
    block = uniforms(0, Stream.GROUP, 0, np.arange(64), 0, 9)
    alone = uniforms(0, Stream.GROUP, 0, [17], 0, 9)
    assert np.array_equal(block[17:18], alone)


def test_uniforms_prefix_does_not_depend_on_the_count():
    long = uniforms(0, Stream.GROUP, 0, [3, 4], 0, 30)
    short = uniforms(0, Stream.GROUP, 0, [3, 4], 0, 5)
    assert np.array_equal(long[:, :5], short)


def test_uniforms_are_uniform_and_uncorrelated_over_rows_and_columns():
    block = uniforms(1, Stream.AUGMENT, 0, np.arange(4000), 0, 8)
    assert block.min() >= 0
    assert block.max() < 1
    # standard errors: 0.0016 of the mean over 32000 numbers, 0.016 of a correlation over 4000
    assert abs(block.mean() - 0.5) < 0.008
    columns = np.corrcoef(block.T) - np.eye(8)
    assert np.abs(columns).max() < 0.08
    assert abs(np.corrcoef(block[:-1, 0], block[1:, 0])[0, 1]) < 0.08


def test_uniforms_without_images_are_empty():
    assert uniforms(1, Stream.AUGMENT, 0, [], 0, 8).shape == (0, 8)


def test_generator_with_negative_seed_says_what_is_allowed():
    with pytest.raises(ValueError, match="seed -1 is outside"):
        generator(-1, Stream.ORDER)


def test_generator_with_four_counters_is_refused():
    with pytest.raises(ValueError, match="at most 3"):
        generator(1, Stream.ORDER, 1, 2, 3, 4)
