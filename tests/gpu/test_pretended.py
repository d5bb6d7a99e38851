"""What can be known of a GPU without one: nothing of host and device mixes, and no step waits."""

import pytest
import torch

from gpu.pretended import GPU, WAITS, pretend, waits_by_step
from support import in_new_process

TINY = "tests/tiny.yaml"
SELDOM = ("--trainer.log_every_n_steps", "50")
DINO = ("--model", "DINO", "--model.bottleneck", "8")


def waits():
    """How often waits are noted for each way to ask a pretended GPU, or the error that it is."""
    pretend()
    on_gpu, on_host = torch.ones(3, device=GPU), torch.ones(3)
    ways = {
        "number": lambda: on_gpu.sum().item(),
        "to the host": on_gpu.cpu,
        "from the host": lambda: on_host.to(GPU),
        "from the host, later": lambda: on_host.to(GPU, non_blocking=True),
        "new tensor": lambda: on_gpu.new_tensor([1.0]),
        "mask": lambda: on_gpu[on_gpu > 0],
        "index of the host": lambda: on_gpu[torch.tensor([0])],
        "computing": lambda: torch.nn.functional.softmax(on_gpu * 2 + 1, 0),
        "mixed": lambda: on_gpu + on_host,
        "numpy": on_gpu.numpy,
    }
    return {kind: _waits_of(way) for kind, way in ways.items()}


def _waits_of(way):
    WAITS.clear()
    try:
        way()
    except (RuntimeError, TypeError) as error:
        return type(error).__name__
    return WAITS.total()


def test_pretended_gpu_notes_what_a_gpu_would_wait_for():
    once = ("number", "to the host", "from the host", "new tensor", "mask", "index of the host")
    never = ("from the host, later", "computing")
    errors = {"mixed": "RuntimeError", "numpy": "TypeError"}
    assert in_new_process(waits) == dict.fromkeys(once, 1) | dict.fromkeys(never, 0) | errors


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), marks=pytest.mark.slow),
        pytest.param((*DINO, "--model.regularizer", "null"), marks=pytest.mark.slow),
    ],
    ids=["moco-ser", "dino"],
)
def test_no_step_waits_for_its_device(options, tmp_path):
    run = ("fit", "--config", TINY, *SELDOM, *options, "--run_dir", str(tmp_path))
    steps = in_new_process(waits_by_step, *run)
    assert len(steps) == 12
    between = [step for number, step in enumerate(steps) if number % 6 != 5]  # measured after it
    assert not sum(between, start=type(WAITS)())
    assert all(steps[5::6])
