"""Two processes with half the batch each do the same mathematics as one with all of it."""

import pytest
import torch

from objectives.two_processes import CASES, step, steps
from support import run_processes

TOLERANCE = 1e-10  # relative; measured 3e-13 in float64
POSITION_TOLERANCE = 1e-7  # timm resamples the position embedding in float32; measured 2e-10


@pytest.fixture(scope="module")
def ranks():
    """Every case as two processes computed it, by rank."""
    return run_processes(steps)


def assert_close_as_a_whole(values, expected):
    largest = max((e.abs().max() for e in expected.values() if e.numel()), default=0)
    for name, value in expected.items():
        tolerance = POSITION_TOLERANCE if name.endswith("pos_embed") else TOLERANCE
        assert (values[name] - value).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.objective}-{c.add_on}-{c.num_local}")
def test_loss_gradients_and_buffers_equal_those_of_one_process(case, ranks):
    loss, gradients, buffers = step(case)
    assert any(g.abs().sum() > 0 for g in gradients.values())
    for rank in ranks:
        rank_loss, rank_gradients, rank_buffers = rank[tuple(case)]
        torch.testing.assert_close(rank_loss, loss, rtol=TOLERANCE, atol=0)
        assert_close_as_a_whole(rank_gradients, gradients)
        assert_close_as_a_whole(rank_buffers, buffers)
