"""SimCLR: NT-Xent against its formula, over ranks too, and who receives a gradient."""

import math

import pytest
import torch

from ser_lightning.backbones import SplitViT
from ser_lightning.objectives import simclr
from ser_lightning.objectives.simclr import SimCLR, nt_xent_loss
from support import tiny_objective

# the first losses of tests/objectives/golden.py
GOLDEN = [6.951058, 9.421447, 7.905005, 6.077427, 7.336939]


def naive_nt_xent(first, second, temperature):
    """The docstring's formula, one pair at a time."""
    z = [row / row.norm() for row in (*first, *second)]
    total = 0.0
    for i in range(len(z)):
        others = [torch.dot(z[i], z[k]) / temperature for k in range(len(z)) if k != i]
        positive = torch.dot(z[i], z[(i + len(first)) % len(z)]) / temperature
        total = total - positive + torch.logsumexp(torch.stack(others), 0)
    return total / len(z)


def views(num=5, width=7, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num, width, generator=rng, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    ]


def test_loss_equals_naive_formula_in_value_and_gradient():
    pair = views()
    loss, naive = nt_xent_loss(*pair, 0.1), naive_nt_xent(*pair, 0.1)
    torch.testing.assert_close(loss, naive)
    for ours, theirs in zip(
        torch.autograd.grad(loss, pair), torch.autograd.grad(naive, pair), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("world_size", [2, 3])
def test_mean_over_ranks_is_the_loss_of_the_whole_batch(world_size, monkeypatch):
    """All ranks in one graph, so that gradients flow to every rank's candidates."""
    pair = views(num=6)
    shares = list(zip(*(view.chunk(world_size) for view in pair), strict=True))
    candidates = [torch.nn.functional.normalize(torch.cat(share), dim=1) for share in shares]
    losses = []
    for rank, share in enumerate(shares):
        monkeypatch.setattr(simclr, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(simclr, "gather_with_gradient", lambda _: torch.cat(candidates))
        losses.append(nt_xent_loss(*share, 0.1))
    loss, naive = sum(losses) / world_size, naive_nt_xent(*pair, 0.1)
    torch.testing.assert_close(loss, naive)
    for ours, theirs in zip(
        torch.autograd.grad(loss, pair), torch.autograd.grad(naive, pair), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_loss_of_identical_rows_is_its_chance_level():
    same = torch.ones(8, 4)
    assert nt_xent_loss(same, same, 0.1) == pytest.approx(math.log(15), rel=1e-5)


def test_loss_of_a_single_image_is_zero():
    first, second = views(num=1)
    assert nt_xent_loss(first, second, 0.1) == 0


def test_loss_does_not_depend_on_the_order_of_views_or_the_lengths():
    first, second = views()
    torch.testing.assert_close(
        nt_xent_loss(3 * second, first / 2, 0.1), nt_xent_loss(first, second, 0.1)
    )


def test_loss_is_computed_in_float32_under_autocast():
    first, second = (view.detach().float() for view in views())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent_loss(first, second, 0.1)
    assert torch.equal(loss, nt_xent_loss(first, second, 0.1))


def test_objective_takes_the_loss_of_both_projections():
    module = tiny_objective(SimCLR, ser=False, temperature=0.3).double()
    embeddings = tuple(torch.randn(4, module.backbone.width, dtype=torch.float64) for _ in "12")
    loss, logs = module.invariance_loss(embeddings, None)
    projections = [module.projector(embedding) for embedding in embeddings]
    torch.testing.assert_close(loss, naive_nt_xent(*projections, 0.3))
    assert not logs


def test_parameter_count_is_that_of_backbone_and_projector():
    with torch.device("meta"):
        module = SimCLR(SplitViT(cls_layer=0))
    backbone = 21_665_664 - 295_296  # the patch embedding is frozen
    projector = 384 * 2048 + 2 * 2048 + 2048 * 128 + 2 * 128
    assert sum(p.numel() for p in module.trainable_parameters()) == backbone + projector


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan])
def test_temperature_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=f"temperature {value} must be float > 0"):
        tiny_objective(SimCLR, temperature=value)
