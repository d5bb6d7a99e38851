"""SER on whole batches: pairs of views, what is detached, and two processes."""

import pytest
import torch

from regularizers.ser_parts import (
    batch_of,
    features_of,
    loss_and_gradients,
    make_elements,
    make_maps,
    make_regularizer,
    momentum_features,
    oracle,
    pairs_and_batch,
    rank_losses_and_gradients,
    tokens_of,
)
from support import run_processes

WORLD = 2


def features_and_batch(num_views=2, with_elements=True):
    elements = make_elements(3)[:num_views]
    features = features_of([x.requires_grad_() for x in make_maps(elements)])
    return features, batch_of(elements if with_elements else [None] * num_views)


@pytest.mark.parametrize("with_target", [True, False])
def test_regularize_is_forward_on_the_invertible_views(with_target):
    online, batch = features_and_batch()
    regularizer = make_regularizer(weight=0.5)
    maps = tuple(view.taps[0].tokens for view in online.invertible)
    elements = tuple(view.element for view in batch.invertible)
    target = online if with_target else None
    expected = regularizer(maps, elements, maps if with_target else None).loss
    assert torch.equal(regularizer.regularize(online, target, batch).loss, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_views": 0}, "has 0 invertible views, 0 with a group element; .*: give the run"),
        ({"num_views": 1}, "has 1 invertible views"),
        ({"with_elements": False}, "has 2 invertible views, 0 with a group element"),
    ],
)
def test_regularize_without_pairs_of_invertible_views_raises(wrong, message):
    online, batch = features_and_batch(**wrong)
    with pytest.raises(ValueError, match=message):
        make_regularizer().regularize(online, None, batch)


def pairs_of(online, target, batch):
    """(maps, elements, candidates) of every pair."""
    elements = [view.element for view in batch.invertible]
    maps = tokens_of(online)
    candidates = maps if target is None else [*tokens_of(target), *maps[2:]]
    return [(maps[k : k + 2], elements[k : k + 2], candidates[k : k + 2]) for k in (0, 2, 4)]


@pytest.mark.parametrize("with_target", [True, False])
def test_loss_of_six_views_is_the_sum_over_the_pairs(with_target):
    online, batch = pairs_and_batch()
    target = momentum_features() if with_target else None
    regularizer = make_regularizer()
    output = regularizer.regularize(online, target, batch)
    pairs = pairs_of(online, target, batch)
    calls = [regularizer(*pair[:2], pair[2] if with_target else None) for pair in pairs]
    assert torch.equal(output.loss, torch.stack([call.loss for call in calls]).sum())
    losses = [oracle(regularizer, *pair) for pair in pairs]
    # Measured: at most 2e-16.
    torch.testing.assert_close(output.loss, sum(losses), rtol=1e-12, atol=0)
    chance = "loss/equivariance_chance"
    assert output.logs[chance].item() == pytest.approx(
        sum(call.logs[chance].item() for call in calls)
    )


@pytest.mark.parametrize("with_target", [True, False])
def test_candidates_of_local_pairs_carry_a_gradient_without_a_momentum_branch_only(with_target):
    online, batch = pairs_and_batch()
    target = momentum_features() if with_target else None
    regularizer = make_regularizer()
    regularizer.regularize(online, target, batch).loss.backward()
    assert not with_target or all(x.grad is None for x in tokens_of(target))

    expected, _ = pairs_and_batch()  # equal values, gradients of their own
    twin = make_regularizer()
    for maps, elements, candidates in pairs_of(expected, target, batch):
        oracle(twin, maps, elements, candidates, detach=with_target).backward()
    for one, other in zip(
        (*tokens_of(online), *regularizer.parameters()),
        (*tokens_of(expected), *twin.parameters()),
        strict=True,
    ):
        assert one.grad.abs().max() > 1e-6
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-14)


def test_two_processes_equal_one_process_with_all_images():
    ranks = run_processes(rank_losses_and_gradients, world_size=WORLD)
    for case, with_target in enumerate((True, False)):
        loss, map_grads, parameter_grads = loss_and_gradients(slice(None), with_target)
        losses, rank_map_grads, rank_parameter_grads = zip(*(r[case] for r in ranks), strict=True)
        # DDP averages over ranks what each rank has computed.
        torch.testing.assert_close(torch.stack(losses).mean(), loss, rtol=1e-12, atol=0)
        for whole, *parts in zip(map_grads, *rank_map_grads, strict=True):
            torch.testing.assert_close(torch.cat(parts) / WORLD, whole, rtol=1e-9, atol=1e-14)
        for whole, *parts in zip(parameter_grads, *rank_parameter_grads, strict=True):
            torch.testing.assert_close(sum(parts) / WORLD, whole, rtol=1e-9, atol=1e-14)
