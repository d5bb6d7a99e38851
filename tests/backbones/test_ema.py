import copy

import pytest
import torch
from torch import nn

from ser_lightning.backbones.ema import momentum_copy, update_momentum


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def moved(module):
    """The module after a training step that moved every parameter and buffer."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    return module


def test_momentum_copy_is_frozen_and_independent():
    online = encoder()
    online[0].weight.requires_grad_(False)
    momentum = momentum_copy(online)
    assert not any(p.requires_grad for p in momentum.parameters())
    assert online[2].weight.requires_grad
    before = copy.deepcopy(momentum.state_dict())
    moved(online)
    assert all(torch.equal(before[k], v) for k, v in momentum.state_dict().items())


@pytest.mark.parametrize("m", [0.0, 0.3, 0.99, 1.0])
def test_update_equals_formula_and_leaves_buffers(m):
    online = encoder()
    momentum = momentum_copy(online)
    before = copy.deepcopy(momentum)
    update_momentum(moved(online), momentum, m)
    for new, old, ours in zip(
        momentum.parameters(), before.parameters(), online.parameters(), strict=True
    ):
        torch.testing.assert_close(new, m * old + (1 - m) * ours, rtol=1e-14, atol=1e-14)
    for new, old in zip(momentum.buffers(), before.buffers(), strict=True):
        assert torch.equal(new, old)


def test_update_skips_what_the_online_encoder_does_not_train():
    online = encoder()
    online[0].requires_grad_(False)
    momentum = momentum_copy(online)
    version = momentum[0].weight._version
    update_momentum(online, momentum, 0.5)
    assert momentum[0].weight._version == version
    update_momentum(online.requires_grad_(False), momentum, 0.5)
    assert momentum[0].weight._version == version


def test_update_passes_no_gradient():
    online = encoder()
    momentum = momentum_copy(online)
    update_momentum(online, momentum, 0.5)
    assert not any(p.requires_grad for p in momentum.parameters())


def test_update_of_another_architecture_fails():
    with pytest.raises(ValueError, match="shorter"):
        update_momentum(encoder(), nn.Linear(3, 4), 0.5)
