"""VICReg: the loss against its formula, what collapse costs, who receives a gradient."""

import math

import pytest
import torch

from ser_lightning.backbones import SplitViT
from ser_lightning.objectives.vicreg import VICReg, vicreg_loss
from ser_lightning.regularizers import SERRegularizer
from support import tiny_objective

# the first losses of tests/objectives/golden.py
GOLDEN = [23.39464, 25.069611, 22.83255, 22.655128, 23.609423]


def naive_loss(first, second, similarity_weight, variance_weight, covariance_weight):
    """The docstring's formula, one number at a time."""
    num, width = first.shape
    similarity = sum(
        (first[n, d] - second[n, d]) ** 2 for n in range(num) for d in range(width)
    ) / (num * width)
    variance = covariance = 0.0
    for view in (first, second):
        columns = [x - sum(x) / num for x in view.T]
        for i, a in enumerate(columns):
            for j, b in enumerate(columns):
                value = sum(a[n] * b[n] for n in range(num)) / (num - 1)
                if i == j:
                    hinge = torch.clamp(1 - torch.sqrt(value + 1e-4), min=0)
                    variance = variance + hinge / width / 2
                else:
                    covariance = covariance + value**2 / width
    return (
        similarity_weight * similarity + variance_weight * variance + covariance_weight * covariance
    )


def views(num=6, width=5):
    scale = torch.linspace(0.3, 1.5, width, dtype=torch.float64)  # some above, some below 1
    return [(torch.randn(num, width, dtype=torch.float64) * scale).requires_grad_() for _ in "xy"]


@pytest.mark.parametrize(("num", "width"), [(6, 5), (5, 5), (4, 5), (2, 5)])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 2.0, 3.0)])
def test_loss_equals_naive_formula_in_value_and_gradient_of_both_views(weights, num, width):
    pair = views(num, width)
    loss, naive = vicreg_loss(*pair, *weights).loss, naive_loss(*pair, *weights)
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(*(torch.autograd.grad(value, pair) for value in (loss, naive)))


def test_logged_terms_add_up_to_the_loss_and_carry_no_gradient():
    loss, logs = vicreg_loss(*views())
    torch.testing.assert_close(sum(logs.values()), loss)
    assert len(logs) == 3
    assert not any(value.requires_grad for value in logs.values())


def test_constant_features_cost_the_whole_variance_term():
    constant = (torch.ones(8, 1) * torch.arange(5)).requires_grad_()
    loss, logs = vicreg_loss(constant, constant)
    assert loss.item() == pytest.approx(25 * (1 - math.sqrt(1e-4)))
    assert logs["loss/variance"] == loss
    loss.backward()
    assert constant.grad.isfinite().all()


def test_equal_spread_uncorrelated_views_have_no_loss():
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    assert vicreg_loss(signs, signs).loss == 0


def test_few_images_with_many_dimensions_keep_their_digits_in_float32():
    pair = [torch.randn(16, 512, dtype=torch.float64, requires_grad=True) for _ in "xy"]
    exact = vicreg_loss(*pair, 0.0, 0.0, 1.0).loss
    rounded = vicreg_loss(*(view.float() for view in pair), 0.0, 0.0, 1.0).loss
    torch.testing.assert_close(rounded.double(), exact, rtol=2e-6, atol=0)
    gradients = [torch.autograd.grad(loss, pair)[0] for loss in (exact, rounded)]
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert difference < 2e-6


def test_loss_is_computed_in_float32_under_autocast():
    pair = [view.detach() for view in views(32, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = vicreg_loss(*(view.float() for view in pair)).loss
    assert loss.dtype == torch.float32
    # measured 3e-8; products in bfloat16 would fail
    assert loss.item() == pytest.approx(vicreg_loss(*pair).loss.item(), rel=1e-5)


def test_module_hands_its_weights_to_the_loss():
    module = tiny_objective(VICReg, ser=False, variance_weight=3.0)
    embeddings = [torch.randn(8, 32) for _ in range(2)]
    projections = [module.projector(embedding) for embedding in embeddings]
    expected = vicreg_loss(*projections, 25.0, 3.0, 1.0).loss
    torch.testing.assert_close(module.invariance_loss(tuple(embeddings), None).loss, expected)


def test_expander_has_biases_before_its_norms_only():
    names = {name for name, _ in tiny_objective(VICReg).projector.named_parameters()}
    assert {"0.bias", "3.bias"} < names
    assert "6.bias" not in names


def test_parameter_counts_are_the_references():
    with torch.device("meta"):
        plain = VICReg(SplitViT(cls_layer=0, freeze_patch_embed=False))
        ser = VICReg(SplitViT(freeze_patch_embed=False), regularizer=SERRegularizer())
    assert sum(p.numel() for p in plain.projector.parameters()) == 137_396_224 + 2 * 8192
    counts = [sum(p.numel() for p in m.trainable_parameters()) for m in (plain, ser)]
    assert counts == [159_078_272, 159_537_408]


@pytest.mark.parametrize("name", ["similarity_weight", "variance_weight", "covariance_weight"])
def test_negative_weights_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} -1.0"):
        tiny_objective(VICReg, **{name: -1.0})
