"""Two processes with half the batch each do the same mathematics as one with all of it."""

import re

import pytest
import torch

from objectives.two_processes import CASES, collectives_before_steps, poisoned, step, steps
from ser_lightning.objectives.replay_file import read_replay
from ser_lightning.runtime.preemption import EndsAtOnce
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


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_loss_gradients_and_buffers_equal_those_of_one_process(case, ranks):
    loss, gradients, buffers = step(case)
    assert any(g.abs().sum() > 0 for g in gradients.values())
    for rank in ranks:
        rank_loss, rank_gradients, rank_buffers = rank[tuple(case)]
        torch.testing.assert_close(rank_loss, loss, rtol=TOLERANCE, atol=0)
        assert_close_as_a_whole(rank_gradients, gradients)
        assert_close_as_a_whole(rank_buffers, buffers)


@pytest.mark.parametrize(
    ("what", "first"),
    [
        pytest.param(
            "pixel",
            "loss is nan, .*the output of backbone.vit.patch_embed.proj",
            marks=pytest.mark.slow,
        ),
        ("gradient", "all gradients is nan.*gradient of the output of backbone.vit.blocks.3"),
    ],
    ids=["pixel", "gradient"],
)
def test_both_processes_stop_and_the_file_is_of_the_rank_where_it_arose(what, first, tmp_path):
    zeroth, other = run_processes(poisoned, str(tmp_path), what)
    (path,) = tmp_path.iterdir()
    assert re.search(rf"step 1: .*{first}.*`ser-fit replay {path}`", other["message"])
    assert re.search(rf"step 1: .*; rank 1 of 2 wrote {path}", zeroth["message"])
    assert read_replay(path).one_pass.rank == 1
    assert zeroth["step"] == other["step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("callbacks", "asked"), [((), 3), ((EndsAtOnce(),), 0)])
def test_ranks_do_not_ask_each_other_before_a_step(callbacks, asked, tmp_path):
    assert run_processes(collectives_before_steps, str(tmp_path), *callbacks) == [asked, asked]
