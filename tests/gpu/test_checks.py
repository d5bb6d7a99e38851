"""A GPU computes what the CPU does, is not waited for, and goes on exactly.

Checks also run with the CPU in the GPU's place, so that a machine without one runs its code;
equal numbers are no proof then. Bounds of half precision are twice
those of the CPU's (`test_mixed_precision.py`); nothing here was measured on a GPU yet.
"""

import math

import pytest
import torch

from gpu import checks
from objectives.tiny_run import assert_equal_trees, tiny_fit
from ser_lightning.objectives.moco_v3 import MoCoV3
from support import run_processes

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = pytest.param("cuda", marks=ON_GPU)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]
on_devices_of_cases = pytest.mark.parametrize(
    ("device", "case"),
    [("cpu", case) for case in (("MoCoV3", "ser"), checks.CASES[-1])]
    + [pytest.param("cuda", case, id="-".join(case), marks=ON_GPU) for case in checks.CASES],
)


@on_devices_of_cases
def test_losses_and_gradients_are_the_cpus(device, case):
    loss, gradient = checks.deviations(checks.step(device, *case), checks.step("cpu", *case))
    assert loss <= 1e-4  # float32 sums in another order
    assert gradient <= 1e-3


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=["bf16", "fp16"]
)
@on_devices_of_cases
def test_loss_in_half_precision_is_that_of_float32_within_rounding(device, case, dtype, bound):
    found, exact = checks.step(device, *case, autocast=dtype), checks.step("cpu", *case)
    assert found.loss.dtype == torch.float32
    assert 0 < checks.deviations(found, exact)[0] <= bound


@on_devices_of_cases
def test_device_is_not_waited_for_in_a_step(device, case):
    assert math.isfinite(checks.step_without_waiting(device, *case))


@pytest.mark.parametrize("device", [CUDA])  # `test_compiled.py` has the CPU's
def test_compiled_step_is_the_eager_one(device):
    loss, gradient = checks.deviations(checks.step(device, compile=True), checks.step(device))
    assert loss <= 1e-4
    assert gradient <= 1e-3


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_interrupted_run_ends_bit_identical(device, tmp_path):
    path = tmp_path / "stopped.ckpt"
    whole = tiny_fit(MoCoV3, save_after=8, save_to=path, accelerator=device)
    resumed = tiny_fit(MoCoV3, resume_from=path, accelerator=device)
    assert resumed.losses == whole.losses[8:]
    assert_equal_trees(resumed.module.state_dict(), whole.module.state_dict())


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_ranks_have_the_gradients_of_one_process(device):
    world_size = 2 if device == "cpu" else min(4, torch.cuda.device_count())
    backend = "gloo" if device == "cpu" else "nccl"
    ranks = run_processes(
        checks.mean_gradients_over_ranks, device, world_size=world_size, backend=backend
    )
    expected = checks.step("cpu")
    for gradients in ranks:
        found = expected._replace(gradients=gradients)
        assert checks.deviations(found, expected)[1] <= 1e-3
