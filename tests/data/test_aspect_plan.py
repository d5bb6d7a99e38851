"""Batches of one orientation: an epoch divided, the same on any number of ranks."""

import numpy as np
import pytest

from ser_lightning.data.plan import AspectPlan, BatchKey, aspect_order

IS_WIDE = np.arange(53) % 3 > 0


@pytest.mark.parametrize("batch_size", [1, 4, 7, 26])
def test_batches_have_one_orientation_but_for_one(batch_size):
    batches = aspect_order(3, 1, IS_WIDE, batch_size)
    assert batches.shape == (53 // batch_size, batch_size)
    assert len(np.unique(batches)) == batches.size
    mixed = [len(set(IS_WIDE[batch])) > 1 for batch in batches]
    assert sum(mixed) <= 1


def test_order_is_a_function_of_seed_and_epoch():
    first = aspect_order(3, 1, IS_WIDE, 4)
    assert np.array_equal(first, aspect_order(3, 1, IS_WIDE, 4))
    assert not np.array_equal(first, aspect_order(3, 2, IS_WIDE, 4))
    assert not np.array_equal(first, aspect_order(4, 1, IS_WIDE, 4))
    orientations = IS_WIDE[first[:, 0]]
    assert 0 < np.diff(orientations.astype(int)).astype(bool).sum() > 1  # not one after the other


def test_ranks_share_the_batches_of_one_process():
    whole = AspectPlan(53, 8, 0, seed=5, is_wide=IS_WIDE)
    halves = [AspectPlan(53, 8, 0, 5, rank, 2, is_wide=IS_WIDE) for rank in range(2)]
    for step in range(whole.steps_per_epoch):
        key = BatchKey(2, step)
        parts = [half.indices(key)[0] for half in halves]
        assert np.array_equal(np.concatenate(parts), whole.indices(key)[0])
        assert all(len(part) == 4 for part in parts)
        assert len(whole.indices(key)[1]) == 0
