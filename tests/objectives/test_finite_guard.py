"""The guard lets finite losses pass and names those that are not."""

import pytest
import torch

from ser_lightning.objectives.finite_guard import FiniteGuard, NonFiniteLossError


def test_guard_passes_finite_losses():
    guard = FiniteGuard()
    guard.watch(("loss", "loss/invariance"), torch.tensor([1.0, 2.0]))
    guard.check(0)


def test_guard_passes_when_nothing_was_watched():
    FiniteGuard().check(0)


def test_guard_sees_every_pass_of_an_accumulated_step():
    guard = FiniteGuard()
    guard.watch(("loss",), torch.tensor([float("nan")]))
    guard.watch(("loss",), torch.tensor([1.0]))
    with pytest.raises(NonFiniteLossError, match="loss is nan"):
        guard.check(0)
    guard.check(1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_guard_names_step_and_term(value):
    guard = FiniteGuard()
    guard.watch(("loss/invariance", "loss/equivariance"), torch.tensor([1.0, value]))
    with pytest.raises(NonFiniteLossError, match=r"step 7: loss/equivariance is -?(nan|inf)\."):
        guard.check(7)
