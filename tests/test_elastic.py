"""A run that goes on with another number of processes is the same run."""

import pytest
import torch
from torch.utils._pytree import tree_map_only

from elastic_run import LAST_STEP, global_batches, piece
from ser_lightning.checkpoints import load_checkpoint
from support import objective_classes, run_processes

# In float64, absolute; weights are of order 1. Sums over ranks round otherwise, and position
# embeddings are resampled in float32. Measured: 6e-12.
TOLERANCE = 1e-10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def run(name, folder, *pieces):
    """Trains in pieces of (number of processes, last step); returns all batches and the weights."""
    folder.mkdir()
    batches, path = {}, None
    for world_size, stop_at in pieces:
        save_to = folder / f"{stop_at}.ckpt"
        arguments = (name, save_to, stop_at, path)
        if world_size == 1:
            ranks = [piece(*arguments)]
        else:
            ranks = run_processes(piece, *arguments, world_size=world_size)
        batches |= global_batches(ranks)
        path = save_to
    assert list(batches) == list(range(LAST_STEP))
    return batches, ranks[0]["state"]


def assert_same_run(first, second):
    assert first[0] == second[0]
    for name, value in second[1].items():
        assert (first[1][name] - value).abs().max() <= TOLERANCE, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Batches and weights of an unbroken run on one process."""
    return run("MoCoV3", tmp_path_factory.mktemp("elastic") / "whole", (1, LAST_STEP))


def contents(path):
    """What a checkpoint holds: numbers and words as they are, of tensors the shape and type."""
    return tree_map_only(torch.Tensor, lambda t: (t.shape, t.dtype), load_checkpoint(path))


def test_run_in_double_precision_goes_on_exactly(whole, tmp_path):
    batches, weights = run("MoCoV3", tmp_path / "broken", (1, 3), (1, LAST_STEP))
    assert batches == whole[0]
    assert all((weights[name] == value).all() for name, value in whole[1].items())


def test_one_process_takes_over_from_two(whole, tmp_path):
    assert_same_run(run("MoCoV3", tmp_path / "run", (2, 3), (1, LAST_STEP)), whole)
    run("MoCoV3", tmp_path / "one", (1, 3), (1, LAST_STEP))
    of_two, of_one = (contents(tmp_path / name / "3.ckpt") for name in ("run", "one"))
    assert of_two == of_one  # nothing of a rank


@pytest.mark.parametrize("name", [cls.__name__ for cls in objective_classes()])
def test_run_on_two_one_four_and_two_processes_is_that_on_one(name, tmp_path):
    whole = run(name, tmp_path / "whole", (1, LAST_STEP))
    assert_same_run(run(name, tmp_path / "run", (2, 2), (1, 4), (4, 6), (2, LAST_STEP)), whole)
