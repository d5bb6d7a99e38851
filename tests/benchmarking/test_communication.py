"""Bytes by formula are those that a step's collectives are called with."""

from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from benchmarking.two_process_bytes import step_bytes
from benchmarks.communication import COMPARED, Collective, collectives, table
from support import objective_classes, run_processes, take_rank, tiny_batch, tiny_objective

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def by_formula(cls, ser):
    batch = take_rank(tiny_batch(8, 4 if ser else 0), 0, 2)
    # of each anchor view: the candidates are carried to its frame
    tokens = [len(v.pixels) * v.element.shape[0] * v.element.shape[1] for v in batch.invertible]
    found = Counter()
    num_images = sum(len(views[0].pixels) for views in (batch.crop, batch.invertible) if views)
    for each in collectives(tiny_objective(cls, ser), num_images, tokens):
        if each.kind == "gather":
            found["gather"] += each.num_bytes
            found["backward of gather"] += each.num_bytes * each.has_backward
        else:
            found["sum"] += each.num_bytes * (1 + each.has_backward)
    return +found


def test_every_objective_is_compared():
    assert set(COMPARED) == set(objective_classes())


@pytest.mark.slow
def test_formula_equals_what_two_processes_send():
    for rank in run_processes(step_bytes):
        assert len(rank) == 2 * len(COMPARED)
        for cls, ser in product(COMPARED, (True, False)):
            assert rank[cls.__name__, ser] == by_formula(cls, ser), (cls.__name__, ser)


def test_a_ring_sends_each_part_once_around():
    # four ranks: three parts of others pass by; a sum goes around twice in quarters
    assert Collective("", "gather", 100).sent(4) == 300
    assert Collective("", "gather", 100, has_backward=True).sent(4) == 600
    assert Collective("", "sum", 100).sent(4) == 150
    assert Collective("", "sum", 100).sent(1) == 0


def test_page_has_the_table():
    assert table() in PAGE.read_text()
