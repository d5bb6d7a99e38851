"""The guard lets finite values pass and names those that are not."""

import pytest
import torch

from ser_lightning.objectives.finite_guard import MAX_SKIPPED, FiniteGuard, Pass
from support import tiny_batch

NAN = torch.tensor(float("nan"))


def a_pass(batch_idx=0):
    return Pass(tiny_batch(2, 2), 0, 0, batch_idx, 0, 0)


def started(num_passes=1):
    guard, module = FiniteGuard(), torch.nn.BatchNorm1d(2)
    for batch_idx in range(num_passes):
        guard.begin(module, a_pass(batch_idx), is_first=batch_idx == 0)
    return guard


def optimizer(**options):
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], **options)


def test_guard_passes_finite_values():
    guard = started()
    guard.watch(("loss", "loss/invariance"), torch.tensor([1.0, 2.0]))
    assert guard.losses() is None
    assert guard.watch_gradients(torch.tensor(1.0), optimizer(), scaled=False) is None


def test_guard_passes_when_nothing_was_watched():
    assert FiniteGuard().losses() is None
    assert FiniteGuard().gradients(scaled=False) is None


def test_guard_sees_every_pass_of_an_accumulated_step_and_says_which():
    guard, module = FiniteGuard(), torch.nn.BatchNorm1d(2)
    for batch_idx, value in enumerate((1.0, float("nan"), 1.0)):
        guard.begin(module, a_pass(batch_idx), is_first=batch_idx == 0)
        guard.watch(("loss",), torch.tensor([value]))
    found = guard.losses()
    assert found.values == ("loss is nan",)
    assert [one.batch_idx for one in found.passes] == [1]
    assert guard.losses() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_guard_names_the_term(value):
    guard = started()
    guard.watch(("loss/invariance", "loss/equivariance"), torch.tensor([1.0, value]))
    assert guard.losses().values == (f"loss/equivariance is {value}",)


def test_gradients_may_come_from_any_pass_of_the_step():
    guard = started(num_passes=3)
    found = guard.watch_gradients(NAN, optimizer(), scaled=False)
    assert found.values == ("the norm of all gradients is nan",)
    assert [one.batch_idx for one in found.passes] == [0, 1, 2]


def test_buffers_are_those_from_before_the_pass():
    guard, module = FiniteGuard(), torch.nn.BatchNorm1d(2)
    guard.begin(module, a_pass(), is_first=True)
    module.running_mean.fill_(5)
    (one,) = guard.watch_gradients(NAN, optimizer(), scaled=False).passes
    assert one.buffers["running_mean"].tolist() == [0, 0]


def test_gradient_scaler_may_skip_steps_but_not_for_ever():
    guard = started()
    for _ in range(MAX_SKIPPED - 1):
        assert guard.watch_gradients(NAN, optimizer(), scaled=True) is None
    assert guard.watch_gradients(torch.tensor(1.0), optimizer(), scaled=True) is None
    for _ in range(MAX_SKIPPED - 1):
        assert guard.watch_gradients(NAN, optimizer(), scaled=True) is None
    assert guard.watch_gradients(NAN, optimizer(), scaled=True) is not None


def test_step_that_the_optimizer_can_leave_out_is_left_out_and_reported_later(monkeypatch):
    monkeypatch.setattr(FiniteGuard, "can_skip", staticmethod(lambda norm, optimizer: True))
    guard, fused = started(), optimizer(lr=0.5, fused=True)
    (parameter,) = fused.param_groups[0]["params"]
    parameter.grad = torch.full((1,), float("nan"))
    assert guard.watch_gradients(NAN, fused, scaled=False) is None
    fused.step()
    assert parameter.item() == 1
    assert guard.gradients(scaled=False) is not None
    parameter.grad = torch.ones(1)
    assert guard.watch_gradients(torch.tensor(1.0), fused, scaled=False) is None
    fused.step()
    assert 0 < parameter.item() < 1
    assert guard.gradients(scaled=False) is None
