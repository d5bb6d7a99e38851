"""Loaders start at the position they are told, lazily, whatever the number of workers."""

import pytest
import torch
from torch.utils.data import Dataset

from ser_lightning.data import loaders
from ser_lightning.data.loaders import BatchLoader, SlotKeys, evaluation_loader, step_loader
from ser_lightning.data.plan import BatchKey


class Echo(Dataset):
    """Returns the key it is asked for."""

    def __len__(self):
        return 5

    def __getitem__(self, key):
        return torch.as_tensor(key)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_step_loader_yields_the_steps_that_are_left(num_workers):
    loader = step_loader(Echo(), 5, lambda: BatchKey(3, 2), num_workers)
    assert [batch.tolist() for batch in loader] == [[3, 2], [3, 3], [3, 4]]


def test_step_loader_asks_for_the_position_at_the_first_batch():
    position = BatchKey(0, 0)
    loader = step_loader(Echo(), 5, lambda: position, 0)
    iterator = iter(loader)
    position = BatchKey(7, 4)
    assert next(iterator).tolist() == [7, 4]


def test_step_loader_length_is_that_of_a_whole_epoch():
    assert len(step_loader(Echo(), 5, lambda: BatchKey(0, 3), 0)) == 5


def test_evaluation_loader_visits_every_batch_once_in_order():
    loader = evaluation_loader(Echo(), 0)
    assert [int(batch) for batch in loader] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_slots_of_all_ranks_are_all_slots_once_and_no_batch_has_two_parts(monkeypatch, world_size):
    monkeypatch.setattr(loaders, "world_size", lambda: world_size)
    seen, batches = [], []
    for rank in range(world_size):
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        loader = BatchLoader(Echo(), SlotKeys(Echo(), (11, 3), (6, 1)), 0)
        batches = [batch.tolist() for batch in loader]
        assert len(loader) == len(batches)
        for batch in batches:
            assert len({slot < 11 for slot in batch}) == 1
            assert len(batch) <= (3 if batch[0] < 11 else 1)
            seen += batch
    assert sorted(seen) == list(range(17))
