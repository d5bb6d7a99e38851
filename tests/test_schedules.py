"""Schedules at their start, turning points and end."""

import math

import pytest

from ser_lightning.optim import cosine, scaled_learning_rate, warmup_cosine


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.0), (5, 0.5), (10, 1.0), (55, 0.5), (100, 0.0), (120, 0.0)]
)
def test_warmup_cosine_at_marked_steps(step, factor):
    assert warmup_cosine(step, 100, 10) == pytest.approx(factor, abs=1e-12)


def test_warmup_cosine_ends_at_its_floor():
    assert warmup_cosine(100, 100, 10, floor=0.25) == pytest.approx(0.25)


def test_warmup_cosine_without_warmup_starts_at_one():
    assert warmup_cosine(0, 100, 0) == 1.0


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.99), (50, 0.995), (100, 1.0)])
def test_momentum_rises_from_its_start_to_one(step, momentum):
    assert cosine(step, 100, 0.99, 1.0) == pytest.approx(momentum)


def test_learning_rate_scales_with_the_global_batch():
    assert scaled_learning_rate(3e-4, 2048) == pytest.approx(2.4e-3)


@pytest.mark.parametrize(("batch", "factor"), [(64, 0.5), (256, 1.0), (4096, 4.0)])
def test_learning_rate_scales_with_the_root_of_the_global_batch(batch, factor):
    assert scaled_learning_rate(1.2, batch, "sqrt") == pytest.approx(1.2 * factor)


def test_root_scaling_is_simclrs():
    assert scaled_learning_rate(1.2, 4096, "sqrt") == pytest.approx(0.075 * math.sqrt(4096))
