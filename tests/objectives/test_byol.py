"""BYOL: the loss against its formula, and a momentum branch that receives no gradient."""

import pytest
import torch

from ser_lightning.backbones import SplitViT
from ser_lightning.objectives.byol import BYOL, regression_loss
from support import tiny_batch, tiny_objective

# the first losses of tests/objectives/golden.py
GOLDEN = [6.920855, 8.55817, 6.320543, 6.825313, 7.033005]


def naive_regression(predictions, targets):
    """The docstring's formula, one image at a time."""
    distances = [
        (p / p.norm() - z / z.norm()).square().sum()
        for p, z in zip(predictions, targets, strict=True)
    ]
    return sum(distances) / len(distances)


def test_loss_equals_naive_formula_in_value_and_gradient():
    predictions = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(5, 7, dtype=torch.float64)
    pair = [f(predictions, targets) for f in (regression_loss, naive_regression)]
    torch.testing.assert_close(*pair)
    torch.testing.assert_close(*(torch.autograd.grad(loss, predictions)[0] for loss in pair))


def test_loss_sends_no_gradient_to_targets():
    predictions, targets = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    regression_loss(predictions, targets).backward()
    assert targets.grad is None
    assert predictions.grad.abs().sum() > 0


def test_loss_runs_from_zero_to_four():
    x = torch.randn(4, 3, dtype=torch.float64)
    assert regression_loss(x, 2 * x) == pytest.approx(0, abs=1e-12)
    assert regression_loss(x, -x) == pytest.approx(4)


def test_objective_sums_both_directions_across_views_and_branches():
    module = tiny_objective(BYOL, ser=False).double()
    with torch.no_grad():  # the branches differ, so that mixing them up shows
        module.momentum_projector[0].weight.mul_(-0.5)
    rng = torch.Generator().manual_seed(1)
    shape = (2, 6, module.backbone.width)
    online = torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)
    target = torch.randn(shape, generator=rng, dtype=torch.float64)
    loss = module.invariance_loss(tuple(online), tuple(target)).loss
    predictions = [module.predictor(module.projector(view)) for view in online]
    targets = [module.momentum_projector(view) for view in target]
    naive = naive_regression(predictions[0], targets[1])
    naive = naive + naive_regression(predictions[1], targets[0])
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(*(torch.autograd.grad(v, online)[0] for v in (loss, naive)))


@pytest.mark.parametrize("ser", [True, False])
def test_every_trainable_parameter_receives_a_gradient_and_the_momentum_branch_none(ser):
    module = tiny_objective(BYOL, ser)
    module.training_step(tiny_batch(), 0).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
            assert name.startswith(("momentum_", "backbone.vit.patch_embed")), name


def test_momentum_branch_receives_no_gradient_even_if_it_required_one():
    module = tiny_objective(BYOL)
    module.requires_grad_(True)
    tracked = []
    for branch in (module.momentum_backbone.vit, module.momentum_projector):
        branch.register_forward_hook(lambda *call: tracked.append(call[-1].requires_grad))
    module.training_step(tiny_batch(), 0).backward()
    assert tracked
    assert not any(tracked)  # nothing is kept for a backward pass either
    received = {name for name, p in module.named_parameters() if p.grad is not None}
    assert not any(name.startswith("momentum_") for name in received)
    assert "projector.0.weight" in received


def test_predictor_has_no_momentum_copy():
    module = tiny_objective(BYOL)
    momentum = {n.split(".")[0] for n, _ in module.named_parameters() if n.startswith("momentum_")}
    assert momentum == {"momentum_backbone", "momentum_projector"}
    assert not module.moves_after_step


def test_projection_std_of_the_online_branch_is_logged_without_gradient():
    module = tiny_objective(BYOL, ser=False).double()
    embeddings = tuple(torch.randn(2, 6, module.backbone.width, dtype=torch.float64))
    logs = module.invariance_loss(embeddings, embeddings[::-1]).logs
    both = torch.cat([module.projector(embedding) for embedding in embeddings])
    expected = (both / both.norm(dim=1, keepdim=True)).std(0, correction=0).mean().float()
    torch.testing.assert_close(logs, {"diagnostics/projection_std": expected.detach()})
    assert not logs["diagnostics/projection_std"].requires_grad


def test_parameter_count_is_that_of_backbone_and_heads():
    with torch.device("meta"):
        module = BYOL(SplitViT(cls_layer=0))
    backbone = 21_665_664 - 295_296  # the patch embedding is frozen
    projector = 384 * 4096 + 2 * 4096 + 4096 * 256
    predictor = 256 * 4096 + 2 * 4096 + 4096 * 256
    counted = sum(p.numel() for p in module.trainable_parameters())
    assert counted == backbone + projector + predictor


def test_momentum_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"momentum 1\.5"):
        tiny_objective(BYOL, momentum=1.5)
