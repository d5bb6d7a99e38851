"""Tests of opening a source: what is printed, and what ranks refuse."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ser_lightning.data import Shapes
from ser_lightning.sources import opening
from ser_lightning.sources.base import MemoryImages
from ser_lightning.sources.opening import check_ranks_agree, open_source


def memory(count):
    return MemoryImages(torch.zeros(count, 3, 2, 2, dtype=torch.uint8), torch.zeros(count), ("a",))


def test_opening_prints_what_was_found_and_returns_both_splits(monkeypatch):
    printed = []
    monkeypatch.setattr(opening, "rank_zero_info", printed.append)
    source = Shapes(24, 12)
    assert open_source(source) == (source.train(), source.evaluation())
    assert printed == [source.summary()]


def test_ranks_without_a_group_agree():
    check_ranks_agree(memory(3))


@pytest.mark.slow
def test_ranks_that_found_different_images_are_refused(tmp_path):
    mp.spawn(_compare, (str(tmp_path / "rendezvous"),), nprocs=2)


def _compare(rank, file):
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    check_ranks_agree(memory(3))
    with pytest.raises(ValueError, match=r"different images \(3, 4 of them, by rank\); give"):
        check_ranks_agree(memory(3 + rank))
    dist.destroy_process_group()


def test_labels_without_a_class_name_are_refused():
    class Own(Shapes):
        def train(self):
            return replace(memory(3), labels=torch.tensor([0, 1, 2]))

    with pytest.raises(ValueError, match=r"MemoryImages of Own has labels up to 2 and 1 class_na"):
        open_source(Own(24, 12))
