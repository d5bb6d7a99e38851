"""Barlow Twins: the loss against its formula, who receives a gradient, LARS's two groups."""

import pytest
import torch
from timm.optim import Lars

from ser_lightning.backbones import SplitViT
from ser_lightning.objectives.barlow_twins import BarlowTwins, barlow_twins_loss
from ser_lightning.regularizers import SERRegularizer
from support import tiny_batch, tiny_objective

# the first losses of tests/objectives/golden.py
GOLDEN = [13.594107, 18.896246, 13.477709, 12.924477, 10.730674]

WEIGHT = 0.0051


def naive_loss(first, second, weight):
    """The docstring's formula, one pair of dimensions at a time."""
    total = 0.0
    columns = [
        [(x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() for x in view.T]
        for view in (first, second)
    ]
    for i, u in enumerate(columns[0]):
        for j, v in enumerate(columns[1]):
            correlation = sum(u[n] * v[n] for n in range(len(u))) / len(u)
            total = total + ((correlation - 1) ** 2 if i == j else weight * correlation**2)
    return total


def views(num=6, width=5):
    return [torch.randn(num, width, dtype=torch.float64, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("weight", [WEIGHT, 0.7])
def test_loss_equals_naive_formula_in_value_and_gradient_of_both_views(weight):
    pair = views()
    loss, naive = barlow_twins_loss(*pair, weight).loss, naive_loss(*pair, weight)
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(*(torch.autograd.grad(value, pair) for value in (loss, naive)))


def test_logged_terms_add_up_to_the_loss_and_carry_no_gradient():
    loss, logs = barlow_twins_loss(*views(), WEIGHT)
    torch.testing.assert_close(logs["loss/diagonal"] + logs["loss/off_diagonal"], loss)
    assert not any(value.requires_grad for value in logs.values())


def test_constant_features_miss_the_whole_diagonal():
    constant = torch.ones(8, 1) * torch.arange(5)
    loss, logs = barlow_twins_loss(constant, constant, WEIGHT)
    assert loss == logs["loss/diagonal"] == 5


def test_equal_uncorrelated_views_have_no_loss():
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    # measured 8e-11: the norm's epsilon, squared, three times
    assert barlow_twins_loss(signs, 4 * signs + 7, WEIGHT).loss < 1e-9


def test_equal_dimensions_are_redundant():
    same = torch.randn(16, 1, dtype=torch.float64).expand(16, 4)
    loss, logs = barlow_twins_loss(same, same, WEIGHT)
    assert logs["loss/diagonal"] == pytest.approx(0, abs=1e-6)
    assert loss == pytest.approx(WEIGHT * 4 * 3, rel=1e-4)


def test_loss_is_computed_in_float32_under_autocast():
    pair = [view.detach() for view in views(32, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = barlow_twins_loss(*(view.float() for view in pair), WEIGHT).loss
    assert loss.dtype == torch.float32
    # measured 3e-8; products in bfloat16 would fail
    assert loss.item() == pytest.approx(barlow_twins_loss(*pair, WEIGHT).loss.item(), rel=1e-5)


def test_candidates_of_ser_are_the_online_tokens():
    assert tiny_objective(BarlowTwins).target_features(tiny_batch()) is None


def test_parameter_counts_are_the_references():
    with torch.device("meta"):
        plain = BarlowTwins(SplitViT(cls_layer=0, freeze_patch_embed=False))
        ser = BarlowTwins(SplitViT(freeze_patch_embed=False), regularizer=SERRegularizer())
    assert sum(p.numel() for p in plain.projector.parameters()) == 137_396_224
    counts = [sum(p.numel() for p in m.trainable_parameters()) for m in (plain, ser)]
    assert counts == [159_061_888, 159_521_024]


def test_projector_has_no_linear_bias_and_ends_without_a_learnt_norm():
    names = {name for name, _ in tiny_objective(BarlowTwins).projector.named_parameters()}
    norms = {f"{layer}.{kind}" for layer in (1, 4) for kind in ("weight", "bias")}
    assert names == norms | {"0.weight", "3.weight", "6.weight"}


def test_one_group_without_a_bias_learning_rate():
    (group,) = tiny_objective(BarlowTwins, base_learning_rate=1e-4).parameter_groups()
    assert set(group) == {"params"}


@pytest.mark.parametrize("decay_biases", [True, False])
def test_bias_learning_rate_is_scaled_like_the_weights(decay_biases):
    module = tiny_objective(
        BarlowTwins,
        base_learning_rate=0.2,
        bias_learning_rate=0.0048,
        global_batch_size=2048,
        decay_biases=decay_biases,
    )
    weights, vectors = module.parameter_groups()
    assert module.learning_rate == pytest.approx(1.6)
    assert vectors["lr"] == pytest.approx(0.0384)
    assert vectors.get("weight_decay") == (None if decay_biases else 0.0)
    assert set(weights) == {"params"}
    assert {p.ndim for p in vectors["params"]} == {1}
    counted = len(weights["params"]) + len(vectors["params"])
    assert counted == len(list(module.trainable_parameters()))


def test_lars_adapts_weights_and_leaves_biases_alone():
    module = tiny_objective(
        BarlowTwins,
        ser=False,
        base_learning_rate=0.2,
        bias_learning_rate=0.0048,
        global_batch_size=256,
        decay_biases=False,
    ).double()
    optimizer = Lars(module.parameter_groups(), module.learning_rate, 0.9, weight_decay=1e-6)
    module.training_step(tiny_batch(dtype=torch.float64), 0).backward()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer.step()
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        step = before[name] - p
        if p.ndim == 1:
            torch.testing.assert_close(step, 0.0048 * p.grad, msg=name)
        else:  # the trust ratio makes every weight's step as long as 0.001 of the weight, times lr
            length = 0.2 * 0.001 * before[name].norm()
            torch.testing.assert_close(step.norm(), length, rtol=1e-3, atol=0, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"off_diagonal_weight": -1.0},
        {"bias_learning_rate": -0.1},
        {"base_learning_rate": 0.0, "bias_learning_rate": 0.1},
    ],
)
def test_hyperparameters_out_of_range_are_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name} {value}"):
        tiny_objective(BarlowTwins, **options)
